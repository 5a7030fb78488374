"""Data: records from shards or folders, transforms that carry boxes, and the batch order. NumPy and Pillow only."""

from .loader import Batch, LoadReport, SampleLoader, sample_rng
from .order import BatchOrder, RangeBuckets
from .records import BadSample, ObjectBox, Record, decode_image, validate_objects
from .report import BadSampleLimit, DataReport, Tally, TooManyBadSamples
from .source import RecordSource, open_source
from .transforms import ImageTransform, Placement

__all__ = [
    "BadSample",
    "BadSampleLimit",
    "Batch",
    "BatchOrder",
    "DataReport",
    "ImageTransform",
    "LoadReport",
    "ObjectBox",
    "Placement",
    "RangeBuckets",
    "Record",
    "RecordSource",
    "SampleLoader",
    "Tally",
    "TooManyBadSamples",
    "decode_image",
    "open_source",
    "sample_rng",
    "validate_objects",
]
