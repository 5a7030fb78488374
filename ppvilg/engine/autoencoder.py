"""Stage "vae": the autoencoder learns to reproduce pictures from small latents (paper section 3.1)."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, Iterator

import numpy as np
import paddle

from ppvilg.config import Recipe
from ppvilg.data import Batch, BatchOrder, ImageTransform, RecordSource, SampleLoader
from ppvilg.engine import distributed


class AutoencoderStage:
    """Absolute plus squared error of the reconstruction, and a light pull of the posterior to N(0, I)."""

    name, number, groups = "vae", 0, ["all"]

    def __init__(self, recipe: Recipe, vae, training: RecordSource, validation: RecordSource,
                 transform: ImageTransform, folder: Path):
        self.recipe, self.config, self.vae = recipe, recipe.train.vae, vae
        self.networks = {"vae": vae}
        self.training, self.validation, self.transform, self.folder = training, validation, transform, folder

    def batches(self, first_step: int) -> Iterator[Batch]:
        order = BatchOrder(self.transform.buckets_of(self.training.sizes), self.config.batch_size, self.recipe.seed)
        loader = SampleLoader(self.training, self.transform, order, self.recipe.seed, distributed.rank(),
                              distributed.world_size(), self.recipe.data.bad_sample_limit, self.recipe.data.workers,
                              bad_sample_list=str(self.folder.parent / f"bad_samples_vae_{distributed.rank()}.jsonl"))
        for _, batch in loader.iterate_from(first_step):
            yield batch

    def losses(self, batch: Batch, step: int, part: slice):
        pixels = paddle.to_tensor(batch.pixel_values[part])  # (N, 3, H, W)
        posterior = self.vae.encode(pixels).latent_dist
        error = self.vae.decode(posterior.sample()).sample - pixels  # (N, 3, H, W)
        terms = {
            "absolute": error.abs().mean(axis=[1, 2, 3]),  # (N,)
            "squared": error.square().mean(axis=[1, 2, 3]),  # (N,)
            "kl": self.config.kl_weight * posterior.kl(),  # (N,)
        }
        return terms, np.zeros(len(pixels), np.int64)

    def undecayed(self) -> set:
        return {f"vae.{name}" for name, p in self.vae.named_parameters() if p.ndim < 2}

    @paddle.no_grad()
    def validate(self) -> Dict[str, float]:
        """Peak signal-to-noise ratio in dB, mean over validation pictures."""
        count = min(len(self.validation), self.recipe.data.max_validation_samples)
        sums = np.zeros(3)
        for index in range(distributed.rank(), count, distributed.world_size()):
            record = self.validation.read(index)
            bucket = self.transform.bucket_of(*record.image.size)
            pixels, _ = self.transform(record.image, record.objects, bucket, np.random.default_rng(0))
            values = paddle.to_tensor(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0)  # (1, 3, H, W)
            decoded = self.vae.decode(self.vae.encode(values).latent_dist.mode()).sample.clip(-1.0, 1.0)
            squared = float((decoded - values).square().mean())
            sums += [squared, 10.0 * math.log10(4.0 / max(squared, 1e-10)), 1.0]
        squared, decibel, number = distributed.mean_over_ranks(sums)
        return {"loss": squared / number, "psnr_db": decibel / number}

    def draw(self, step: int):
        """Validation pictures above their reconstructions."""
        rows = [[], []]
        for index in range(min(64, len(self.validation))):
            record = self.validation.read(index)
            if self.transform.bucket_of(*record.image.size) == 0 and len(rows[0]) < 12:
                pixels, _ = self.transform(record.image, record.objects, 0, np.random.default_rng(0))
                values = paddle.to_tensor(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0)
                with paddle.no_grad():
                    decoded = self.vae.decode(self.vae.encode(values).latent_dist.mode()).sample
                rows[0].append(pixels)
                rows[1].append(((decoded[0].numpy().transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8))
        return np.concatenate([np.concatenate(row, axis=1) for row in rows]) if rows[0] else None

    def export(self) -> None:
        """Save the autoencoder with the scaling factor that gives its latents unit variance."""
        if distributed.is_main():
            self.vae.register_to_config(scaling_factor=1.0 / self._latent_deviation())
            self.vae.save_pretrained(str(self.folder), safe_serialization=True)
        distributed.barrier()

    @paddle.no_grad()
    def _latent_deviation(self, count: int = 512) -> float:
        order = BatchOrder(self.transform.buckets_of(self.training.sizes), 32, self.recipe.seed)
        loader = SampleLoader(self.training, self.transform, order, self.recipe.seed)
        total, squares, number = 0.0, 0.0, 0
        for step, batch in loader.iterate_from(0):
            latents = self.vae.encode(paddle.to_tensor(batch.pixel_values)).latent_dist.mode().numpy().astype(np.float64)
            total, squares, number = total + latents.sum(), squares + (latents**2).sum(), number + latents.size
            if (step + 1) * 32 >= count:
                return math.sqrt(squares / number - (total / number) ** 2)
