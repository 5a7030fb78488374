"""Stages "base" and "experts": the denoiser learns, fed with textual and visual knowledge (paper section 2)."""
from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import Recipe
from ppvilg.data import Batch, BatchOrder, ImageTransform, LatentLoader, LatentStore, RecordSource, SampleLoader
from ppvilg.diffusion import DenoisingLoss, TimestepSampler
from ppvilg.engine import builder
from ppvilg.engine.checks.rehearsal import check_fit, factor_of
from ppvilg.engine.monitor import log_bad_sample
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.conditioning import Conditioning, Feeding, normal_noise, step_timesteps
from ppvilg.engine.stages.samples import draw_prompts, save_pipeline, whole_mixture
from ppvilg.engine.stages.stage import Stage
from ppvilg.models import expert_index, uniform_boundaries

logger = logging.getLogger(__name__)
_VALIDATION_STREAM = 14
_NUMBERS = {"base": 1, "experts": 2, "lora": 3}  # of the stages' random streams


@dataclass
class DenoiserData:
    """What both stages learn from. `training_latents` is None where pictures are encoded on the way."""

    vae: object
    conditioning: Conditioning
    training: RecordSource
    transform: ImageTransform
    training_latents: LatentStore | None
    validation_latents: LatentStore


@dataclass
class DenoiserBatch:
    """One pass of a rank's share: what the loader made of it, and the timesteps (N,) int64 of its slots."""

    loaded: Batch
    timesteps: np.ndarray

    @property
    def indices(self) -> np.ndarray:
        """Which samples (N,)."""
        return self.loaded.indices

    def tensor(self, name: str) -> paddle.Tensor | None:
        """One of the arrays that `Feeding` made; None where the recipe has no use for it."""
        array = self.loaded.finished.get(name)
        return None if array is None else paddle.to_tensor(array)


class DenoiserStage(Stage):
    """One shared denoiser ("base"), or the experts that it is split into ("experts").

    `base` is the pipeline folder that experts start from. `experts` are those of this rank's group, all if None; the
    others are absent, and their steps are not taken. The stage's name for files is that of its `folder`.
    """

    def __init__(self, recipe: Recipe, data: DenoiserData, name: str, folder: Path, base: Path | None = None,
                 experts: list[int] | None = None):
        self.kind, self.number, self.folder = self.kind_of(recipe, name), _NUMBERS[name], folder
        self.name = folder.name if name == "experts" else name
        self.recipe, self.config, self.data, self.conditioning = recipe, recipe.train[name], data, data.conditioning
        self.scheduler = builder.build_scheduler(self.recipe)
        timesteps = self.scheduler.config.num_train_timesteps
        model = self.recipe.model
        self.boundaries = list(model.boundaries or uniform_boundaries(model.num_experts, timesteps))
        everyone = list(range(len(self.boundaries) - 1))
        self.experts = everyone if experts is None else list(experts)
        self.turns, self.base = len(everyone) if self.kind == "experts" else 1, base
        self._build_networks(base)
        self.sampler = TimestepSampler(timesteps, self.boundaries, self.config.weighting_scheme,
                                       self.config.logit_mean, self.config.logit_std)
        self.loss = DenoisingLoss(self.scheduler, self.config.min_snr_gamma)
        self.plain_loss = DenoisingLoss(self.scheduler)
        self.groups = [f"expert_{k:02d}" for k in range(len(self.boundaries) - 1)]

    @staticmethod
    def kind_of(recipe: Recipe, name: str) -> str:
        """"base": every step trains on all timesteps; "experts": these take turns."""
        return name

    @property
    def trains_text_encoder(self) -> bool:
        """Whether gradients reach the text encoder."""
        return self.config.train_text_encoder

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
        if self.trains_text_encoder:
            self.networks["text_encoder"] = self.text_encoder
        check_fit(self.recipe, self.data.vae, self.text_encoder, self.unet.config.unet)
        self._set_training(True)

    def _set_training(self, training: bool) -> None:
        """Dropout on or off in what is trained; a frozen text encoder never drops."""
        self.text_encoder.eval()
        for network in self.networks.values():
            network.train() if training else network.eval()

    def is_active_step(self, step: int) -> bool:
        """Base: always; the experts take turns."""
        return self.kind == "base" or step % self.turns in self.experts

    def turn_of(self, parameter: str) -> int | None:
        """The number of the expert that a parameter belongs to."""
        owner = re.match(r"unet\.experts\.(\d+)\.", parameter)
        return int(owner[1]) if owner and self.kind == "experts" else None

    def batches(self, first_step: int) -> Iterator[DenoiserBatch]:
        """The passes of the steps it takes; samples, noise and timesteps do not depend on ranks or passes."""
        share = distributed.rank_slice(self.config.batch_size)
        size = (share.stop - share.start) // self.config.accumulation
        for step, loaded in self._loader().iterate_from(first_step, self.is_active_step):
            expert = step % len(self.groups) if self.kind == "experts" else None  # a step runs one expert in one piece
            drawn = step_timesteps(self.sampler, self.recipe.seed, self.number, step, self.config.batch_size, expert)
            start = share.start + loaded.number * size
            yield DenoiserBatch(loaded, drawn[start:start + size])

    def _loader(self) -> LatentLoader | SampleLoader:
        """Batches in passes, with everything that the step needs but timesteps."""
        data, settings, store = self.data, self.recipe.data, self.data.training_latents
        finish = Feeding(self.conditioning, self.recipe.seed, self.number, self.config.caption_dropout,
                         data.vae.config.latent_channels, factor_of(data.vae), store is None, self.config.noise_offset)
        common = {"rank": distributed.share(), "world_size": distributed.shares(), "workers": settings.workers,
                  "passes": self.config.accumulation, "finish": finish}
        buckets = data.training.buckets(data.transform) if store is None else store.members
        buckets = data.training.mixed(buckets, None if store is None else store.kept)
        order = BatchOrder(buckets, self.config.batch_size, self.recipe.seed + 1000 * self.number)
        if store is not None:
            return LatentLoader(store, order, **common)
        files = [self.folder.parent / f"{kind}_{self.name}_{distributed.rank()}.jsonl"
                 for kind in ("bad_samples", "data_report")]
        return SampleLoader(data.training, data.transform, order, self.recipe.seed, **common, account=files[1],
                            bad_sample_share=settings.bad_sample_share, on_bad_sample=log_bad_sample,
                            bad_sample_list=files[0])

    def latents(self, batch: DenoiserBatch) -> paddle.Tensor:
        """Scaled latents (N, C, h, w) float32: as cached, or drawn from the posterior of the pictures (no gradient)."""
        if batch.loaded.latents is not None:
            return paddle.to_tensor(batch.loaded.latents.astype(np.float32))
        with paddle.no_grad():
            posterior = self.data.vae.encode(paddle.to_tensor(batch.loaded.pixel_values)).latent_dist
            drawn = posterior.mean.astype("float32") + posterior.std.astype("float32") * batch.tensor("posterior")
            return drawn * self.data.vae.config.scaling_factor

    def losses(self, batch: DenoiserBatch, step: int):
        latents = self.latents(batch)
        with paddle.set_grad_enabled(self.trains_text_encoder):
            hidden = self.text_encoder(batch.tensor("input_ids"))[0]  # (N, L, D)
        terms = self.loss(self.unet, latents, batch.tensor("noise"), batch.timesteps,
                          loss_weights=batch.tensor("loss_weights"), encoder_hidden_states=hidden,
                          key_token_weights=batch.tensor("key_token_weights"))
        return terms, expert_index(batch.timesteps, self.boundaries)

    def undecayed(self) -> set:
        """Biases, norms and embeddings."""
        decayed = self.unet.decayed_parameter_names()
        names = {f"unet.{name}" for name, p in self.unet.named_parameters() if p.name not in decayed}
        return names | {f"text_encoder.{name}" for name, p in self.text_encoder.named_parameters()
                        if p.ndim < 2 or "embedding" in name}

    @paddle.no_grad()
    def validate(self) -> dict[str, float]:
        """Unweighted loss at fixed timesteps and noise per block of the routing table, also of a single denoiser."""
        cache, sums = self.data.validation_latents, np.zeros((2, len(self.groups)))
        self._set_training(False)
        for bucket in np.unique(cache.buckets):
            members = np.flatnonzero(cache.buckets == bucket)[distributed.share()::distributed.shares()]
            for start in range(0, len(members), 32):
                self._validate_batch(cache, int(bucket), members[start:start + 32], sums)
        self._set_training(True)
        sums, counts = np.split(distributed.mean_over_ranks(sums.reshape(-1)), 2)
        scalars = {f"loss/{group}": float(total / number)
                   for group, total, number in zip(self.groups, sums, counts) if number}
        return {"loss": float(np.mean(list(scalars.values()))), **scalars}

    def _validate_batch(self, cache: LatentStore, bucket: int, indices: np.ndarray, sums: np.ndarray) -> None:
        latents = cache.latents(bucket, indices).astype(np.float32)  # (N, C, h, w)
        ids, weights = self.conditioning.inference([cache.records[i] for i in indices])
        hidden = self.text_encoder(paddle.to_tensor(ids))[0]  # (N, L, D)
        weights = None if weights is None else paddle.to_tensor(weights)
        for expert in range(len(self.groups)) if self.kind == "base" else self.experts:
            fixed = self.sampler.fixed(self.config.validation_timesteps, expert)
            timesteps = fixed[indices % len(fixed)]  # every sample at one fixed timestep of the block
            noise = normal_noise(0, 0, _VALIDATION_STREAM, expert, indices, latents.shape[1:])
            terms = self.plain_loss(self.unet, paddle.to_tensor(latents), paddle.to_tensor(noise),
                                    timesteps, encoder_hidden_states=hidden, key_token_weights=weights)
            sums[:, expert] += [float(terms["plain"].sum()), len(indices)]

    def components(self) -> dict:
        """What a pipeline is made of, with the knowledge settings that its prompts need."""
        return {"vae": self.data.vae, "text_encoder": self.text_encoder, "tokenizer": self.conditioning.tokenizer,
                "unet": self.unet, "scheduler": self.scheduler, "mark": self.conditioning.text.mark,
                "key_token_weight": self.conditioning.text.key_token_weight,
                "max_length": self.conditioning.text.max_length,
                "default_num_inference_steps": self.recipe.sample.num_inference_steps,
                "default_guidance_scale": self.recipe.sample.guidance_scale,
                "default_eta": self.recipe.sample.eta}

    def sample(self, step: int) -> np.ndarray | None:
        """Pictures of the recipe's fixed prompts; blocks of experts that nobody trains are denoised by the base."""
        together = distributed.layout().groups > 1  # each group has experts that the others draw with
        if not self.recipe.sample.prompts or not (distributed.is_main() or together):
            return None
        self._set_training(False)
        try:
            here = dict.fromkeys(self.experts, distributed.rank())  # the main rank is alone in here: nothing is asked
            holders = distributed.experts_by_rank(self.experts, self.turns) if together else here
            unet = whole_mixture(self.unet, self.base, holders)
            return draw_prompts(self.components() | {"unet": unet}, self.recipe.sample)
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

