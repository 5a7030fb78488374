"""Stages "base" and "experts": the denoiser learns, fed with textual and visual knowledge (paper section 2)."""
from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import Recipe
from ppvilg.data import BatchOrder, Record, SampleLoader, sample_rng
from ppvilg.diffusion import DenoisingLoss, TimestepSampler
from ppvilg.engine import builder
from ppvilg.engine.checks.rehearsal import check_fit
from ppvilg.engine.monitor import log_bad_sample
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.samples import draw_prompts, save_pipeline
from ppvilg.knowledge import TextKnowledge, VisualKnowledge
from ppvilg.models import expert_index, uniform_boundaries

logger = logging.getLogger(__name__)
_TIMESTEP_STREAM, _NOISE_STREAM = 11, 12


@dataclass
class DenoiserBatch:
    """A rank's share: sample indices (N,), latents and noise (N, C, h, w), timesteps (N,), what the texts became."""

    indices: np.ndarray
    latents: np.ndarray
    noise: np.ndarray
    timesteps: np.ndarray
    input_ids: np.ndarray
    key_token_weights: np.ndarray | None
    loss_weights: np.ndarray | None


@dataclass
class Conditioning:
    """Records -> token ids, key-token weights and loss weights, by the recipe's knowledge."""

    recipe: Recipe
    tokenizer: object
    text: TextKnowledge
    vision: VisualKnowledge

    def training(self, records: list[Record], rngs: list[np.random.Generator], size, latent_size, dropout: float):
        """(input_ids, key_token_weights, loss_weights) of training samples; each draws from its own generator."""
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
        weighted = self.vision.object_weight > 0
        return encoded.input_ids, self._weights(encoded), np.stack(maps) if weighted else None

    def inference(self, records: list[Record]):
        """(input_ids, key_token_weights) as the pipeline makes them."""
        encoded = self.text.encode([self._caption(record) for record in records], True)
        return encoded.input_ids, self._weights(encoded)

    def _caption(self, record: Record) -> str:
        return record.captions.get(self.recipe.data.caption) or next(iter(record.captions.values()))

    def _weights(self, encoded) -> np.ndarray | None:
        return encoded.key_token_weights if self.text.key_token_weight > 0 else None


class DenoiserStage:
    """One shared denoiser ("base"), or the experts that it is split into ("experts").

    `base` is the pipeline folder that experts start from. `experts` are those of this rank's group, all if None; the
    others are absent, and their steps are not taken. The stage's name for files is that of its `folder`.
    """

    def __init__(self, run, name: str, folder: Path, base: Path | None, experts: list[int] | None = None):
        self.kind, self.number, self.run, self.folder = name, {"base": 1, "experts": 2}[name], run, folder
        self.name = folder.name if name == "experts" else name
        self.recipe, self.config, self.conditioning = run.recipe, run.recipe.train[name], run.conditioning
        self.scheduler = builder.build_scheduler(self.recipe)
        timesteps = self.scheduler.config.num_train_timesteps
        model = self.recipe.model
        self.boundaries = list(model.boundaries or uniform_boundaries(model.num_experts, timesteps))
        everyone = list(range(len(self.boundaries) - 1))
        self.experts = everyone if experts is None else list(experts)
        self._build_networks(base)
        self.sampler = TimestepSampler(timesteps, self.boundaries, self.config.weighting_scheme,
                                       self.config.logit_mean, self.config.logit_std)
        self.loss = DenoisingLoss(self.scheduler, self.config.min_snr_gamma)
        self.plain_loss = DenoisingLoss(self.scheduler)
        self.groups = [f"expert_{k:02d}" for k in range(len(self.boundaries) - 1)]

    def _build_networks(self, base: Path | None) -> None:
        if base is None:
            self.unet = builder.build_base_unet(self.recipe)
            self.text_encoder = builder.build_text_encoder(self.recipe, self.conditioning.tokenizer)
        else:
            self.unet = builder.build_experts(base / "unet", self.boundaries, self.experts)
            self.text_encoder = type(builder.build_text_encoder(self.recipe, self.conditioning.tokenizer)
                                     ).from_pretrained(str(base / "text_encoder"))
        if self.recipe.recompute:
            self.unet.enable_gradient_checkpointing()
        self.networks = {"unet": self.unet}
        if self.config.train_text_encoder:
            self.networks["text_encoder"] = self.text_encoder
        check_fit(self.recipe, self.run.vae, self.text_encoder, self.unet.config.unet)
        self._set_training(True)

    def _set_training(self, training: bool) -> None:
        """Dropout on or off in what is trained; a frozen text encoder never drops."""
        self.text_encoder.eval()
        for network in self.networks.values():
            network.train() if training else network.eval()

    def takes(self, step: int) -> bool:
        """Whether this rank's group trains at a step: base always, the experts take turns."""
        return self.kind == "base" or step % len(self.groups) in self.experts

    def batches(self, first_step: int) -> Iterator[DenoiserBatch]:
        """Batches of the steps it takes; samples, noise and timesteps do not depend on the number of ranks."""
        picked = self._cached_samples if self.run.training_latents is not None else self._encoded_samples
        for step, latents, records, indices, size in picked(first_step):
            rngs = [sample_rng(self.recipe.seed, step, int(index)) for index in indices]
            conditioning = self.conditioning.training(records, rngs, size, latents.shape[2:],
                                                      self.config.caption_dropout)
            noise, timesteps = self._noise(step, latents.shape), self._timesteps(step)
            yield DenoiserBatch(indices, latents, noise, timesteps, *conditioning)

    def _cached_samples(self, first_step: int):
        cache, step = self.run.training_latents, first_step
        order = BatchOrder(cache.members, self.config.batch_size, self._order_seed())
        while True:
            if not self.takes(step):
                step += 1
                continue
            mine = distributed.rank_slice(self.config.batch_size)
            bucket, indices = order.part(step, mine.start, mine.stop)
            records = [cache.records[i] for i in indices]
            yield step, cache.latents(bucket, indices), records, indices, cache.shapes[bucket]
            step += 1

    def _encoded_samples(self, first_step: int):
        source, transform, data = self.run.training, self.run.transform, self.recipe.data
        order = BatchOrder(source.buckets(transform), self.config.batch_size, self._order_seed())
        bad_sample_list = self.folder.parent / f"bad_samples_{self.name}_{distributed.rank()}.jsonl"
        account = self.folder.parent / f"data_report_{self.name}_{distributed.rank()}.jsonl"
        loader = SampleLoader(source, transform, order, self.recipe.seed, distributed.share(), distributed.shares(),
                              workers=data.workers, bad_sample_share=data.bad_sample_share,
                              on_bad_sample=log_bad_sample,
                              bad_sample_list=bad_sample_list, account=account)
        for step, batch in loader.iterate_from(first_step, self.takes):
            with paddle.no_grad():
                posterior = self.run.vae.encode(paddle.to_tensor(batch.pixel_values)).latent_dist
            mean, deviation = posterior.mean.numpy(), posterior.std.numpy()  # (N, C, h, w)
            drawn = np.stack([sample_rng(self.recipe.seed + 1, step, int(i)).standard_normal(mean.shape[1:])
                              for i in batch.indices]).astype(np.float32)
            latents = (mean + deviation * drawn) * self.run.vae.config.scaling_factor
            yield step, latents, batch.records, batch.indices, transform.shapes[batch.bucket]

    def _order_seed(self) -> int:
        return self.recipe.seed + 1000 * self.number

    def _stream(self, step: int, stream: int) -> np.random.Generator:
        seeds = np.random.SeedSequence([self.recipe.seed, self.number, step, stream])
        return np.random.Generator(np.random.PCG64(seeds))

    def _timesteps(self, step: int) -> np.ndarray:
        """This rank's share of the step's timesteps. The experts take turns, so a step runs one expert in one piece."""
        expert = step % len(self.groups) if self.kind == "experts" else None
        drawn = self.sampler.sample(self.config.batch_size, self._stream(step, _TIMESTEP_STREAM), expert)
        return drawn[distributed.rank_slice(self.config.batch_size)]

    def _noise(self, step: int, shape) -> np.ndarray:
        whole = self._stream(step, _NOISE_STREAM).standard_normal((self.config.batch_size, *shape[1:]), np.float32)
        return whole[distributed.rank_slice(self.config.batch_size)]

    def losses(self, batch: DenoiserBatch, step: int, part: slice):
        timesteps = batch.timesteps[part]
        ids = paddle.to_tensor(batch.input_ids[part])  # (N, L)
        if self.config.train_text_encoder:
            hidden = self.text_encoder(ids)[0]  # (N, L, D)
        else:
            with paddle.no_grad():
                hidden = self.text_encoder(ids)[0]  # (N, L, D)
        terms = self.loss(self.unet, paddle.to_tensor(batch.latents[part]), paddle.to_tensor(batch.noise[part]),
                          paddle.to_tensor(timesteps), loss_weights=_tensor(batch.loss_weights, part),
                          encoder_hidden_states=hidden, key_token_weights=_tensor(batch.key_token_weights, part))
        return terms, expert_index(timesteps, self.boundaries)

    def undecayed(self) -> set:
        """Biases, norms and embeddings."""
        decayed = self.unet.decayed_parameter_names()
        names = {f"unet.{name}" for name, p in self.unet.named_parameters() if p.name not in decayed}
        return names | {f"text_encoder.{name}" for name, p in self.text_encoder.named_parameters()
                        if p.ndim < 2 or "embedding" in name}

    @paddle.no_grad()
    def validate(self) -> dict[str, float]:
        """Unweighted loss at fixed timesteps and noise per block of the routing table, also of a single denoiser."""
        cache = self.run.validation_latents
        count = min(len(cache), self.recipe.data.max_validation_samples)
        sums = np.zeros((2, len(self.groups)))
        self._set_training(False)
        for bucket in np.unique(cache.buckets[:count]):
            members = np.flatnonzero(cache.buckets[:count] == bucket)[distributed.share()::distributed.shares()]
            for start in range(0, len(members), 32):
                self._validate_batch(cache, int(bucket), members[start:start + 32], sums)
        self._set_training(True)
        sums, counts = np.split(distributed.mean_over_ranks(sums.reshape(-1)), 2)
        scalars = {f"loss/{group}": float(total / number)
                   for group, total, number in zip(self.groups, sums, counts) if number}
        return {"loss": float(np.mean(list(scalars.values()))), **scalars}

    def _validate_batch(self, cache, bucket: int, indices: np.ndarray, sums: np.ndarray) -> None:
        latents = cache.latents(bucket, indices)
        ids, weights = self.conditioning.inference([cache.records[i] for i in indices])
        hidden = self.text_encoder(paddle.to_tensor(ids))[0]  # (N, L, D)
        for expert in range(len(self.groups)) if self.kind == "base" else self.experts:
            fixed = self.sampler.fixed(self.config.validation_timesteps, expert)
            timesteps = fixed[indices % len(fixed)]  # every sample at one fixed timestep of the block
            noise = np.stack([sample_rng(0, expert, int(i)).standard_normal(latents.shape[1:]) for i in indices])
            terms = self.plain_loss(self.unet, paddle.to_tensor(latents), paddle.to_tensor(noise.astype(np.float32)),
                                    paddle.to_tensor(timesteps), encoder_hidden_states=hidden,
                                    key_token_weights=_tensor(weights, slice(None)))
            sums[:, expert] += [float(terms["plain"].sum()), len(indices)]

    def components(self) -> dict:
        """What a pipeline is made of, with the knowledge settings that its prompts need."""
        return {"vae": self.run.vae, "text_encoder": self.text_encoder, "tokenizer": self.conditioning.tokenizer,
                "unet": self.unet, "scheduler": self.scheduler, "mark": self.conditioning.text.mark,
                "key_token_weight": self.conditioning.text.key_token_weight,
                "max_length": self.conditioning.text.max_length,
                "default_num_inference_steps": self.recipe.sample.num_inference_steps,
                "default_guidance_scale": self.recipe.sample.guidance_scale,
                "default_eta": self.recipe.sample.eta}

    def draw(self, step: int):
        """Pictures of the recipe's fixed prompts."""
        if not self.recipe.sample.prompts:
            return None
        if len(self.unet.loaded_experts) < self.unet.num_experts:
            logger.info("no pictures are drawn: a picture needs all experts, and this rank has %s", self.experts)
            return None
        self._set_training(False)
        try:
            return draw_prompts(self.components(), self.recipe.sample)
        finally:
            self._set_training(True)

    def export(self, folder: Path) -> None:
        """Save the pipeline with the experts that are here."""
        with builder.saving_present_experts(self.unet):
            save_pipeline(self.components(), folder)

    def export_part(self, folder: Path) -> None:
        """Add the experts of this rank's group to a pipeline folder that the main rank has begun."""
        for expert in self.experts:
            self.unet.save_expert(folder / "unet", expert)


def _tensor(array: np.ndarray | None, part: slice):
    return None if array is None else paddle.to_tensor(array[part])

