from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from resnetkit.errors import RecipeError
from resnetkit.training import recipe as recipes
from resnetkit.training.recipe import Recipe, load_recipe
from resnetkit.training.settings import parse_settings


@pytest.mark.parametrize("name", recipes.builtin_recipes())
def test_built_in_recipes_load_and_survive_yaml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("name", recipes.builtin_recipes())
def test_built_in_recipes_open_with_their_command_and_what_was_measured(name):
    path = Path(recipes.__file__).parent / "recipes" / f"{name}.yaml"
    header = path.read_text(encoding="utf-8").split("name:")[0]
    assert "#   command   resnet " in header
    assert "#   measured  " in header


def test_classic_is_the_script_of_every_tutorial():
    recipe = load_recipe("classic")
    assert (recipe.model, recipe.image_size, recipe.resize_size) == ("resnet34", 224, 256)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adam", 1e-4, 0)
    assert (recipe.batch_size, recipe.epochs, recipe.seed) == (128, 30, 3)
    assert recipe.augmentation().crop_scale == (0.08, 1.0)
    assert recipe.augmentation().flip
    assert (recipe.label_smoothing, recipe.schedule) == (0, "constant")
    assert {recipe.train_size(epoch) for epoch in range(30)} == {224}


def test_every_field_has_its_description_or_a_plain_name():
    plain = {"name", "optimizer", "weight_decay", "label_smoothing", "seed", "precision"}
    for name, field in Recipe.model_fields.items():
        assert field.description or name in plain, name


def test_an_unknown_key_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"Unknown recipe key 'epoch'\. Did you mean 'epochs'\?"):
        load_recipe("fast").with_settings({"epoch": 3})
    (tmp_path / "r.yaml").write_text("lerning_rate: 3\n")
    with pytest.raises(RecipeError, match="Unknown recipe key 'lerning_rate'"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: .*greater than 0, got 0"),
        ({"optimizer": "lion"}, "optimizer: 'adamw', 'adam' or 'sgd', got 'lion'"),
        ({"val_split": 1.5}, "val_split"),
        ({"image_size": "big"}, "image_size: a valid integer.*, got 'big'"),
        ({"crop_scale": [1, 0.5]}, "crop_scale: expected two numbers above 0, the smaller"),
        ({"crop_scale": 3}, r"crop_scale: a list, as in \[0.5, 1.0\], got 3"),
        ({"scale_jitter": [0.5, 2]}, "scale_jitter.*: greater than or equal to 1, got 0.5"),
        ({"scale_jitter": [2, 1]}, "scale_jitter: expected two numbers above 0, the smaller"),
        (
            {"scale_jitter": [1, 2], "crop_padding": 4},
            "scale_jitter: cannot be combined with crop_padding",
        ),
        ({"seed": 2**70}, "seed: less than 9223372036854775808"),
        ({"lr": float("inf")}, "lr: a finite number, got inf"),
        ({"sampling": "even"}, "sampling: 'shuffled' or 'balanced', got 'even'"),
        ({"repeats": 0}, "repeats: greater than 0"),
        ({"model": "resnet19"}, "model: Unknown model 'resnet19'. Did you mean 'resnet18'"),
    ],
)
def test_a_value_that_is_not_valid_is_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("fast").with_settings(settings)


def test_unknown_recipe_and_files(tmp_path):
    with pytest.raises(RecipeError, match=r"Unknown recipe 'clasic'\. Did you mean 'classic'\?"):
        load_recipe("clasic")
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(RecipeError, match="holds a list"):
        load_recipe(tmp_path / "list.yaml")


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3", encoding="utf-16")
    with pytest.raises(RecipeError, match=r"mine\.yaml is not UTF-8 text"):
        load_recipe(tmp_path / "mine.yaml")


def test_settings_are_yaml():
    parsed = parse_settings(["flip=false", "lr=1e-4", "crop_scale=[0.5, 1]", "model=resnet34"])
    assert parsed == {"flip": False, "lr": 1e-4, "crop_scale": [0.5, 1], "model": "resnet34"}
    with pytest.raises(RecipeError, match="--set takes key=value; got 'flip'"):
        parse_settings(["flip"])
    with pytest.raises(RecipeError, match="the value is not valid YAML"):
        parse_settings(["crop_scale=[1"])


def test_train_size_grows_from_first_to_last():
    recipe = load_recipe("fast").with_settings(
        {"image_size": 96, "epochs": 10, "train_sizes": [0.5, 0.85]}
    )
    sizes = [recipe.train_size(epoch) for epoch in range(10)]
    assert sizes[0] == 48
    assert sizes[-1] == 80
    assert sizes == sorted(sizes)
    assert sizes[5] == 80  # from halfway on
    assert all(size % 16 == 0 for size in sizes)


def test_yaml_holds_plain_values():
    assert yaml.safe_load(load_recipe("fast").to_yaml())["lr"] == load_recipe("fast").lr


def test_epochs_and_steps_take_each_others_place():
    recipe = load_recipe("paper-cifar10")
    assert recipe.with_settings({"seed": 1}).steps == 64_000
    shorter = recipe.with_settings({"epochs": 3})
    assert (shorter.epochs, shorter.steps) == (3, None)
    again = shorter.with_settings({"steps": 10})
    assert (again.epochs, again.steps) == (None, 10)
    assert again.with_settings({"epochs": None}).steps == 10


def test_the_papers_and_torchvisions_numbers():
    """Compare with the published values, in their published units."""
    paper, cifar, v1, v2 = (
        load_recipe(name)
        for name in ("paper-imagenet", "paper-cifar10", "torchvision-v1", "torchvision-v2")
    )
    for recipe in (paper, cifar, v1, v2):
        assert (recipe.optimizer, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, False)
        assert recipe.flip
    for recipe in (paper, cifar, v1):
        assert (recipe.lr, recipe.weight_decay, recipe.decay_norms) == (0.1, 1e-4, True)
        assert recipe.label_smoothing == recipe.mixup == recipe.cutmix == recipe.ema == 0
    assert (paper.batch_size, cifar.batch_size, v1.batch_size, v2.batch_size) == (
        256,
        128,
        256,
        1024,
    )
    assert [round(224 * share) for share in paper.scale_jitter] == [256, 480]
    assert (cifar.crop_padding, cifar.image_size, cifar.val_split) == (4, 32, 0.1)
    for recipe, shorter in ((paper, 256), (v1, 256), (v2, 232)):
        preset = recipe.preprocessing()
        assert (preset.resize_size, preset.crop_size) == (shorter, 224)
    assert {paper.train_size(0), v1.train_size(0), v1.train_size(89)} == {224}
    assert {v2.train_size(0), v2.train_size(599)} == {176}
    assert v1.crop_scale == v2.crop_scale == (0.08, 1.0)
    assert (v2.epochs, v2.lr, v2.weight_decay, v2.decay_norms) == (600, 0.5, 2e-5, False)
    assert (v2.mixup, v2.cutmix, v2.label_smoothing, v2.erasing) == (0.2, 1.0, 0.1, 0.1)
    assert (v2.trivial_augment, v2.repeats, v2.ema_every) == (True, 4, 32)
    assert v2.ema == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600, abs=1e-7)


def test_the_augmentation_is_all_that_the_recipe_says():
    settings = {
        "crop_scale": (0.2, 0.3), "crop_padding": 3, "flip": False, "trivial_augment": True,
        "erasing": 0.4,
    }  # fmt: skip
    augmentation = load_recipe("fast").with_settings(settings).augmentation()
    assert {name: getattr(augmentation, name) for name in settings} == settings
    jitter = load_recipe("fast").with_settings({"scale_jitter": [1, 2]}).augmentation()
    assert jitter.scale_jitter == (1, 2)
