"""Files, for every room: written whole or not at all, hashed, pickles refused, and pictures read in one way. No Paddle.

The lowest room: it imports none of the others.
"""

from .adapters import ADAPTER_ENTRY, ADAPTER_NAMES, adapter_entry, adapter_file
from .caches import cache_folder, can_write, private_folder
from .hashing import digest_of, file_sha256
from .models import check_model_files, is_whole, read_json
from .pickles import refuse_pickles
from .pictures import MAX_PIXELS, PICTURE_FORMATS, PictureError, picture_size, read_alpha, read_picture, to_rgb
from .reading import LFS_POINTER, damage_of, read_lines, read_text
from .shipped import find_shipped, shipped_folder, shipped_recipes
from .writing import naming_disk_errors, whole_file, write_whole

__all__ = [
    "ADAPTER_ENTRY",
    "ADAPTER_NAMES",
    "LFS_POINTER",
    "MAX_PIXELS",
    "PICTURE_FORMATS",
    "PictureError",
    "adapter_entry",
    "adapter_file",
    "cache_folder",
    "can_write",
    "check_model_files",
    "damage_of",
    "digest_of",
    "file_sha256",
    "find_shipped",
    "is_whole",
    "naming_disk_errors",
    "picture_size",
    "private_folder",
    "read_alpha",
    "read_json",
    "read_lines",
    "read_picture",
    "read_text",
    "shipped_folder",
    "shipped_recipes",
    "refuse_pickles",
    "to_rgb",
    "whole_file",
    "write_whole",
]
