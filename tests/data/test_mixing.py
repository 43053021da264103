from __future__ import annotations

import pytest
import torch

from resnetkit.data.mixing import mix

IMAGES = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 12).contiguous()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_off_changes_nothing():
    images, labels = mix(IMAGES, LABELS, 0, 0, 4, seed=0, step=0)
    assert images is IMAGES
    assert labels is LABELS


@pytest.mark.parametrize("alphas", [(0.4, 0), (0, 1.0), (0.2, 1.0)])
def test_targets_are_the_shares_of_the_pixels(alphas):
    """Image i has the number i at every pixel, so pixel means show what it is mixed from."""
    for step in range(60):
        images, targets = mix(IMAGES, LABELS, *alphas, 4, seed=1, step=step)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        for i in range(6):
            own, other = i, (i - 1) % 6
            share = (images[i].mean() - other) / (own - other)
            expected = torch.zeros(4)
            expected[LABELS[own]] += share
            expected[LABELS[other]] += 1 - share
            assert torch.allclose(targets[i], expected, atol=1e-5)


def test_cutmix_pastes_a_box_and_mixup_blends():
    pasted, _ = mix(IMAGES, LABELS, 0, 1.0, 4, seed=0, step=3)
    assert set(pasted[2].unique().tolist()) <= {1.0, 2.0}
    blended, _ = mix(IMAGES, LABELS, 1.0, 0, 4, seed=0, step=3)
    assert len(blended[2].unique()) == 1
    assert 1 < blended[2, 0, 0, 0] < 2


def test_it_is_a_function_of_seed_and_step():
    first = mix(IMAGES, LABELS, 0.4, 1.0, 4, seed=0, step=5)
    again = mix(IMAGES, LABELS, 0.4, 1.0, 4, seed=0, step=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [mix(IMAGES, LABELS, 0.4, 1.0, 4, seed=s, step=t) for s, t in ((1, 5), (0, 6))]
    assert all(not torch.equal(first[1], other[1]) for other in others)
