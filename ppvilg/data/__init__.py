"""Data: records from shards or folders, transforms that carry boxes, and the batch order. NumPy and Pillow only."""

from .batches import in_batches
from .buckets import ShapeBuckets, write_buckets
from .latents import LatentStore
from .loading import Batch, LatentLoader, LoadReport, SampleLoader, encode_latents, sample_rng
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
from .source import RecordSource, open_source
from .transforms import ImageTransform, Placement, to_pixel_values

__all__ = [
    "BAD_SAMPLE_SHARE",
    "BadSample",
    "BadSampleLimit",
    "Batch",
    "BatchOrder",
    "DataReport",
    "ImageTransform",
    "LatentLoader",
    "LatentStore",
    "LoadReport",
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
    "in_batches",
    "encode_latents",
    "open_source",
    "sample_rng",
    "to_pixel_values",
    "validate_objects",
    "write_buckets",
]
