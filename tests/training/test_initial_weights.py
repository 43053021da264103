"""Initial weights: random, a published file, or a local file; resolved once, and recorded."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import OpenerDirector

import pytest
import torch
from torch import nn

from resnetkit import train
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import (
    DownloadError,
    RecipeError,
    TrainingError,
    UnknownWeightsError,
    WeightsError,
)
from resnetkit.models import (
    ImageClassification,
    ResNet,
    Starter_Weights,
    Weights,
    WeightsEnum,
    get_model,
    registry,
)
from resnetkit.models import cifar_resnet20 as construct
from resnetkit.models.weights import http, imagenet_classes, imagenet_ids, modelfile
from resnetkit.models.weights.convert import convert
from resnetkit.models.weights.resolve import build_network, load_tensors
from resnetkit.storage import sha256
from resnetkit.training import initial_weights, loop
from resnetkit.training.optimizer import set_learning_rate
from resnetkit.training.param_groups import make_optimizer, set_trainable
from resnetkit.training.recipe import Recipe, load_recipe


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Register a network, ``tiny``, with one published file; return the cached file."""
    torch.manual_seed(5)
    tensors = {**get_model("cifar_resnet20", width=4).state_dict()}
    torch.save(tensors, tmp_path / "tiny.pth")
    digest = hashlib.sha256((tmp_path / "tiny.pth").read_bytes()).hexdigest()
    url = f"https://published.invalid/tiny-{digest[:8]}.pth"

    class Tiny_Weights(WeightsEnum):
        FIRST = Weights(
            url,
            partial(ImageClassification, crop_size=32, resize_size=32),
            {"categories": [str(i) for i in range(10)]},
        )
        DEFAULT = FIRST

    def tiny(*, weights: Tiny_Weights | str | None = None, progress=True, **options) -> ResNet:
        options = {"width": 4, **options}
        return build_network(construct, options, weights, Tiny_Weights, progress)

    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    registry.register_model()(tiny)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return Path(shutil.move(tmp_path / "tiny.pth", cache / Path(url).name))


SMALL = {"model": "tiny", "image_size": 32, "epochs": 1, "batch_size": 8, "precision": "fp32"}


def test_auto_takes_what_is_published_and_the_recipe_says_what(published, flat_folder, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **SMALL)
    assert run.recipe.name == "finetune"
    assert run.recipe.weights == "Tiny_Weights.FIRST"
    assert run.recipe.weights_sha256 == sha256(published)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == run.recipe
    assert "auto" not in (tmp_path / "run" / "recipe.yaml").read_text()


def test_auto_starts_from_random_weights_if_none_are_available(published, capsys):
    published.unlink()
    chosen = initial_weights.resolve_recipe(None, {"model": "tiny"})
    assert (chosen.name, chosen.weights, chosen.weights_sha256) == ("fast", "none", None)
    text = " ".join(capsys.readouterr().err.split())
    assert "Published weights are not available, so starting from random ones" in text
    assert "RESNETKIT_OFFLINE is set" in text
    with pytest.raises(DownloadError):
        initial_weights.resolve_recipe(None, {"model": "tiny", "weights": "DEFAULT"})
    with pytest.raises(DownloadError):
        initial_weights.resolve_recipe("finetune", {"model": "tiny"})


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"width": 32}),
        ({"weights": "auto"}, {"width": 32}),
        ({"model_options": {"in_channels": 1}}, {"width": 32, "in_channels": 1}),
        ({"model": "resnet18", "model_options": {"width": 32}}, {"width": 32}),
        ({"weights": "Starter_Weights.TINY_IMAGENET"}, {"width": 32}),
        ({"weights": Starter_Weights.TINY_IMAGENET}, {"width": 32}),
        ({"model": "resnet18_starter"}, {}),
    ],
)
def test_without_a_download_training_starts_from_the_starter_weights(settings, options, capsys):
    chosen = initial_weights.resolve_recipe(None, settings)
    model = settings.get("model", "resnet18")
    assert (chosen.name, chosen.model, chosen.model_options) == ("finetune", model, options)
    member = Starter_Weights.TINY_IMAGENET
    expected = "Starter_Weights.TINY_IMAGENET"
    assert (chosen.weights, chosen.weights_sha256) == (expected, sha256(member.file()))
    for same in ({}, settings):  # as when a run is resumed
        again = initial_weights.resolve_recipe(None, same, chosen)
        assert (again.weights, again.model_options) == (chosen.weights, chosen.model_options)
    network, _ = initial_weights.make_network(chosen, 2)
    initial_weights.load_initial_weights(network, chosen, ["goldfish", "my cat"])
    starter = member.get_state_dict()
    assert torch.equal(network.layer4[1].conv2.weight, starter["layer4.1.conv2.weight"].float())
    row = member.meta["categories"].index("goldfish")
    assert torch.equal(network.fc.weight[0], starter["fc.weight"][row].float())
    assert "1 of 2 rows of the head are kept" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "none"},
        {"model": "resnet34"},
        {"model": "resnet18"},
        {"model_options": {"width": 16}},
        {"model_options": {"width": 32, "stem": "small"}},
        {"model": "cifar_resnet20"},
    ],
)
def test_a_network_that_the_starter_weights_do_not_fit_starts_at_random(settings):
    chosen = initial_weights.resolve_recipe(None, settings)
    assert (chosen.name, chosen.weights) == ("fast", "none")


def test_a_host_that_does_not_answer_is_not_waited_for_long(published, monkeypatch):
    """There is one request with a short time limit, and no second attempt after a pause."""
    limits, pauses = [], []

    def silent(self, request, timeout):
        limits.append(timeout)
        raise URLError(TimeoutError("timed out"))

    published.unlink()
    monkeypatch.setenv("RESNETKIT_OFFLINE", "0")
    monkeypatch.setattr(OpenerDirector, "open", silent)
    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=pauses.append))
    assert initial_weights.resolve_recipe(None, {"model": "tiny"}).weights == "none"
    assert (limits, pauses) == ([http.BRIEF_TIMEOUT], [])
    assert http.BRIEF_TIMEOUT < 5
    with pytest.raises(DownloadError):  # for weights that the user named, it does wait
        initial_weights.resolve_recipe(None, {"model": "tiny", "weights": "DEFAULT"})
    assert limits[1:] == [http.TIMEOUT] * http.ATTEMPTS
    assert len(pauses) == http.ATTEMPTS - 1


def test_none_is_none_and_other_networks_are_left_alone(published):
    assert initial_weights.resolve_recipe(None, {"model": "tiny", "weights": "none"}).name == "fast"
    assert initial_weights.resolve_recipe("fast", {"model": "tiny"}).weights == "none"
    wider = {"model": "tiny", "model_options": {"width": 8}}
    assert initial_weights.resolve_recipe(None, wider).weights == "none"
    with pytest.raises(WeightsError, match="no published weights, so 'DEFAULT'"):
        initial_weights.resolve_recipe(None, {"model": "cifar_resnet20", "weights": "DEFAULT"})
    with pytest.raises(WeightsError, match=r"no-such\.pth is not a file .*; expected a model file"):
        initial_weights.resolve_recipe(None, {"model": "tiny", "weights": "no-such.pth"})


def test_weights_arrive_in_the_network_and_the_head_is_new(published):
    chosen = initial_weights.resolve_recipe("finetune", {"model": "tiny"})
    network = get_model("tiny", num_classes=3)
    head = network.fc.weight.clone()
    initial_weights.load_initial_weights(network, chosen, ["a", "b", "c"])
    expected = torch.load(published, weights_only=True)
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, expected[name]), name
    assert torch.equal(network.fc.weight, head)


def test_a_model_file_brings_its_architecture(trained, flat_folder, tmp_path, monkeypatch):
    file = trained / "model.safetensors"
    monkeypatch.setenv("HOME", str(trained))
    monkeypatch.setenv("USERPROFILE", str(trained))  # on Windows
    assert (
        initial_weights.network_name(None, {"weights": "~/model.safetensors"}) == "cifar_resnet20"
    )
    chosen = initial_weights.resolve_recipe(None, {"weights": file})
    assert (chosen.name, chosen.model, chosen.model_options) == (
        "finetune",
        "cifar_resnet20",
        {"width": 8},
    )
    assert chosen.weights_sha256 == sha256(file)
    network = get_model("cifar_resnet20", width=8, num_classes=3)
    initial_weights.load_initial_weights(network, chosen, modelfile.read_header(file).classes)
    expected = modelfile.read(file)[0].state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in network.state_dict().items())
    with pytest.raises(RecipeError, match="holds a cifar_resnet20, but the recipe asks for a res"):
        initial_weights.resolve_recipe(None, {"weights": str(file), "model": "resnet18"})


def _loaded(file, classes, **settings):
    """Return the head of a network for ``classes``, after and before loading ``file``."""
    chosen = initial_weights.resolve_recipe(None, {"weights": str(file), **settings})
    torch.manual_seed(8)
    network = get_model(chosen.model, **chosen.model_options, num_classes=len(classes))
    before = network.fc.weight.detach().clone()
    initial_weights.load_initial_weights(network, chosen, classes)
    return network.fc.weight.detach(), before


def test_rows_of_the_head_are_matched_by_name(trained, capsys):
    file = trained / "model.safetensors"
    names = list(modelfile.read_header(file).classes)
    theirs = modelfile.read(file)[0].fc.weight.detach()
    row = {name: theirs[i] for i, name in enumerate(names)}
    for classes in (names, names[::-1], names[:2]):
        head, _ = _loaded(file, classes)
        assert torch.equal(head, torch.stack([row[name] for name in classes]))
        assert "the head is kept: its rows were matched" in capsys.readouterr().err
    head, before = _loaded(file, ["x", names[2], "y"])
    assert torch.equal(head, torch.stack([before[0], row[names[2]], before[2]]))
    text = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 rows of the head are kept, matched by name; the rows for x, y are new" in text
    head, before = _loaded(file, ["x", "y", "z"])
    assert torch.equal(head, before)
    assert "the head is new, because the file has other classes" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_head_of_a_checkpoint_is_kept_only_where_it_names_its_classes(tmp_path, capsys):
    net = construct(num_classes=3)
    small = {"model": "cifar_resnet20"}
    torch.save(net.state_dict(), tmp_path / "a.pth")
    head, before = _loaded(tmp_path / "a.pth", ["a", "b", "c"], **small)
    assert torch.equal(head, before)
    text = " ".join(capsys.readouterr().err.split())
    assert "does not name its classes. `resnet convert` with --classes" in text
    named = {"net": net.state_dict(), "class_to_idx": {"c": 0, "a": 1, "b": 2}}
    torch.save(named, tmp_path / "b.pth")
    head, _ = _loaded(tmp_path / "b.pth", ["a", "b", "c"], **small)
    assert torch.equal(head, net.fc.weight[[1, 2, 0]].detach())


def test_folders_called_by_wordnet_ids_keep_the_published_head(published, monkeypatch):
    ids, names = imagenet_ids(), imagenet_classes()
    torch.manual_seed(2)
    net = construct(num_classes=1000)
    header = modelfile.Header(
        "cifar_resnet20", {"num_classes": 1000}, tuple(names), Preprocessing(32, 32)
    )
    file = published.parent / "m.safetensors"
    modelfile.write(file, net.state_dict(), header)
    head, _ = _loaded(file, [ids[7], ids[3]])
    assert torch.equal(head, net.fc.weight[[7, 3]].detach())


def test_a_checkpoint_whose_head_is_replaced_is_not_refused_for_its_head(tmp_path, capsys):
    net = construct(num_classes=3)
    state = {n: t for n, t in net.state_dict().items() if n[:3] != "fc."}
    heads = {
        "has a head of several layers": nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)),
        "the head is new": nn.Sequential(nn.Dropout(), nn.Linear(64, 3)),
    }
    for words, head in heads.items():
        file = tmp_path / "drop.pth"
        torch.save({**state, **{f"fc.{n}": t for n, t in head.state_dict().items()}}, file)
        kept, before = _loaded(file, ["a", "b"], model="cifar_resnet20")
        assert torch.equal(kept, before)
        assert words in capsys.readouterr().err


def test_which_of_two_networks_training_begins_with_is_asked(tmp_path, capsys):
    one, two = construct(num_classes=3), construct(num_classes=3)
    state = {f"encoder_q.{n}": t for n, t in one.state_dict().items()}
    state |= {f"encoder_k.{n}": t for n, t in two.state_dict().items()}
    torch.save(state, tmp_path / "moco.pth")
    given = {"weights": str(tmp_path / "moco.pth"), "model": "cifar_resnet20"}
    network = get_model("cifar_resnet20", num_classes=3)
    with pytest.raises(WeightsError, match="training: --set weights_prefix=encoder_k"):
        initial_weights.load_initial_weights(
            network, initial_weights.resolve_recipe(None, given), ["a", "b", "c"]
        )
    for name, theirs in (("encoder_q", one), ("encoder_k", two)):
        chosen = initial_weights.resolve_recipe(None, {**given, "weights_prefix": name})
        initial_weights.load_initial_weights(network, chosen, ["a", "b", "c"])
        assert torch.equal(network.conv1.weight, theirs.conv1.weight)
        assert f"used the network under {name!r}; the file also has" in capsys.readouterr().err


def test_which_of_two_heads_training_begins_with_can_be_said(tmp_path, capsys):
    net = construct(num_classes=3)
    other = nn.Linear(64, 2)
    state = net.state_dict() | {f"classifier.{n}": t for n, t in other.state_dict().items()}
    file = tmp_path / "heads.pth"
    torch.save({"state_dict": state, "classes": ["b", "a"]}, file)
    given = {"weights": str(file), "model": "cifar_resnet20"}
    network = get_model("cifar_resnet20", num_classes=2)
    before = network.fc.weight.detach().clone()
    initial_weights.load_initial_weights(
        network, initial_weights.resolve_recipe(None, given), ["a", "b"]
    )
    text = " ".join(capsys.readouterr().err.split())
    assert "'state_dict.classifier' (2, 64), 'state_dict.fc' (3, 64)" in text
    assert "training: --set weights_head=state_dict.classifier; Python" in text
    assert "the head is new, because it is unclear which head to use" in text
    assert torch.equal(network.fc.weight, before)
    initial_weights.load_initial_weights(
        network,
        initial_weights.resolve_recipe(None, {**given, "weights_head": "classifier"}),
        ["a", "b"],
    )
    assert torch.equal(network.fc.weight, other.weight[[1, 0]])
    assert "the head is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer1.0.conv1.weight", float("nan"), "NaN or infinite values in layer1.0.conv1.weight"),
        ("bn1.running_var", -1.0, "negative variances in bn1.running_var"),
    ],
)
def test_weights_that_give_no_numbers_are_refused_before_the_first_step(
    tmp_path, name, value, words
):
    state = construct(num_classes=3).state_dict()
    state[name] = torch.full_like(state[name], value)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=words):
        _loaded(tmp_path / "bad.pth", ["a", "b", "c"], model="cifar_resnet20")
    with pytest.raises(WeightsError, match=words):
        convert(tmp_path / "bad.pth", tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include_top": False}, "a network without a head cannot classify. Remove include_top"),
        ({"width": 0}, "width is 0; expected 1 or more"),
        ({"width": -4}, "width is -4; expected 1 or more"),
        ({"width": 2.5}, "model_options of resnet18: "),
        ({"in_channels": 0}, "in_channels is 0; expected 1"),
        ({"stem": "large"}, "stem must be one of"),
        ({"num_classes": 7}, "num_classes is 7, but the data has 3 classes. Remove num_classes"),
    ],
)
def test_options_that_make_no_classifier_are_recipe_errors(options, words):
    recipe = Recipe(model="resnet18", model_options=options)
    with pytest.raises(RecipeError, match=words):
        initial_weights.make_network(recipe, 3)


def test_a_file_that_changed_is_refused(trained, tmp_path):
    file = Path(shutil.copy(trained / "model.safetensors", tmp_path / "mine.safetensors"))
    chosen = initial_weights.resolve_recipe(None, {"weights": str(file)})
    shutil.copy(trained / "last.safetensors", file)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(TrainingError, match="is not the file that this run started with"):
        initial_weights.load_initial_weights(
            get_model("cifar_resnet20", width=8, num_classes=3), chosen, ["a", "b", "c"]
        )


def test_a_resumed_run_keeps_what_it_began_with(
    published, flat_folder, tmp_path, capsys, monkeypatch
):
    whole = train(flat_folder, out=tmp_path / "whole", **{**SMALL, "epochs": 2})

    class Enough(Exception):
        pass

    real, steps = loop.training_step, []

    def step(*given):
        steps.append(given)
        if len(steps) == 8:  # in the second epoch
            raise Enough
        return real(*given)

    with monkeypatch.context() as patch, pytest.raises(Enough):
        patch.setattr(loop, "training_step", step)
        train(flat_folder, out=tmp_path / "run", **{**SMALL, "epochs": 2})
    published.unlink()
    resumed = train(flat_folder, out=tmp_path / "run", resume=True, **{**SMALL, "epochs": 2})
    assert "Resuming" in capsys.readouterr().err
    assert resumed.model.read_bytes() == whole.model.read_bytes()


def _net():
    torch.manual_seed(0)
    return get_model("resnet18", width=4, num_classes=3)


def test_the_head_alone_is_trained_first():
    network = _net()
    recipe = Recipe(head_share=0.5, freeze=("conv1", "bn1"), lr=0.1)
    optimizer = make_optimizer(network, recipe)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def changed(step):
        set_trainable(network, recipe, step, 4)
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        now = network.state_dict()
        return {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}

    assert changed(0) == {"fc"}
    assert changed(1) == {"fc"}
    assert changed(2) == {"fc", "layer1", "layer2", "layer3", "layer4"}


def test_what_is_left_to_train_is_checked_before_a_run_begins():
    splits = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
    for recipe, message in (
        (Recipe(freeze=("layer9",)), "unknown layer 'layer9'; expected conv1, bn1, layer1"),
        (Recipe(freeze=splits), "names every layer of the network"),
        (Recipe(freeze=("fc",), head_share=0.1), "freeze names fc, .* Set head_share=0"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_optimizer(_net(), recipe)


def test_layers_near_the_input_learn_more_slowly():
    network = _net()
    optimizer = make_optimizer(network, Recipe(layer_decay=0.5, weight_decay=0.05))
    set_learning_rate(optimizer, 1.0)
    names = {id(p): name for name, p in network.named_parameters()}
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert len(rates) == len(names)
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625}
    expected |= {"bn1": 0.03125, "conv1": 0.015625}
    for name, rate in rates.items():
        assert rate == expected[name.split(".")[0]], name
        assert decays[name] == (0.05 if dict(network.named_parameters())[name].ndim > 1 else 0)


def test_no_shared_file_tells_where_on_the_machine_the_weights_lay(trained, flat_folder, tmp_path):
    home = tmp_path / "home" / "jane.doe"
    home.mkdir(parents=True)
    file = Path(shutil.copy(trained / "model.safetensors", home / "mine.safetensors"))
    settings = {"image_size": 32, "epochs": 1, "batch_size": 8, "precision": "fp32"}
    run = train(flat_folder, out=tmp_path / "run", weights=str(file), **settings)
    for name in ("model.safetensors", "last.safetensors"):
        recipe = modelfile.read_header(run.folder / name).recipe
        assert (recipe["weights"], recipe["weights_sha256"]) == ("mine.safetensors", sha256(file))
    files = {p.name: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}
    assert [name for name, held in files.items() if b"jane.doe" in held] == ["recipe.yaml"]
    found = [name for name, held in files.items() if str(tmp_path).encode() in held]
    assert sorted(found) == ["environment.json", "recipe.yaml"]  # which --resume needs


def test_an_address_is_shared_without_its_secrets():
    recipe = Recipe(
        model="resnet18", weights="https://me:secret@host.invalid:8/a/x.pth?token=secret"
    )
    assert initial_weights.shareable_recipe(recipe)["weights"] == "https://host.invalid:8/a/x.pth"
    for weights in ("none", "DEFAULT", "hf://owner/name", "ResNet18_Weights.DEFAULT"):
        assert (
            initial_weights.shareable_recipe(Recipe(model="resnet18", weights=weights))["weights"]
            == weights
        )


FILES = ["best.pt", "best.ckpt", "best", "./best", "sub/best.bin", "Tiny.PT"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_file_at_every_entrance(published, tmp_path, monkeypatch, name):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(published, name)
    chosen = initial_weights.resolve_recipe(None, {"model": "tiny", "weights": name})
    assert chosen.weights == str(Path(name).absolute())
    monkeypatch.chdir(tmp_path)  # a run may be resumed from anywhere
    networks = [get_model("tiny") for _ in range(2)]
    initial_weights.load_initial_weights(networks[0], chosen, [str(i) for i in range(10)])
    monkeypatch.chdir(tmp_path / "here")
    networks[1].load_state_dict(load_tensors(name).tensors)
    expected = torch.load(published, weights_only=True)
    for network in (*networks, get_model("tiny", weights=name)):
        assert torch.equal(network.state_dict()["conv1.weight"], expected["conv1.weight"])


@pytest.mark.parametrize("name", ["best.pt", "./best", "sub/best.ckpt", "Tiny_Weights.pth"])
def test_a_file_that_is_missing_is_said_to_be_missing_at_every_entrance(published, name):
    for enter in (
        lambda: initial_weights.resolve_recipe(None, {"model": "tiny", "weights": name}),
        lambda: get_model("tiny", weights=name),
        lambda: load_tensors(name),
    ):
        with pytest.raises(WeightsError, match="is not a file"):
            enter()


@pytest.mark.parametrize("name", ["FIRTS", "Tiny_Weights.FIRTS", "Tiny_Weight.FIRST", "best"])
def test_an_unknown_name_lists_the_known_ones_at_every_entrance(published, name):
    for enter in (
        lambda: initial_weights.resolve_recipe(None, {"model": "tiny", "weights": name}),
        lambda: get_model("tiny", weights=name),
    ):
        with pytest.raises(
            UnknownWeightsError, match=r"Its members are FIRST.* no file .* either"
        ) as caught:
            enter()
        assert ("Did you mean 'FIRST'?" in str(caught.value)) == (name.endswith("FIRTS"))


def test_the_name_of_a_member_means_the_member(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("DEFAULT").write_text("a file of this name")
    chosen = initial_weights.resolve_recipe(None, {"model": "tiny", "weights": "DEFAULT"})
    assert chosen.weights == "Tiny_Weights.FIRST"
    assert get_model("tiny", weights="DEFAULT") is not None
    with pytest.raises(WeightsError, match="not a file of tensors"):
        get_model("tiny", weights="./DEFAULT")


def test_networks_are_built_with_the_options_that_they_know():
    narrow = load_recipe("fast").with_settings({"model": "resnet18", "model_options": {"width": 4}})
    model, options = initial_weights.make_network(narrow, 3)
    assert options == {"width": 4, "num_classes": 3}
    assert model.layer1[0].bn2.weight.abs().sum() == 0
    dark, _ = initial_weights.make_network(
        load_recipe("fast").with_settings({"model": "darknet53"}), 3
    )
    assert sum(p.numel() for p in dark.parameters()) > 40_000_000
    with pytest.raises(RecipeError, match=r"model_options of resnet18: .*Did you mean 'stem"):
        initial_weights.make_network(narrow.with_settings({"model_options": {"stemm": "small"}}), 3)
