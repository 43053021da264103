"""Batches -> logits: the ResNet family, under the names the field uses."""

from .blocks import BasicBlock, Bottleneck, PadShortcut, conv1x1, conv3x3
from .builders import *  # noqa: F403
from .registry import get_model, get_model_builder, list_models, register_model
from .resnet import ResNet
from .summary import Summary, summarize

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PadShortcut",
    "ResNet",
    "Summary",
    "conv1x1",
    "conv3x3",
    "get_model",
    "get_model_builder",
    "list_models",
    "register_model",
    "summarize",
    *list_models(),
]
