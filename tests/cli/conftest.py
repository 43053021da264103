"""The model file and the images from a finished run."""

from __future__ import annotations

import pytest


@pytest.fixture
def model(trained):
    return trained / "model.safetensors"


@pytest.fixture
def images(trained):
    return trained.parent / "data"
