"""Making an index: every sample of shards or of a folder goes into it, or is named with the reason why not."""

from .annotations import find_sidecars
from .captions import caption_files, fill_from_pictures
from .folders import fill_from_folder, find_files, find_listing, is_picture
from .shards import fill_from_shard, fill_from_shards
from .tars import COMPRESSED
from .writer import COLUMNS, IndexWriter

__all__ = [
    "COLUMNS",
    "COMPRESSED",
    "IndexWriter",
    "caption_files",
    "fill_from_folder",
    "fill_from_pictures",
    "fill_from_shard",
    "fill_from_shards",
    "find_files",
    "find_listing",
    "find_sidecars",
    "is_picture",
]
