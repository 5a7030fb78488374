"""A recipe from its first stage to its last; running it again goes on where it stopped."""
from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path

from omegaconf import OmegaConf

from ppvilg.config import STAGES, ConfigError, Recipe, fingerprint
from ppvilg.data import MixedSource, RecordSource
from ppvilg.engine import builder
from ppvilg.engine.caches.latents import latents_of
from ppvilg.engine.caches.tags import cache_tags
from ppvilg.engine.checkpoint import CheckpointStore, claimed, hash_folder, make_output
from ppvilg.engine.checks import (
    check_settings,
    rehearse_components,
    rehearse_data,
    rehearse_memory,
    rehearse_samples,
)
from ppvilg.engine.lora.base import base_folder, check_lora, chosen_experts, with_base
from ppvilg.engine.lora.prior import with_prior
from ppvilg.engine.lora.stage import LoraStage
from ppvilg.engine.lora.words import chosen_words
from ppvilg.engine.parallel import distributed
from ppvilg.engine.parallel.layout import experts_of
from ppvilg.engine.stages.autoencoder import AutoencoderStage
from ppvilg.engine.stages.conditioning import Conditioning
from ppvilg.engine.stages.denoiser import DenoiserData, DenoiserStage
from ppvilg.engine.stages.stage import Stage
from ppvilg.engine.training.precision import Precision
from ppvilg.engine.training.resuming import changes, settings_of
from ppvilg.engine.training.trainer import Trainer, check_shares
from ppvilg.files import write_whole
from ppvilg.pipelines.folders.identity import folder_sha256

logger = logging.getLogger(__name__)

class Run:
    """One recipe and its output folder."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        self._recipe_is_kept, self.tokenizer = False, None
        if recipe.train.lora.steps:
            recipe = self.recipe = with_base(recipe)
            check_lora(recipe)
        check_settings(recipe)
        for name in STAGES:  # all of them now, rather than after the stages before
            if recipe.train[name].steps:
                check_shares(name, recipe.train[name])
        self.expert_start = Path(recipe.train.experts.start or self.output / "base")
        if recipe.train.experts.steps:
            self._check_experts()
        self.training, self.validation = builder.build_sources(recipe)
        self.recipe = recipe = builder.with_found_shapes(recipe, self.training)
        self.transform = builder.build_transform(recipe)
        self.validation_transform = self.transform.deterministic()
        for source in (self.training, self.validation):
            source.check_share(recipe.data.bad_sample_share)
        if distributed.is_main():
            for name, source in (("training", self.training), ("validation", self.validation)):
                logger.info("%s data: %s", name, source.summary())

    def _check_experts(self) -> None:
        """Experts must have something to start from, and fit the ranks. Raises ConfigError."""
        settings = self.recipe.train.experts
        experts_of(0, self.recipe.distributed.expert, self._chosen_experts())
        if settings.start and not (self.expert_start / "unet").is_dir():
            raise ConfigError(f"train.experts.start={settings.start}: not a pipeline folder, there is no unet in it")
        if not settings.start and not self.recipe.train.base.steps and not self.expert_start.is_dir():
            raise ConfigError(f"train.experts starts from the denoiser of stage base, and {self.output} has none: give "
                              "train.base.steps as well, or a pipeline folder as train.experts.start")

    def _chosen_experts(self) -> list[int]:
        """Numbers of the experts that are trained."""
        only = self.recipe.train.experts.only
        return list(range(self.recipe.model.num_experts)) if only is None else sorted(only)

    def run(self) -> Path:
        """Every stage with steps in the recipe; gives the folder of the last result.

        Raises:
            ConfigError, CheckpointError, FloatingPointError; RuntimeError: too many bad samples, or another process is
            training into the same output. Stopped: a signal asked for it.
        """
        self._rehearse()
        make_output(self.output)
        with claimed(self.output) if distributed.is_main() else nullcontext():
            result = self._run_stages()
            self._keep_recipe()
            return result

    def _rehearse(self) -> None:
        """Try whatever a later stage needs of the recipe. Raises ConfigError; nothing is written yet."""
        trained_vae = None if self.recipe.train.vae.steps or not self._denoises() else self._trained_vae()
        rehearse_components(self.recipe, self._begins_at(), trained_vae)
        rehearse_memory(self.recipe)
        rehearse_data(self.recipe, self.training, self.validation)

    def _begins_at(self) -> Path | None:
        """The pipeline folder that experts or an adapter begin from, None where stage base is still to make it."""
        train = self.recipe.train
        if train.lora.steps:
            return base_folder(self.recipe)
        return self.expert_start if train.experts.steps and (train.experts.start or not train.base.steps) else None

    def _denoises(self) -> bool:
        return any(self.recipe.train[name].steps for name in STAGES if name != "vae")

    def _run_stages(self) -> Path:
        result = self.output
        if self._denoises():  # before the autoencoder: what is wrong with the prompts should not wait for it
            self.tokenizer = self._build_tokenizer()
            rehearse_samples(self.recipe, self.tokenizer, self._begins_at())
        if self.recipe.train.vae.steps:
            result = self.run_vae()
        if self.recipe.train.lora.steps:
            self.training = self._with_prior()
        if self._denoises():
            data = self.prepare_denoising()
        for name in ("base", "experts"):
            if self.recipe.train[name].steps:
                result = self.run_denoiser(name, data)
        return self.run_lora(data) if self.recipe.train.lora.steps else result

    def _keep_recipe(self) -> None:
        """Write recipe.yml; one that was there stays under another name if it describes another model.

        Called when a stage begins to take steps, with its checkpoints if there are any, and at the end: a recipe that
        is refused leaves that of the checkpoints in its place.
        """
        if self._recipe_is_kept or not distributed.is_main():
            return
        path, self._recipe_is_kept = self.output / "recipe.yml", True
        if path.exists() and not self._same_model(path):
            numbers = range(1, 2 + len(list(self.output.glob("recipe.*.yml"))))
            kept = next(kept for kept in (self.output / f"recipe.{n}.yml" for n in numbers) if not kept.exists())
            os.rename(path, kept)
            logger.warning("%s was used by another recipe before; that one is kept as %s", self.output, kept.name)
        write_whole(path, OmegaConf.to_yaml(self.recipe))

    def _same_model(self, path: Path) -> bool:
        """Whether the recipe in a file decides the steps of the stages of both as this one does, but for how many."""
        try:
            other = OmegaConf.load(path)
            found = {key for stage in STAGES if other.train[stage].steps and self.recipe.train[stage].steps
                     for key in changes(settings_of(other, stage), settings_of(self.recipe, stage))}
            return all(key.endswith(".steps") for key in found)
        except Exception:  # not a recipe of this version, or a torn file: to be kept as it is
            return False

    def run_vae(self) -> Path:
        """Stage vae -> `<output>/vae`."""
        folder = self.output / "vae"
        stage = AutoencoderStage(self.recipe, builder.build_vae(self.recipe), self.training, self.validation,
                                 self.transform, self.validation_transform, folder)
        self._train(stage, "vae")
        return folder

    def _trained_vae(self) -> Path | None:
        """The autoencoder that stage vae has left in the output, None where published weights are used.

        Raises:
            ConfigError: there is neither.
        """
        folder, published = self.output / "vae", self.recipe.model.vae.pretrained
        if published:
            return None
        if not folder.is_dir():
            raise ConfigError(f"train.vae.steps=0: there is no autoencoder in {folder}; set train.vae.steps to train "
                              "one, or model.vae.pretrained to use published weights")
        return folder

    def _finished_vae(self):
        """(autoencoder, hash): that of stage vae in this output, else published weights."""
        trained = self.output / "vae" if self.recipe.train.vae.steps else self._trained_vae()
        if trained is not None:
            return builder.build_vae(self.recipe, trained), _hash_on_main(trained)
        folder = Path(self.recipe.model.vae.pretrained)
        made_of = _hash_on_main(folder) if folder.is_dir() else fingerprint(self.recipe.model.vae)
        return builder.build_vae(self.recipe), made_of

    def prepare_denoising(self) -> DenoiserData:
        """Latents of both data sets, and what turns records into the denoiser's conditioning."""
        recipe, settings, cache = self.recipe, self.recipe.data, self.output / "cache"
        vae, self.vae_hash = self._finished_vae()
        vae.eval()
        common = {"root": cache, "bad_sample_share": settings.bad_sample_share, "workers": settings.workers}
        training = None
        if settings.cache_latents:
            training = latents_of(vae, self.vae_hash, self.training, self.transform, name="training", **common)
        validation = latents_of(vae, self.vae_hash, self.validation, self.validation_transform, name="validation",
                                count=settings.max_validation_samples, **common)
        tokenizer = self.tokenizer or self._build_tokenizer()
        tags = cache_tags(self.training, cache) if settings.cache_tags and recipe.knowledge.text.enabled else None
        return DenoiserData(vae, Conditioning.of(recipe, tokenizer, tags), self.training, self.transform, training,
                            validation)

    def _build_tokenizer(self):
        if self.recipe.train.lora.steps:
            return builder.load_tokenizer(str(base_folder(self.recipe) / "tokenizer"))  # as it is, marks or none
        in_use = any((self.output / "checkpoints").glob("base/step_*"))
        return builder.build_tokenizer_for(self.recipe, self.training.captions, self.training.fingerprint(),
                                           self.output / "tokenizer", in_use)

    def run_denoiser(self, name: str, data: DenoiserData) -> Path:
        """Stage base or experts -> pipeline folder `<output>/<name>`; `experts_07` where only expert 7 is trained."""
        experts, start, folder = None, None, self.output / name
        names = builder.build_names(self.recipe).identity  # a table may be another under the same name
        made_of, place = {"vae": self.vae_hash, "names": names}, distributed.arrange(expert_groups=name == "experts")
        if name == "experts":
            experts, start = experts_of(place.group, place.groups, self._chosen_experts()), self.expert_start
            made_of["start"] = _hash_on_main(start)
            if self.recipe.train.experts.only is not None:
                folder = self.output / "_".join([name, *(f"{expert:02d}" for expert in self._chosen_experts())])
        self._train(DenoiserStage(self.recipe, data, name, folder, start, experts), name, **made_of)
        distributed.arrange(expert_groups=False)
        return folder

    def _base_sha256(self) -> str:
        return distributed.from_main(folder_sha256(base_folder(self.recipe)) if distributed.is_main() else "")

    def _with_prior(self) -> RecordSource | MixedSource:
        """What is taught, and what the base draws of its own."""
        base = base_folder(self.recipe)
        return with_prior(self.recipe, base, self._base_sha256(), self.training, self.transform)

    def run_lora(self, data: DenoiserData) -> Path:
        """Stage lora -> `<output>/lora` with the adapter's file and its card."""
        folder, base, base_sha256 = self.output / "lora", base_folder(self.recipe), self._base_sha256()
        taught = self.training.sources[0]  # the prior has no words that the base lacks
        words = chosen_words(self.recipe, data.conditioning.tokenizer, taught.captions())
        stage = LoraStage(self.recipe, data, folder, base, chosen_experts(self.recipe), base_sha256, words)
        self._train(stage, "lora", vae=self.vae_hash, base=base_sha256)
        return folder

    def _train(self, stage: Stage, name: str, **made_of) -> None:
        """Run one stage; `made_of` are hashes of what came before it."""
        if len(self.training.sources) > 1:
            made_of["repeats"] = self.training.repeats
        settings = settings_of(self.recipe, name, data=self.training.fingerprint(), ranks=distributed.world_size(),
                               **made_of)
        store = CheckpointStore(self.output / "checkpoints" / stage.name, settings, stage.config.keep_checkpoints,
                                stage.config.keep_every, self.recipe.resume.strict)
        Trainer(stage, store, self.output / "logs", self.recipe.seed, self.recipe.distributed,
                Precision(self.recipe.precision), self._keep_recipe).run_loop()


def _hash_on_main(folder: Path) -> str:
    """Hash of a folder, which one rank reads."""
    return distributed.from_main(hash_folder(folder) if distributed.is_main() else "")
