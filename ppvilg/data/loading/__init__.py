"""Batches, read ahead in worker processes and handed over in shared memory."""

from .batches import Batch, LatentReader, PictureReader, sample_rng
from .encoding import encode_latents
from .loader import LatentLoader, LoadReport, SampleLoader
from .pool import WorkerPool

__all__ = ["Batch", "LatentLoader", "LatentReader", "LoadReport", "PictureReader", "SampleLoader", "WorkerPool",
           "encode_latents", "sample_rng"]  # fmt: skip
