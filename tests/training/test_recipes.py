"""Each built-in recipe, shortened: it runs, and its settings reach the optimizer and the loader."""

from __future__ import annotations

import math
from collections import Counter
from importlib import resources

import numpy as np
import pytest
import torch
import yaml

from resnetkit import load as load_model
from resnetkit import train
from resnetkit.data import folder
from resnetkit.training import loop
from resnetkit.training import recipe as recipes
from resnetkit.training.ema import ModelEma
from resnetkit.training.preparation import prepare
from resnetkit.training.schedule import learning_rate

SMALLER = {
    "image_size": 32,
    "resize_size": 36,
    "batch_size": 8,
    "precision": "fp32",
    "checkpoint_seconds": 0,
}
NETWORKS = {"resnet50": 4, "resnet34": 4, "resnet18": 4, "cifar_resnet20": 8}  # and their widths
BATCHES = 5  # of 8 images each, from 42 training images


class Stop(Exception):
    pass


def shortened(name, **more):
    recipe = recipes.load_recipe(name)
    width = {"width": NETWORKS[recipe.model]} if recipe.model else {}
    length = {"steps": 7} if recipe.steps else {"epochs": 2}
    return {**SMALLER, **length, "model_options": {**recipe.model_options, **width}, **more}


def observed(monkeypatch, stop_before=math.inf):
    """Record what each training step receives, and whether it updates the averaged weights."""
    real, steps = loop.training_step, []

    def step(state, batch, recipe, runtime, lr, *args):
        if len(steps) == stop_before:
            raise Stop
        result = real(state, batch, recipe, runtime, lr, *args)
        groups = state.optimizer.param_groups
        steps.append(
            {
                "rate": lr,
                "rates": {group["lr"] for group in groups},
                "decay": [group["weight_decay"] for group in groups],
                "optimizer": state.optimizer.kind,
                "momentum": (state.optimizer.momentum, state.optimizer.nesterov),
                "side": batch.images.shape[-1],
                "indices": batch.indices.tolist(),
                "averaged": False,
            }
        )
        return result

    update = ModelEma.update

    def observed_update(ema, *args):
        old = ema.model.fc.weight.clone()
        update(ema, *args)
        steps[-1]["averaged"] = not torch.equal(old, ema.model.fc.weight)

    monkeypatch.setattr(loop, "training_step", step)
    monkeypatch.setattr(ModelEma, "update", observed_update)
    return steps


def from_random():
    """Yield the recipes with random weights (test_initial_weights.py has the others)."""
    for name in recipes.builtin_recipes():
        recipe = recipes.load_recipe(name)
        deep = str(recipe.model) in ("resnet34", "resnet50") or recipe.model is None
        if recipe.weights == "none":
            yield pytest.param(name, marks=[pytest.mark.slow] if deep else [])


@pytest.mark.parametrize("name", list(from_random()))
def test_a_recipe_runs_and_reaches_optimiser_and_loader(name, flat_folder, tmp_path, monkeypatch):
    steps = observed(monkeypatch)
    run = train(flat_folder, name, out=tmp_path / "run", **shortened(name))
    recipe = run.recipe
    count = recipe.steps or 2 * BATCHES
    assert len(steps) == count
    assert len(run.history) == 2
    for number, step in enumerate(steps):
        assert step["rates"] == {step["rate"]} == {learning_rate(recipe, number, count)}
        others = recipe.weight_decay if recipe.decay_norms else 0
        assert step["decay"] == [recipe.weight_decay, others]
        assert step["optimizer"] == recipe.optimizer
        if recipe.optimizer == "sgd":
            assert step["momentum"] == (recipe.momentum, recipe.nesterov)
        assert step["side"] == recipe.train_size(number // BATCHES)
        assert set(Counter(step["indices"]).values()) == {recipe.repeats}
    saved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert recipes.load_recipe(run.folder / "recipe.yaml") == recipe
    published = yaml.safe_load((resources.files("resnetkit.training") / "recipes" /
                                f"{name}.yaml").read_text())  # fmt: skip
    for key in set(published) - set(shortened(name)) - {"epochs"}:
        assert saved[key] == published[key], key
    preprocessing = load_model(run.model).preprocessing
    assert (preprocessing.resize_size, preprocessing.crop_size) == (36, 32)


def test_torchvision_v2_averages_rarely_and_after_the_last_step(flat_folder, tmp_path, monkeypatch):
    steps = observed(monkeypatch)
    settings = shortened("torchvision-v2", ema_every=4)
    train(flat_folder, "torchvision-v2", out=tmp_path / "run", **settings)
    assert [number for number, step in enumerate(steps) if step["averaged"]] == [0, 4, 8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision-v2", "paper-cifar10"])
def test_a_broken_run_ends_in_the_same_bits(name, flat_folder, tmp_path, monkeypatch):
    """This also holds if the run ends within an epoch, and with balanced sampling."""
    settings = shortened(name, sampling="balanced", ema=0.9, ema_every=2)
    with monkeypatch.context() as patch:
        whole_steps = observed(patch)
        whole = train(flat_folder, name, out=tmp_path / "whole", workers=0, **settings)
    out, seen = tmp_path / "broken", []
    for workers in (1, 3):
        with monkeypatch.context() as patch:
            steps = observed(patch, stop_before=3)
            with pytest.raises(Stop):
                train(flat_folder, name, out=out, resume=True, workers=workers, **settings)
        seen += steps
    with monkeypatch.context() as patch:
        steps = observed(patch)
        run = train(out, resume=True)
    assert seen + steps == whole_steps
    for file in ("model.safetensors", "last.safetensors", "history.csv", "metrics.json"):
        assert (whole.folder / file).read_bytes() == (out / file).read_bytes(), file
    assert run.metrics == whole.metrics


@pytest.mark.parametrize("layout", ["flat", "split"])
def test_only_training_images_are_decoded_larger(layout, request, save, tmp_path):
    data = folder.read_dataset(request.getfixturevalue(f"{layout}_folder"))  # 40 x 36 px
    settings = {"image_size": 16, "resize_size": 16, "decode_size": 24}
    prepared = prepare(data, recipes.load_recipe("fast").with_settings(settings), 0)
    assert {prepared.train[i].shape for i in range(len(prepared.train))} == {(24, 26, 3)}
    assert {prepared.val[i].shape for i in range(len(prepared.val))} == {(16, 17, 3)}
    preset = recipes.load_recipe("fast").with_settings(settings).preprocessing()
    assert (preset.resize_size, prepared.val.preprocessing) == (16, preset)
    expected = preset.pixels(prepared.val.split.path(0))
    assert np.array_equal(prepared.val[0], expected)
