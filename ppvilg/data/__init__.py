"""Data: records from shards or folders, transforms that carry boxes, and the batch order. NumPy and Pillow only."""

from .batches import in_batches
from .buckets import ShapeBuckets, write_buckets
from .fitting import FittedShape, fit_shapes
from .latents import LatentStore
from .listing import Listed, Listing, list_folder, list_shard
from .loading import Batch, LatentLoader, LoadReport, SampleLoader, encode_latents, sample_rng
from .mixture import MixedSource, repeats_of
from .order import BatchOrder, RangeBuckets
from .records import (
    BAD_SAMPLE_SHARE,
    BadSample,
    BadSampleLimit,
    ObjectBox,
    Record,
    TooManyBadSamples,
    decode_image,
    validate_objects,
)
from .report import DataReport, Tally
from .source import RecordSource, find_shards, open_source
from .transforms import ImageTransform, Placement, to_pixel_values

__all__ = [
    "BAD_SAMPLE_SHARE",
    "BadSample",
    "BadSampleLimit",
    "Batch",
    "BatchOrder",
    "DataReport",
    "FittedShape",
    "ImageTransform",
    "LatentLoader",
    "LatentStore",
    "Listed",
    "Listing",
    "LoadReport",
    "MixedSource",
    "ObjectBox",
    "Placement",
    "RangeBuckets",
    "Record",
    "RecordSource",
    "SampleLoader",
    "ShapeBuckets",
    "Tally",
    "TooManyBadSamples",
    "decode_image",
    "encode_latents",
    "find_shards",
    "fit_shapes",
    "in_batches",
    "list_folder",
    "list_shard",
    "open_source",
    "repeats_of",
    "sample_rng",
    "to_pixel_values",
    "validate_objects",
    "write_buckets",
]
