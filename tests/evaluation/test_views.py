from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from resnetkit import evaluate
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import RecipeError
from resnetkit.evaluation.metrics import probabilities
from resnetkit.evaluation.views import Views, batch_count, scale_preprocessing
from resnetkit.models.weights import modelfile


@pytest.mark.parametrize("shape", [(60, 90, 3), (91, 57, 3), (40, 40, 3), (33, 200, 3)])
@pytest.mark.parametrize("sizes", [(40, 32), (37, 32), (32, 32)])
def test_ten_crops_equal_torchvisions(shape, sizes):
    resize_size, crop_size = sizes
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = F.ten_crop(F.resize(whole, [resize_size], antialias=True), [crop_size, crop_size])
    ours = Views(10).crop(pixels, Preprocessing(resize_size, crop_size))
    assert len(ours) == 10
    for one, other in zip(ours, theirs, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


def test_the_center_crop_is_the_view_of_a_plain_evaluation():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    preprocessing = Preprocessing(40, 32)
    views = Views(10).crop(pixels, preprocessing)
    plain = preprocessing.crop(pixels)
    assert torch.equal(views[4], plain)
    mirrored = Views(flip=True).crop(pixels, preprocessing)
    assert torch.equal(mirrored[0], plain)
    assert torch.equal(mirrored[1], plain.flip(-1))


def test_probabilities_are_averaged(trained):
    file, data = trained / "model.safetensors", trained.parent / "data"
    found = evaluate(file, data, "all", crops=10, image_size=24)
    assert found.metrics["views"] == {
        "image_size": 24,
        "resize_size": 24,
        "crops": 10,
        "flip": True,
    }
    model, header = modelfile.read(file)
    preprocessing = scale_preprocessing(header.preprocessing, 24)
    for i in (0, 41):
        views = Views(10).crop(preprocessing.pixels(found.samples.path(i)), preprocessing)
        images = torch.stack(list(views)).float() / 255
        images = F.normalize(images, list(preprocessing.mean), list(preprocessing.std))
        with torch.no_grad():
            expected = torch.softmax(model(images), 1).mean(0)
        torch.testing.assert_close(probabilities(found.logits)[i], expected, rtol=1e-4, atol=1e-5)
    (note,) = (note for note in found.notes if "ten crops" in note)
    assert "a square image only by mirroring" in note
    assert Views(10).notes(Preprocessing(40, 32)) == ()
    flipped = evaluate(file, data, "all", flip=True)
    plain = evaluate(file, data, "all")
    assert flipped.metrics["views"]["flip"]
    assert not torch.equal(flipped.logits, plain.logits)


def test_crop_and_resize_sizes_scale_together():
    assert scale_preprocessing(Preprocessing(256, 224), 112) == Preprocessing(128, 112)
    assert scale_preprocessing(Preprocessing(256, 224), None) == Preprocessing(256, 224)
    with pytest.raises(RecipeError, match="1 to 4096"):
        scale_preprocessing(Preprocessing(256, 224), 5000)
    with pytest.raises(RecipeError, match="crops must be 1 \\(center\\) or 10"):
        Views(crops=5)
    assert [batch_count(n, Views()) for n in (1, 64, 65)] == [1, 1, 2]
    assert batch_count(13, Views(10)) == 3
