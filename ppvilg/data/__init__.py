"""Data: records from shards or folders, transforms that carry boxes, and the batch order. NumPy and Pillow only."""

from .loader import Batch, BatchOrder, LoadReport, SampleLoader, sample_rng
from .records import BadSample, ObjectBox, Record, RecordSource, decode_image, open_source, validate_objects
from .transforms import ImageTransform, Placement

__all__ = [
    "BadSample",
    "Batch",
    "BatchOrder",
    "ImageTransform",
    "LoadReport",
    "ObjectBox",
    "Placement",
    "Record",
    "RecordSource",
    "SampleLoader",
    "decode_image",
    "open_source",
    "sample_rng",
    "validate_objects",
]
