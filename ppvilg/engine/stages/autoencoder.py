"""Stage "vae": the autoencoder learns to reproduce pictures from small latents (paper section 2.1)."""
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import Recipe
from ppvilg.data import BadSample, Batch, BatchOrder, ImageTransform, RecordSource, SampleLoader, to_pixel_values
from ppvilg.engine.monitor import log_bad_sample
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.stage import Stage


class AutoencoderStage(Stage):
    """Absolute plus squared error of the reconstruction, and a light pull of the posterior to N(0, I)."""

    name, number, groups = "vae", 0, ["all"]

    def __init__(self, recipe: Recipe, vae, training: RecordSource, validation: RecordSource,
                 transform: ImageTransform, validation_transform: ImageTransform, folder: Path):
        self.recipe, self.config, self.vae = recipe, recipe.train.vae, vae
        self.networks = {"vae": vae}
        self.training, self.validation, self.folder = training, validation, folder
        self.transform, self.validation_transform = transform, validation_transform
        self.unreadable: set[int] = set()  # validation pictures that were found bad
        if vae.config.get("linear_shortcut") and not recipe.model.vae.pretrained:
            vae.initialize_shortcut(self._first_pictures(1024))

    def batches(self, first_step: int) -> Iterator[Batch]:
        order = self._order(self.config.batch_size)
        loader = SampleLoader(self.training, self.transform, order, self.recipe.seed, distributed.rank(),
                              distributed.world_size(), workers=self.recipe.data.workers,
                              passes=self.config.accumulation,
                              bad_sample_share=self.recipe.data.bad_sample_share, on_bad_sample=log_bad_sample,
                              bad_sample_list=self.folder.parent / f"bad_samples_vae_{distributed.rank()}.jsonl",
                              account=self.folder.parent / f"data_report_vae_{distributed.rank()}.jsonl")
        for _, batch in loader.iterate_from(first_step):
            yield batch

    def _order(self, batch_size: int) -> BatchOrder:
        buckets = self.training.mixed(self.training.buckets(self.transform))
        return BatchOrder(buckets, batch_size, self.recipe.seed)

    def _first_pictures(self, count: int) -> np.ndarray:
        """At least `count` training pictures of one shape, float32 (N, 3, H, W): the same ones whenever asked."""
        order, buckets = self._order(32), self.training.buckets(self.transform)
        commonest = buckets.numbers[int(np.argmax(buckets.counts))]
        loader = SampleLoader(self.training, self.transform, order, self.recipe.seed,
                              bad_sample_share=self.recipe.data.bad_sample_share)
        pictures = []
        for _, batch in loader.iterate_from(0):
            if batch.bucket == commonest:
                pictures.append(batch.pixel_values)
            if len(pictures) * 32 >= count:
                return np.concatenate(pictures)

    def losses(self, batch: Batch, step: int):
        pixels = paddle.to_tensor(batch.pixel_values)  # (N, 3, H, W)
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
    def validate(self) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB, mean over validation pictures."""
        count = min(len(self.validation), self.recipe.data.max_validation_samples)
        sums = np.zeros(3)
        for _, pixels in self._validation_pictures(range(distributed.rank(), count, distributed.world_size())):
            values = paddle.to_tensor(to_pixel_values(pixels[None]))  # (1, 3, H, W)
            squared = float((self._reconstruct(values).clip(-1.0, 1.0) - values).square().mean())
            sums += [squared, 10.0 * math.log10(4.0 / max(squared, 1e-10)), 1.0]
        squared, decibel, number = distributed.mean_over_ranks(sums)
        if not number:
            raise RuntimeError("data.validation: none of its pictures can be read; the log names them")
        return {"loss": squared / number, "psnr_db": decibel / number}

    def _validation_pictures(self, indices) -> Iterator[tuple[int, np.ndarray]]:
        """(bucket, uint8 picture (H, W, 3)) of those that can be read; the others are named once."""
        for index in indices:
            try:
                record = self.validation.read(index)
                bucket, rng = self.transform.bucket_of(*record.image.size), np.random.default_rng(0)
                yield bucket, self.validation_transform(record.image, record.objects, bucket, rng)[0]
            except BadSample as problem:
                if index not in self.unreadable:
                    self.unreadable.add(index)
                    log_bad_sample(problem)

    def _reconstruct(self, values: paddle.Tensor) -> paddle.Tensor:
        return self.vae.decode(self.vae.encode(values).latent_dist.mode()).sample  # (N, 3, H, W)

    @paddle.no_grad()
    def sample(self, step: int):
        """Validation pictures above their reconstructions."""
        if not distributed.is_main():
            return None
        rows = [[], []]
        for bucket, pixels in self._validation_pictures(range(min(64, len(self.validation)))):
            if bucket == 0 and len(rows[0]) < 12:
                decoded = self._reconstruct(paddle.to_tensor(to_pixel_values(pixels[None])))
                rows[0].append(pixels)
                rows[1].append(((decoded[0].numpy().transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8))
        return np.concatenate([np.concatenate(row, axis=1) for row in rows]) if rows[0] else None

    def export(self, folder: Path) -> None:
        """Save the autoencoder with the scaling factor that gives its latents unit variance."""
        self.vae.register_to_config(scaling_factor=1.0 / self._latent_deviation())
        self.vae.save_pretrained(str(folder), safe_serialization=True)

    @paddle.no_grad()
    def _latent_deviation(self, count: int = 512) -> float:
        order = self._order(32)
        loader = SampleLoader(self.training, self.transform, order, self.recipe.seed,
                              bad_sample_share=self.recipe.data.bad_sample_share)
        total, squares, number = 0.0, 0.0, 0
        for step, batch in loader.iterate_from(0):
            posterior = self.vae.encode(paddle.to_tensor(batch.pixel_values)).latent_dist
            latents = posterior.mode().numpy().astype(np.float64)  # (N, C, h, w)
            total, squares, number = total + latents.sum(), squares + (latents**2).sum(), number + latents.size
            if (step + 1) * 32 >= count:
                return math.sqrt(squares / number - (total / number) ** 2)
