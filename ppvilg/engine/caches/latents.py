"""Latents of a data set, encoded once by the run's autoencoder; `ppvilg.data` keeps the files."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from ppvilg.data import ImageTransform, LatentStore, RecordSource, encode_latents, to_pixel_values
from ppvilg.engine.parallel import distributed
from ppvilg.files import digest_of

_LARGEST = float(np.finfo(np.float16).max)  # of what the files hold


def latents_of(vae, vae_hash: str, source: RecordSource, transform: ImageTransform, root: Path, name: str,
               bad_sample_share: float, count: int | None = None, workers: int = 0) -> LatentStore:
    """Scaled posterior means of a source's pictures (its first `count`), made by all ranks or found in `root`.

    Raises:
        TooManyBadSamples: as `encode_latents`; what was encoded is kept.
        FloatingPointError: the autoencoder's latents are no numbers that the files can hold.
    """
    count = min(len(source), count or len(source))
    digest = digest_of([vae_hash, source.fingerprint(), count, transform.shapes, transform.min_visible])

    def encode(pixels: np.ndarray) -> np.ndarray:
        return encode_pictures(vae, pixels)

    return encode_latents(encode, source, transform, root / f"{name}_{digest[:16]}", name, count=count,
                          bad_sample_share=bad_sample_share, rank=distributed.rank(),
                          world_size=distributed.world_size(), barrier=distributed.barrier, workers=workers)


@paddle.no_grad()
def encode_pictures(vae, pixels: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, H, W, 3) -> scaled posterior means (N, C, h, w) float32."""
    values = paddle.to_tensor(to_pixel_values(pixels))  # (N, 3, H, W)
    latents = (vae.encode(values).latent_dist.mode() * vae.config.scaling_factor).astype("float32").numpy()
    if not (np.abs(latents) <= _LARGEST).all():  # also where they are no numbers
        raise FloatingPointError(f"the autoencoder gives latents up to {np.abs(latents).max()}, which float16 cannot "
                                 "hold: its weights are damaged, or its scaling_factor is wrong")
    return latents
