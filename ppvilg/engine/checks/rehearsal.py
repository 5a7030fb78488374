"""Everything that a recipe names, tried once on next to nothing: networks, weights, data and optimizer.

Networks are traced as static programs, where a 24 B model takes seconds and no memory. What lies in files is opened.
See sampling.py for drawing.
"""
from __future__ import annotations

import gc
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
from paddlenlp.transformers import ErnieConfig

from ppvilg.config import STAGES, ConfigError, Recipe
from ppvilg.data import BadSample, RecordSource
from ppvilg.engine import builder
from ppvilg.engine.checks.settings import stock_settings, try_settings
from ppvilg.engine.parallel import distributed
from ppvilg.engine.planning import plan
from ppvilg.engine.planning.memory import check_memory, device_limit
from ppvilg.engine.training.optimizers import build_optimizer
from ppvilg.files import damage_of, digest_of, is_whole, read_json
from ppvilg.models import MoDEUNet2DConditionModel, block_origins, uniform_boundaries
from ppvilg.models.expert_files import expert_folder

logger = logging.getLogger(__name__)
_TRIED = 16  # samples of a data set that are looked at for a good one
_passed: set[str] = set()  # digests of what this process has tried already


def rehearse_components(recipe: Recipe, start: Path | None = None, trained_vae: Path | None = None) -> None:
    """Networks, published weights and the optimizer of every stage.

    start: the pipeline folder that experts begin from; trained_vae: the folder of an autoencoder that is there already.

    Raises:
        ConfigError: on every rank, what the main one found.
    """
    told = ""
    if distributed.is_main():
        try:
            _try_components(recipe, start, trained_vae)
        except (ConfigError, FileNotFoundError) as error:
            told = str(error)
    told = distributed.from_main(told)
    if told:
        raise ConfigError(told)


def rehearse_memory(recipe: Recipe) -> None:
    """Count what every stage takes of a rank's memory. ConfigError, on every rank, where one does not fit."""
    told = ""
    if distributed.is_main():
        try:
            counted = check_memory(recipe, distributed.world_size(), *device_limit(distributed.ranks_on_this_machine()))
            for form, memory in counted:
                logger.info("train.%s takes about %.1f GB of memory a rank (%s)", form.stage,
                            sum(memory.values()) / 1e9, ", ".join(f"{k} {v / 1e9:.2f}" for k, v in memory.items()))
        except ConfigError as error:
            told = str(error)
    told = distributed.from_main(told)
    if told:
        raise ConfigError(told)


def _try_components(recipe: Recipe, start: Path | None, trained_vae: Path | None) -> None:
    stages = [stage for stage in STAGES if recipe.train[stage].steps]
    new = [part for part, stage in (("vae", "vae"), ("text_encoder", "base"), ("unet", "base"))
           if stage in stages and not recipe.model[part].pretrained]
    files = {part: recipe.model[part].pretrained for part in plan.PARTS if recipe.model[part].pretrained}
    digest = digest_of([builder.plain(recipe.model), builder.plain(recipe.data.shapes), new])
    if digest not in _passed or files or start or trained_vae:
        for part in new if digest not in _passed else ():
            _trace(recipe, part)
        vae, text_encoder, unet = _layers(recipe, new, trained_vae)
        check_fit(recipe, vae, text_encoder, unet)
        if start is not None:
            _try_start(recipe, start, vae)
        _passed.add(digest)
    for stage in stages:
        _try_optimizer(recipe, stage)


# ---- networks


def _trace(recipe: Recipe, part: str) -> None:
    """One network on one sample of the first shape. ConfigError names the setting at fault."""
    name = f"model.{part}.config"
    given, defaults = stock_settings(recipe)[name]
    given, (width, height) = builder.plain(given), recipe.data.shapes[0]

    def attempt(settings: dict) -> None:
        _check_levels(name, settings)
        plan.trace_part(recipe, part, width, height, settings)

    try_settings(name, given, attempt, defaults)


def _check_levels(name: str, config: dict) -> None:
    """A network has one block per level, and channels that its group norms can divide."""
    levels = config.get("block_out_channels")
    for key in ("down_block_types", "up_block_types"):
        if levels is not None and key in config and len(config[key]) != len(levels):
            raise ConfigError(f"{name}.{key}={config[key]}: {len(config[key])} blocks for the {len(levels)} levels of "
                              f"block_out_channels={levels}; give one for each")
    groups = config.get("norm_num_groups", 32)
    for channels in levels or ():
        if groups and channels % groups:
            raise ConfigError(f"{name}.norm_num_groups={groups}: does not divide {channels} of block_out_channels="
                              f"{levels}; choose a divisor of all of them")


def _layers(recipe: Recipe, new: list[str], trained_vae: Path | None) -> tuple:
    """(vae, text_encoder, unet): weights read from files, new ones as layers without memory, None where unused."""
    model = recipe.model
    with paddle.LazyGuard():
        made = {part: plan.build_part(recipe, part) for part in new}
    if model.vae.pretrained or trained_vae is not None:
        made["vae"] = builder.build_vae(recipe, trained_vae)
    if model.text_encoder.pretrained:
        made["text_encoder"] = builder.read_text_encoder(recipe)
    if model.unet.pretrained:
        made["unet"] = builder.build_base_unet(recipe).experts[0]
    gc.collect()
    return made.get("vae"), made.get("text_encoder"), made.get("unet")


def check_fit(recipe: Recipe, vae=None, text_encoder=None, unet=None) -> None:
    """Sizes of networks must fit each other and the pictures, wherever they come from; None: not known yet.

    unet: one stock denoiser, or its config.
    """
    given = {part: f"model.{part}.{'pretrained' if recipe.model[part].pretrained else 'config'}" for part in plan.PARTS}
    if unet is not None:
        unet = getattr(unet, "config", unet)
        if unet["out_channels"] != unet["in_channels"]:
            raise ConfigError(f"{given['unet']}.out_channels={unet['out_channels']} does not fit "
                              f"in_channels={unet['in_channels']}: a denoiser gives what it takes")
    if vae is not None and unet is not None and vae.config.latent_channels != unet["in_channels"]:
        raise ConfigError(f"{given['vae']}.latent_channels={vae.config.latent_channels} does not fit "
                          f"{given['unet']}.in_channels={unet['in_channels']}: make them equal")
    if text_encoder is not None and unet is not None:
        hidden, cross = text_encoder.config.hidden_size, unet["cross_attention_dim"]
        if hidden != cross:
            raise ConfigError(f"{given['text_encoder']}.hidden_size={hidden} does not fit "
                              f"{given['unet']}.cross_attention_dim={cross}: make them equal")
    if text_encoder is not None:
        positions = text_encoder.config.max_position_embeddings
        if recipe.model.tokenizer.max_length > positions:
            raise ConfigError(f"model.tokenizer.max_length={recipe.model.tokenizer.max_length} is longer than "
                              f"{given['text_encoder']}.max_position_embeddings={positions}")
    _check_shapes(recipe, vae, unet)


def _check_shapes(recipe: Recipe, vae, unet) -> None:
    """Pictures, and what is drawn, must be cut evenly by every level of the networks."""
    levels = len(unet["block_out_channels"]) - 1 if unet is not None else 0
    factor = factor_of(vae) if vae is not None else 1
    for width, height in recipe.data.shapes:
        multiple = factor * 2**levels
        if width % multiple or height % multiple:
            raise ConfigError(f"data.shapes=[[{width}, {height}]]: {width}x{height} is not a multiple of {multiple}, "
                              f"the autoencoder's factor {factor} times the denoiser's deepest level {2**levels}")
    size = None if unet is None else unet["sample_size"]
    for side in [size] if isinstance(size, int) else size or ():
        if side % 2**levels or not side:
            raise ConfigError(f"model.unet.config.sample_size={size}: must be a multiple of {2**levels}, the "
                              f"denoiser's deepest level; it is the size in latent cells of what is drawn")


def factor_of(vae) -> int:
    """Pixels per latent cell and side."""
    return 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.get("patch_size", 1)


def _try_optimizer(recipe: Recipe, stage: str) -> None:
    """One step on one number must leave a number. ConfigError names the stage's settings."""
    config, weight = recipe.train[stage], paddle.create_parameter([1], "float32")
    weight.grad = paddle.ones([1])
    build_optimizer(config, [weight], lambda name: True).step()
    if not np.isfinite(weight.numpy()).all():
        keys = ("optimizer", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
        given = ", ".join(f"{key}={config[key]}" for key in keys)
        raise ConfigError(f"train.{stage}.learning_rate={config.learning_rate}: one optimizer step with {given} gives "
                          f"{weight.numpy()[0]}; start from learning_rate=1e-4 and the default betas and epsilon")


def _try_start(recipe: Recipe, folder: Path, vae) -> None:
    """The pipeline folder that experts or an adapter begin from: its networks fit, what is needed of them is whole."""
    try:
        source = MoDEUNet2DConditionModel.without_experts(folder / "unet")
        text_encoder = ErnieConfig.from_dict(read_json(folder / "text_encoder" / "config.json"))
        timesteps = recipe.model.scheduler.get("num_train_timesteps", 1000)
        if source.num_train_timesteps != timesteps:
            raise ValueError(f"its denoiser has {source.num_train_timesteps} timesteps, model.scheduler."
                             f"num_train_timesteps is {timesteps}")
        check_fit(recipe, vae, SimpleNamespace(config=text_encoder), source.config.unet)
        boundaries = list(recipe.model.boundaries or uniform_boundaries(recipe.model.num_experts, timesteps))
        origins, chosen = block_origins(boundaries, source.boundaries), recipe.train.experts.only
        needed = {origins[k] for k in (range(len(origins)) if chosen is None else chosen)}
        folders = [expert_folder(folder / "unet", origin, source.num_experts) for origin in sorted(needed)]
        for path in (path for each in [*folders, folder / "text_encoder"] for path in each.glob("*.safetensors")):
            if not is_whole(path):
                raise ValueError(damage_of(path))
    except (OSError, ValueError, KeyError) as error:
        key = "train.lora.base" if recipe.train.lora.steps else "train.experts.start"
        raise ConfigError(f"{key}={folder}: {error}") from error


# ---- data


def rehearse_data(recipe: Recipe, training: RecordSource, validation: RecordSource) -> None:
    """Some of the first samples of both data sets can be read, and have the captions that are trained on."""
    transform = builder.build_transform(recipe)
    sets = [(f"sets[{n}].path", each.path) for n, each in enumerate(recipe.data.sets)] or [("train", recipe.data.train)]
    named = [*zip(sets, training.sources), (("validation", recipe.data.validation), validation)]
    for (key, place), source in named:
        records, problems = [], []
        for index in range(min(_TRIED, len(source))):
            try:
                record = source.read(index)
                transform(record.image, record.objects, transform.bucket_of(*record.image.size),
                          np.random.default_rng(0))
                records.append(record)
            except BadSample as problem:
                problems.append(problem)
        if not records and len(source) <= _TRIED:
            raise ConfigError(f"data.{key}={place}: none of its {len(source)} samples can be read; "
                              f"{problems[0]}")
        if recipe.data.caption == "en" and records and not any(record.captions.get("en") for record in records):
            raise ConfigError(f"data.caption=en: none of the first {len(records)} samples of {place} has an "
                              "English caption; set data.caption=zh")
