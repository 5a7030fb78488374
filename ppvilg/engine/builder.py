"""Recipe -> live components: tokenizer, text encoder, autoencoder, denoiser, scheduler, data."""
from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
import paddle
from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from ppvilg.config import ConfigError, Recipe
from ppvilg.data import ImageTransform, RecordSource, open_source
from ppvilg.engine import distributed
from ppvilg.knowledge import TextKnowledge, VisualKnowledge, add_marks, build_tokenizer
from ppvilg.models import MoDEUNet2DConditionModel, PatchAutoencoderKL


def plain(node) -> dict:
    """A free-form part of the recipe as ordinary Python values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def seed_weights(seed: int, component: int) -> None:
    """Seed everything that initial weights are drawn from; each component has its own stream."""
    state = np.random.SeedSequence([seed, 7, component]).generate_state(2)
    paddle.seed(int(state[0] >> 1))
    np.random.seed(int(state[1]))


def build_sources(recipe: Recipe) -> tuple[RecordSource, RecordSource]:
    """(training, validation) sources; ConfigError where there is no validation data."""
    if not recipe.data.validation:
        raise ConfigError("data.validation is not set: experts are judged against their base on data neither has seen. "
                          "Give a second folder or shard pattern")
    training = open_source(recipe.data.train, recipe.data.annotations)
    validation = open_source(recipe.data.validation)
    for name, source in (("data.train", training), ("data.validation", validation)):
        if not len(source):
            raise ConfigError(f"{name}: no usable sample in it\n{source.summary()}")
    return training, validation


def build_transform(recipe: Recipe) -> ImageTransform:
    """Pictures of any size -> the recipe's shapes."""
    shapes = [tuple(shape) for shape in recipe.data.shapes]
    return ImageTransform(shapes, recipe.data.crop, recipe.data.horizontal_flip)


def build_tokenizer_for(recipe: Recipe, captions: List[str], folder: Path) -> ErnieTokenizer:
    """The recipe's stock tokenizer with the marks added, or one whose vocabulary comes from `captions`."""
    if recipe.model.tokenizer.pretrained:
        tokenizer = ErnieTokenizer.from_pretrained(recipe.model.tokenizer.pretrained)
        add_marks(tokenizer)
        return tokenizer
    if not (folder / "vocab.txt").exists():
        if distributed.is_main():
            build_tokenizer(captions, folder)
        distributed.barrier()
    return ErnieTokenizer.from_pretrained(str(folder))


def build_text_encoder(recipe: Recipe, tokenizer: ErnieTokenizer) -> ErnieModel:
    """ERNIE with an embedding for every token of the tokenizer, marks included."""
    part = recipe.model.text_encoder
    seed_weights(recipe.seed, 1)
    if part.pretrained:
        encoder = ErnieModel.from_pretrained(part.pretrained)
        add_marks(tokenizer, encoder)
        return encoder
    settings = dict(plain(part.config), vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return ErnieModel(ErnieConfig(**settings))


def build_vae(recipe: Recipe, folder: Path | None = None) -> AutoencoderKL:
    """The autoencoder of a finished stage in `folder`, of published weights, or a new one."""
    part = recipe.model.vae
    settings = plain(part.config)
    cls = PatchAutoencoderKL if "patch_size" in settings else AutoencoderKL
    if folder is not None:
        return cls.from_pretrained(str(folder))
    seed_weights(recipe.seed, 2)
    if part.pretrained:
        return cls.from_pretrained(part.pretrained, from_diffusers=part.from_diffusers)
    return cls(**settings)


def build_base_unet(recipe: Recipe) -> MoDEUNet2DConditionModel:
    """One denoiser for all timesteps, new or from published weights."""
    part = recipe.model.unet
    seed_weights(recipe.seed, 3)
    if part.pretrained:
        unet = UNet2DConditionModel.from_pretrained(part.pretrained, from_diffusers=part.from_diffusers)
        return MoDEUNet2DConditionModel.from_base(unet, 1)
    steps = recipe.model.scheduler.get("num_train_timesteps", 1000)
    return MoDEUNet2DConditionModel(num_experts=1, num_train_timesteps=steps, unet=plain(part.config))


def build_scheduler(recipe: Recipe) -> DDIMScheduler:
    """The noise schedule, shared by training and sampling."""
    return DDIMScheduler(**plain(recipe.model.scheduler))


def build_text_knowledge(recipe: Recipe, tokenizer: ErnieTokenizer) -> TextKnowledge:
    """Marks and key-token weights; both off where the recipe says so."""
    part = recipe.knowledge.text
    weight = part.key_token_weight if part.enabled else 0.0
    return TextKnowledge(tokenizer, recipe.model.tokenizer.max_length, weight, mark=part.enabled)


def build_visual_knowledge(recipe: Recipe) -> VisualKnowledge:
    """Loss weights, caption completion and replacement, each with its switch."""
    part = recipe.knowledge.vision
    return VisualKnowledge(
        object_weight=part.loss.object_weight if part.loss.enabled else 0.0,
        completion=part.completion.enabled,
        completion_probability=part.completion.probability,
        replacement_probability=part.replacement.probability if part.replacement.enabled else 0.0,
        english_probability=1.0 if recipe.data.caption == "en" else 0.0,
    )
