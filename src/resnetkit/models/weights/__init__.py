"""Weight files: the published ones, model files, and checkpoints from other code.

The path from a name to a network, by module::

"IMAGENET1K_V2" -> enums (member, address) -> download (a file in the cache)
                -> reading (tensors by name) -> resolve (into a network)
"""

from ...data.imagenet import imagenet_classes as imagenet_classes
from ...data.imagenet import imagenet_ids as imagenet_ids
from .enums import *  # noqa: F403
from .enums import Weights as Weights
from .enums import WeightsEnum as WeightsEnum
from .enums import __all__ as __all__
