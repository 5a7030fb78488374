"""What a denoiser is fed with besides latents: token ids, key-token weights, loss weights, timesteps and noise.

All of it is made where records are read, in worker processes too, and depends on seed, step, slot and sample alone.
"""
from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppvilg.config import Recipe
from ppvilg.data import Record, sample_rng
from ppvilg.diffusion import TimestepSampler
from ppvilg.engine import builder
from ppvilg.engine.caches.tags import TagCache
from ppvilg.knowledge import TextKnowledge, VisualKnowledge

TIMESTEP_STREAM, NOISE_STREAM, POSTERIOR_STREAM, OFFSET_STREAM = 11, 12, 13, 15


def normal_noise(seed: int, stage: int, stream: int, step: int, indices: np.ndarray, shape: tuple[int, ...]
                 ) -> np.ndarray:
    """Standard normal noise (N, *shape) float32: a block of Philox's counter (Salmon et al. 2011) per step and sample.

    Nobody draws what belongs to another rank, and the numbers do not depend on how a batch is cut.
    """
    key = np.random.SeedSequence([seed, stage, stream]).generate_state(2, np.uint64)
    noise = np.empty((len(indices), *shape), np.float32)
    for row, index in zip(noise, indices):
        counter = np.array([0, 0, index, step], np.uint64)
        np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(dtype=np.float32, out=row)
    return noise


@dataclass
class Conditioning:
    """Records -> token ids, key-token weights and loss weights, by the recipe's knowledge."""

    recipe: Recipe
    tokenizer: object
    text: TextKnowledge
    vision: VisualKnowledge
    tags: TagCache | None = None  # words of captions, where they were found beforehand

    @classmethod
    def of(cls, recipe: Recipe, tokenizer, tags: TagCache | None = None) -> Conditioning:
        """By the recipe."""
        text = builder.build_text_knowledge(recipe, tokenizer)
        if tags is not None:
            text.tagger = tags.tag
        return cls(recipe, tokenizer, text, builder.build_visual_knowledge(recipe), tags)

    def __reduce__(self):
        """For worker processes: tokenizers cannot be pickled, but their files can."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return _unpack, (self.recipe, files, None if self.tags is None else self.tags.path)

    def training(self, records: list[Record], rngs: list[np.random.Generator], size, latent_size, dropout: float
                 ) -> dict[str, np.ndarray | None]:
        """input_ids, key_token_weights and loss_weights of samples; each draws from its own generator."""
        part = self.recipe.knowledge.text
        texts, applied, maps = [], [], []
        for record, rng in zip(records, rngs):
            # one draw each, in a fixed order: a switch that is off must not shift the numbers of the others
            drop, apply = rng.random() < dropout, bool(rng.random() < part.probability) and part.enabled
            caption, _ = self.vision.choose_caption(record.captions, record.objects, rng, marks=apply)
            maps.append(self.vision.weight_map(record.objects, caption, size, latent_size))
            texts.append("" if drop else caption)
            applied.append(apply)
        encoded = self.text.encode(texts, applied, [record.tags for record in records])
        return {"input_ids": encoded.input_ids, "key_token_weights": self._weights(encoded),
                "loss_weights": np.stack(maps) if self.vision.object_weight > 0 else None}

    def inference(self, records: list[Record]):
        """(input_ids, key_token_weights) as the pipeline makes them."""
        encoded = self.text.encode([self._caption(record) for record in records], True)
        return encoded.input_ids, self._weights(encoded)

    def _caption(self, record: Record) -> str:
        return record.captions.get(self.recipe.data.caption) or next(iter(record.captions.values()))

    def _weights(self, encoded) -> np.ndarray | None:
        return encoded.key_token_weights if self.text.key_token_weight > 0 else None


def _unpack(recipe: Recipe, files: dict[str, bytes], tags: Path | None) -> Conditioning:
    """What `Conditioning.__reduce__` packed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = builder.load_tokenizer(folder)
    return Conditioning.of(recipe, tokenizer, None if tags is None else TagCache(tags))


@dataclass
class Feeding:
    """The `finish` of a loader for one stage: records of a pass -> arrays (N, ...) by name.

    `channels` and `factor` are those of latents; `posterior` says that they are still to be drawn. `noise_offset` is
    the deviation of noise that is one number per sample and channel, so that brightness as a whole is learnt too.
    """

    conditioning: Conditioning
    seed: int
    stage: int
    dropout: float
    channels: int
    factor: int
    posterior: bool
    noise_offset: float = 0.0

    def __call__(self, step: int, indices: np.ndarray, records: list[Record], size: tuple[int, int]
                 ) -> dict[str, np.ndarray | None]:
        """input_ids (N, L), key_token_weights (N, L), loss_weights (N, 1, h, w), noise and posterior (N, C, h, w)."""
        latent_size = (size[1] // self.factor, size[0] // self.factor)
        rngs = [sample_rng(self.seed, step, int(index)) for index in indices]
        made = self.conditioning.training(records, rngs, size, latent_size, self.dropout)
        shape = (self.channels, *latent_size)
        made["noise"] = normal_noise(self.seed, self.stage, NOISE_STREAM, step, indices, shape)
        if self.noise_offset:
            whole = normal_noise(self.seed, self.stage, OFFSET_STREAM, step, indices, (self.channels, 1, 1))
            made["noise"] += np.float32(self.noise_offset) * whole
        if self.posterior:
            made["posterior"] = normal_noise(self.seed, self.stage, POSTERIOR_STREAM, step, indices, shape)
        return made


def step_timesteps(sampler: TimestepSampler, seed: int, stage: int, step: int, count: int, expert: int | None
                   ) -> np.ndarray:
    """Timesteps (count,) int64 of the global batch of a step: one draw, which every rank cuts for itself."""
    seeds = np.random.SeedSequence([seed, stage, step, TIMESTEP_STREAM])
    return sampler.sample(count, np.random.Generator(np.random.PCG64(seeds)), expert)
