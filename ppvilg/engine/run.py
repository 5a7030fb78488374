"""A recipe from its first stage to its last; running it again goes on where it stopped."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from omegaconf import OmegaConf

from ppvilg.config import Recipe, fingerprint
from ppvilg.engine import builder, distributed
from ppvilg.engine.autoencoder import AutoencoderStage
from ppvilg.engine.checkpoint import CheckpointStore, hash_folder
from ppvilg.engine.denoiser import DenoiserStage, Conditioning
from ppvilg.engine.latents import cache_latents
from ppvilg.engine.trainer import Trainer

logger = logging.getLogger(__name__)

# What may change between two runs of one recipe without making its checkpoints another model's.
_FREE = ("steps", "decay", "learning_rate", "final_learning_rate", "log_every", "checkpoint_every", "keep_checkpoints",
         "validate_every", "sample_every", "validation_timesteps")
_FREE_DATA = ("train", "validation", "annotations", "workers", "bad_sample_limit", "max_validation_samples")


@dataclass(frozen=True)
class PipelineHooks:
    """How finished components become a pipeline folder and pictures; handed in by the tool, for engine knows no pipeline.

    save(components, folder); draw(components, prompts, num_inference_steps, guidance_scale, seed) -> (H, W, 3) uint8.
    """

    save: Callable
    draw: Callable


class Run:
    """One recipe and its output folder."""

    def __init__(self, recipe: Recipe, hooks: Optional[PipelineHooks] = None):
        self.recipe, self.hooks, self.output = recipe, hooks, Path(recipe.output)
        self.training, self.validation = builder.build_sources(recipe)
        self.transform = builder.build_transform(recipe)
        if distributed.is_main():
            self.output.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(recipe, self.output / "recipe.yml")
            for name, source in (("training", self.training), ("validation", self.validation)):
                logger.info("%s data: %s", name, source.summary())

    def run(self) -> Path:
        """Every stage with steps in the recipe; gives the folder of the last result."""
        result = self.output
        if self.recipe.train.vae.steps:
            result = self.run_vae()
        if self.recipe.train.base.steps or self.recipe.train.experts.steps:
            self.prepare_denoising()
        for name in ("base", "experts"):
            if self.recipe.train[name].steps:
                result = self.run_denoiser(name)
        return result

    def run_vae(self) -> Path:
        """Stage vae -> `<output>/vae`."""
        folder = self.output / "vae"
        stage = AutoencoderStage(self.recipe, builder.build_vae(self.recipe), self.training, self.validation,
                                 self.transform, folder)
        self._train(stage, upstream="")
        return folder

    def prepare_denoising(self) -> None:
        """Latents of both data sets, and what turns records into the denoiser's conditioning."""
        recipe, limit = self.recipe, self.recipe.data.bad_sample_limit
        trained = self.output / "vae"
        self.vae = builder.build_vae(recipe, trained if recipe.train.vae.steps else None)
        self.vae.eval()
        if recipe.train.vae.steps:
            vae_hash = hash_folder(trained)
        else:
            vae_hash = fingerprint(recipe.model.vae)
        self.vae_hash = vae_hash
        cache = self.output / "cache"
        self.training_latents = self.validation_latents = None
        if recipe.data.cache_latents:
            self.training_latents = cache_latents(self.vae, vae_hash, self.training, self.transform, cache, limit,
                                                  "training")
        self.validation_latents = cache_latents(self.vae, vae_hash, self.validation, self.transform, cache, limit,
                                                "validation")
        captions = [text for index in range(len(self.training))
                    for text in self.training.read_text(index).captions.values()]
        tokenizer = builder.build_tokenizer_for(recipe, captions, self.output / "tokenizer")
        self.conditioning = Conditioning(recipe, tokenizer, builder.build_text_knowledge(recipe, tokenizer),
                                         builder.build_visual_knowledge(recipe))

    def run_denoiser(self, name: str) -> Path:
        """Stage base or experts -> pipeline folder `<output>/<name>`."""
        folder, base = self.output / name, self.output / "base"
        stage = DenoiserStage(self, name, folder, base if name == "experts" else None)
        upstream = self.vae_hash + (hash_folder(base) if name == "experts" else "")
        self._train(stage, upstream)
        return folder

    def _train(self, stage, upstream: str) -> None:
        recipe_hash = fingerprint({"recipe": self._defining(stage.name), "upstream": upstream,
                                   "data": self.training.fingerprint()})
        store = CheckpointStore(self.output / "checkpoints" / stage.name, recipe_hash, stage.config.keep_checkpoints)
        Trainer(stage, store, self.output / "logs", self.recipe.seed).run_loop()

    def _defining(self, stage: str) -> dict:
        """The part of the recipe that decides what a step of this stage computes."""
        content = OmegaConf.to_container(self.recipe, resolve=True)
        data = {key: value for key, value in content["data"].items() if key not in _FREE_DATA}
        settings = {key: value for key, value in content["train"][stage].items() if key not in _FREE}
        model = content["model"]["vae"] if stage == "vae" else content["model"]
        knowledge = None if stage == "vae" else content["knowledge"]
        return {"seed": content["seed"], "data": data, "stage": settings, "model": model, "knowledge": knowledge}
