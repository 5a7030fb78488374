"""Models on disk: names and folders, what they hold and who they are, reading and writing them."""

from .identity import ModelIdentity, identify
from .loading import STABLE_DIFFUSION_SCHEDULE, Loading
from .weights import forget_paths, save_fp16
from .zoo import INDEX, ZOO, resolve, zoo_folder

__all__ = [
    "INDEX",
    "STABLE_DIFFUSION_SCHEDULE",
    "ZOO",
    "Loading",
    "ModelIdentity",
    "forget_paths",
    "identify",
    "resolve",
    "save_fp16",
    "zoo_folder",
]
