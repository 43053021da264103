"""The ResNet family, under the names commonly used for its networks and blocks."""

from . import builders as _builders
from . import weights as _weights
from .blocks import BasicBlock, Bottleneck, DilatedBasicBlock, PadShortcut, conv1x1, conv3x3
from .builders import *  # noqa: F403
from .darknet import DarkNet, darknet53
from .registry import (
    get_model,
    get_model_builder,
    get_model_weights,
    get_weight,
    list_models,
    list_weights,
    register_model,
)
from .resnet import ResNet
from .summary import Summary, summarize
from .weights import *  # noqa: F403
from .weights import Weights, WeightsEnum, imagenet_classes
from .weights.convert import convert
from .weights.foreign import Recognised, recognise
from .weights.preset import ImageClassification
from .weights.resolve import load_into, load_tensors

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "DarkNet",
    "DilatedBasicBlock",
    "ImageClassification",
    "PadShortcut",
    "Recognised",
    "ResNet",
    "Summary",
    "Weights",
    "WeightsEnum",
    "conv1x1",
    "conv3x3",
    "convert",
    "darknet53",
    "get_model",
    "get_model_builder",
    "get_model_weights",
    "get_weight",
    "imagenet_classes",
    "list_models",
    "list_weights",
    "load_into",
    "load_tensors",
    "recognise",
    "register_model",
    "summarize",
    *_weights.__all__,
    *_builders.__all__,
]
