"""Recipes: YAML with ``_base_`` files and ``-o a.b=value`` overrides -> one typed, read-only result.

Every key of a recipe is declared below with its type and default; a key that is not declared is an error that names the
file, the key and the closest declared one.
"""
from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

STAGES = ("vae", "base", "experts")


class ConfigError(ValueError):
    """A recipe that cannot be used; the message names the key, the value and what would be accepted."""


@dataclass
class DataConfig:
    """Where samples come from and how they become pictures of the model's shapes."""

    train: str = MISSING  # one .tar, a folder of .tar shards, a brace pattern, or a folder with a .jsonl
    validation: str | None = None
    annotations: str | None = None  # sidecar JSONL; None: annotations.jsonl beside the shards, if there
    shapes: list[list[int]] = field(default_factory=lambda: [[64, 64]])  # (width, height) in pixels, one bucket each
    crop: str = "center"  # "center" or "random"
    horizontal_flip: float = 0.0  # probability; leave 0 where captions speak of left and right
    caption: str = "zh"  # which caption is trained on: "zh" or "en"
    cache_latents: bool = True  # encode every picture once; needs crop "center" and horizontal_flip 0
    cache_tags: bool = False  # find the words of every caption once (worth it where captions are too many to remember)
    workers: int = 0  # processes per rank that read and decode ahead
    bad_sample_limit: int = 100
    max_validation_samples: int = 512


@dataclass
class TextKnowledgeConfig:
    """Part-of-speech marks and key-token attention weights (paper section 2.2, textual knowledge)."""

    enabled: bool = True
    probability: float = 0.5  # share of training samples it is applied to
    key_token_weight: float = 0.01  # w_a


@dataclass
class ObjectLossConfig:
    """Heavier squared error inside the boxes of key objects (paper section 2.2, visual knowledge)."""

    enabled: bool = True
    object_weight: float = 0.1  # w_l


@dataclass
class CompletionConfig:
    """Objects that the caption leaves out are appended to it."""

    enabled: bool = True
    probability: float = 1.0


@dataclass
class ReplacementConfig:
    """The caption is replaced by a generated one."""

    enabled: bool = True
    probability: float = 0.1


@dataclass
class VisionKnowledgeConfig:
    loss: ObjectLossConfig = field(default_factory=ObjectLossConfig)
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    replacement: ReplacementConfig = field(default_factory=ReplacementConfig)
    min_score: float = 0.5  # objects detected with less are not trusted
    synonyms: dict[str, list[str]] = field(default_factory=dict)  # label -> names that mention it: {cat: [猫, 猫咪]}


@dataclass
class KnowledgeConfig:
    text: TextKnowledgeConfig = field(default_factory=TextKnowledgeConfig)
    vision: VisionKnowledgeConfig = field(default_factory=VisionKnowledgeConfig)


@dataclass
class TokenizerConfig:
    pretrained: str | None = None  # name or folder of a stock ERNIE tokenizer; None: vocabulary from the captions
    max_length: int = 40  # tokens, marks included


@dataclass
class ComponentConfig:
    """One network: weights to start from, or the configuration of a new one (keys of the stock class)."""

    pretrained: str | None = None
    from_diffusers: bool = False  # the folder holds PyTorch diffusers weights
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text_encoder: ComponentConfig = field(default_factory=ComponentConfig)
    vae: ComponentConfig = field(default_factory=ComponentConfig)
    unet: ComponentConfig = field(default_factory=ComponentConfig)
    num_experts: int = 10
    boundaries: list[int] | None = None  # n + 1 ascending timesteps from 0 to T; None: uniform blocks
    scheduler: dict[str, Any] = field(default_factory=dict)  # keys of ppdiffusers' DDIMScheduler


@dataclass
class StageConfig:
    """One stage of training. ``steps: 0`` leaves the stage out."""

    steps: int = 0
    batch_size: int = 64  # pictures per optimizer step over all ranks and accumulation passes
    accumulation: int = 1  # passes per optimizer step
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: str = "cosine"  # "cosine", "linear" or "constant" after the warm-up
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    gradient_clip: float = 1.0  # global norm; 0: off
    ema_decay: float = 0.999
    ema_every: int = 10  # steps between averages; the decay is per step and is raised to this power
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2  # the last so many
    keep_every: int = 0  # checkpoints of steps that are multiples of this are kept for good; 0: none
    validate_every: int = 500
    sample_every: int = 0  # steps between grids of the fixed prompts; 0: only at the end


@dataclass
class VAEStageConfig(StageConfig):
    kl_weight: float = 1e-6


@dataclass
class DenoiserStageConfig(StageConfig):
    caption_dropout: float = 0.1  # share of samples trained on the empty caption, for classifier-free guidance
    min_snr_gamma: float | None = None  # None: off
    train_text_encoder: bool = True
    weighting_scheme: str = "none"  # how training timesteps are drawn: uniformly, or "logit_normal"
    logit_mean: float = 0.0  # of logit(t / T); above 0 favours noisy timesteps
    logit_std: float = 1.0
    validation_timesteps: int = 4  # fixed timesteps per block of the routing table


@dataclass
class ExpertsStageConfig(DenoiserStageConfig):
    train_text_encoder: bool = False  # it is shared, so experts stay independent of each other
    only: list[int] | None = None  # train these experts alone; None: all. train.experts=[7] is short for it
    start: str | None = None  # pipeline folder whose denoiser(s) the experts begin as; None: <output>/base


@dataclass
class TrainConfig:
    vae: VAEStageConfig = field(default_factory=VAEStageConfig)
    base: DenoiserStageConfig = field(default_factory=DenoiserStageConfig)
    experts: ExpertsStageConfig = field(default_factory=ExpertsStageConfig)


@dataclass
class DistributedConfig:
    """Sizes of the axes that ranks are laid out on (docs/en/distributed.md); their product is the number of ranks."""

    data: int | None = None  # None: whatever is left of the ranks
    sharding: int = 1  # ranks that share one copy of the optimizer's state
    sharding_stage: int = 1  # 2: of the gradients too
    bucket_megabytes: float = 32.0  # stage 2: so many gradients wait on a rank before they go to their owners
    expert: int = 1  # groups of ranks that train different experts; stages vae and base use all ranks as one group
    find_unused_parameters: bool = True  # ranks agree on which weights have gradients before they add them up
    stop_seconds: int = 120  # after SIGTERM a run that has not stopped by itself by then is ended


@dataclass
class PrecisionConfig:
    """Automatic mixed precision; does nothing on a CPU, and says so."""

    level: str = "O0"  # "O0": float32; "O1": matrix products in `dtype`; "O2": weights too, float32 master copies
    dtype: str = "bfloat16"  # or "float16", with dynamic loss scaling


@dataclass
class SampleConfig:
    """The fixed prompts whose pictures show progress."""

    prompts: list[str] = field(default_factory=list)
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    eta: float = 0.0  # share of fresh noise in DDIM's steps, 0 to 1
    seed: int = 0


@dataclass
class Recipe:
    """The whole of one run; ``output`` holds its checkpoints, caches, logs and finished pipelines."""

    output: str = MISSING
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recompute: bool = False  # the denoiser keeps fewer activations and computes them again in the backward pass


def load_config(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, its ``_base_`` files and ``key=value`` overrides into a read-only Recipe.

    Raises:
        ConfigError: unknown key, value of the wrong type, or settings that do not fit together.
        FileNotFoundError: the recipe or one of its bases is not there.
    """
    config = OmegaConf.structured(Recipe)
    for file, node in _read_with_bases(Path(path), ()):
        config = _merge(config, node, str(file))
    for override in overrides or []:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not of the form a.b=value")
        if re.fullmatch(r"train\.experts=\[.*\]", override.strip()):
            override = override.replace("train.experts=", "train.experts.only=", 1)
        config = _merge(config, OmegaConf.from_dotlist([override]), f"-o {override}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{path}: no value for {', '.join(missing)}; set it in the recipe or by -o {missing[0]}=...")
    validate(config)
    OmegaConf.set_readonly(config, True)
    return config


def _read_with_bases(path: Path, above: tuple) -> list[tuple]:
    """The files of a recipe in the order in which they are merged: bases first, later ones over earlier ones."""
    path = path.resolve()
    if path in above:
        raise ConfigError(f"{path}: _base_ files refer to each other in a circle")
    if not path.is_file():
        by = f" (named as _base_ in {above[-1]})" if above else ""
        raise FileNotFoundError(f"no recipe at {path}{by}")
    try:
        node = OmegaConf.load(path)
    except Exception as error:  # a YAML error of any kind is the user's to mend; the parser's text has line and column
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not OmegaConf.is_dict(node):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, found {type(node).__name__}")
    bases = node.pop("_base_", [])
    files = []
    for base in [bases] if isinstance(bases, str) else bases:
        files += _read_with_bases(path.parent / base, above + (path,))
    return files + [(path, node)]


def _merge(config, node, origin: str):
    _check_keys(config, node, "", origin)
    try:
        return OmegaConf.merge(config, node)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a mapping where a list is declared
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{origin}: {f'{key}: ' if key else ''}{str(error).splitlines()[0]}") from error


def _check_keys(declared, given, prefix: str, origin: str) -> None:
    """Every given key must be declared; free-form dictionaries (the ``config`` of a component) end the search."""
    if not OmegaConf.is_dict(given) or not OmegaConf.is_dict(declared):
        return
    if OmegaConf.get_type(declared) is dict:
        return
    for key in given:
        name = f"{prefix}{key}"
        if key not in declared.keys():  # `in declared` would deny keys that have no value yet
            raise ConfigError(f"{origin}: {unknown_key(prefix, key, declared)}")
        if not OmegaConf.is_missing(given, key) and not OmegaConf.is_missing(declared, key):
            _check_keys(declared._get_node(key), given._get_node(key), f"{name}.", origin)


def unknown_key(prefix: str, key, known: Iterable) -> str:
    """Sentence about a key that nobody declared: the closest one that is, or all of them."""
    names = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(names)}"
    return f"unknown key {prefix}{key}; {hint}"


def validate(config) -> None:
    """Settings that do not fit together, found before anything is loaded or allocated. Raises ConfigError."""
    if config.data.crop not in ("center", "random"):
        raise ConfigError(f"data.crop={config.data.crop!r}: use center or random")
    if config.data.cache_latents and (config.data.crop != "center" or config.data.horizontal_flip):
        raise ConfigError("data.cache_latents=true keeps one latent per picture: it needs data.crop=center and "
                          "data.horizontal_flip=0, or set data.cache_latents=false")
    if config.data.caption not in ("zh", "en"):
        raise ConfigError(f"data.caption={config.data.caption!r}: use zh or en")
    _validate_probabilities(config)
    for key in ("seed", "data.workers", "data.bad_sample_limit", "knowledge.text.key_token_weight",
                "knowledge.vision.loss.object_weight", "knowledge.vision.min_score"):
        if OmegaConf.select(config, key) < 0:
            raise ConfigError(f"{key}={OmegaConf.select(config, key)}: must not be negative")
    for stage in STAGES:
        _validate_stage(config.train[stage], f"train.{stage}")
    for stage in ("base", "experts"):
        _validate_denoiser_stage(config.train[stage], f"train.{stage}")
    _validate_ranks(config)
    _validate_model(config)
    if not 0.0 <= config.sample.eta <= 1.0:
        raise ConfigError(f"sample.eta={config.sample.eta}: must lie between 0 and 1")


def _validate_probabilities(config) -> None:
    for key in ("data.horizontal_flip", "knowledge.text.probability", "knowledge.vision.completion.probability",
                "knowledge.vision.replacement.probability", "train.base.caption_dropout",
                "train.experts.caption_dropout"):
        value = OmegaConf.select(config, key)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{key}={value}: a probability lies between 0 and 1")


def _validate_stage(stage, name: str) -> None:
    for key in ("batch_size", "accumulation", "ema_every", "log_every", "checkpoint_every", "keep_checkpoints"):
        if stage[key] < 1:
            raise ConfigError(f"{name}.{key}={stage[key]}: must be at least 1")
    for key in ("steps", "warmup_steps", "validate_every", "sample_every", "learning_rate", "final_learning_rate",
                "weight_decay", "gradient_clip", "keep_every"):
        if stage[key] < 0:
            raise ConfigError(f"{name}.{key}={stage[key]}: must not be negative")
    if 0 < stage.steps < stage.ema_every:
        raise ConfigError(f"{name}.ema_every={stage.ema_every} is longer than the stage ({stage.steps} steps): its "
                          f"result, the averaged weights, would be the initial ones")
    if stage.steps and stage.warmup_steps > stage.steps:
        raise ConfigError(f"{name}.warmup_steps={stage.warmup_steps} is longer than the stage ({stage.steps} steps)")
    if stage.batch_size % stage.accumulation:
        raise ConfigError(f"{name}.batch_size={stage.batch_size} cannot be cut into accumulation={stage.accumulation}")
    if stage.decay not in ("cosine", "linear", "constant"):
        raise ConfigError(f"{name}.decay={stage.decay!r}: use cosine, linear or constant")
    if not 0.0 <= stage.ema_decay < 1.0:
        raise ConfigError(f"{name}.ema_decay={stage.ema_decay}: must lie in [0, 1)")


def _validate_denoiser_stage(stage, name: str) -> None:
    if stage.validation_timesteps < 1:
        raise ConfigError(f"{name}.validation_timesteps={stage.validation_timesteps}: must be at least 1")
    if stage.min_snr_gamma is not None and not stage.min_snr_gamma > 0:
        raise ConfigError(f"{name}.min_snr_gamma={stage.min_snr_gamma}: must be positive, or null to turn it off")
    if stage.weighting_scheme not in ("none", "logit_normal"):
        raise ConfigError(f"{name}.weighting_scheme={stage.weighting_scheme!r}: use none or logit_normal")
    if not stage.logit_std > 0:
        raise ConfigError(f"{name}.logit_std={stage.logit_std}: must be positive")


def _validate_ranks(config) -> None:
    for key, known in (("precision.level", ("O0", "O1", "O2")), ("precision.dtype", ("bfloat16", "float16"))):
        if OmegaConf.select(config, key) not in known:
            raise ConfigError(f"{key}={OmegaConf.select(config, key)!r}: use {', '.join(known)}")
    if config.distributed.sharding_stage not in (1, 2, 3):
        raise ConfigError(f"distributed.sharding_stage={config.distributed.sharding_stage}: use 1 or 2")
    if not config.distributed.bucket_megabytes > 0:
        raise ConfigError(f"distributed.bucket_megabytes={config.distributed.bucket_megabytes}: must be positive")
    if config.distributed.stop_seconds < 1:
        raise ConfigError(f"distributed.stop_seconds={config.distributed.stop_seconds}: must be at least 1")
    experts, count = config.train.experts, config.model.num_experts
    if experts.only is not None:
        chosen = list(experts.only)
        if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= k < count for k in chosen):
            raise ConfigError(f"train.experts.only={chosen}: different numbers from 0 to {count - 1} are wanted")
    if experts.train_text_encoder and (experts.only is not None or config.distributed.expert > 1):
        raise ConfigError("train.experts.train_text_encoder=true: experts that are trained apart would end with text "
                          "encoders of their own; set it to false, or train all experts in one group")


def _validate_boundaries(model, timesteps: int) -> None:
    bounds = model.boundaries
    if bounds is None:
        return
    ascending = all(low < high for low, high in zip(bounds, bounds[1:]))
    if len(bounds) != model.num_experts + 1 or not ascending or bounds[0] != 0 or bounds[-1] != timesteps:
        raise ConfigError(f"model.boundaries={list(bounds)}: {model.num_experts} experts need {model.num_experts + 1} "
                          f"ascending timesteps from 0 to {timesteps}, each block beginning where the last one ends")


def _validate_levels(config: dict, name: str) -> None:
    """A network has one block per level, and channels that its group norms can divide."""
    levels = config.get("block_out_channels")
    for key in ("down_block_types", "up_block_types"):
        if levels is not None and key in config and len(config[key]) != len(levels):
            raise ConfigError(f"{name}.{key} has {len(config[key])} entries, block_out_channels {len(levels)}")
    groups = config.get("norm_num_groups", 32)
    for channels in levels or ():
        if groups and channels % groups:
            raise ConfigError(f"{name}.block_out_channels: {channels} is not a multiple of norm_num_groups={groups}")


def _validate_model(config) -> None:
    model = config.model
    timesteps = model.scheduler.get("num_train_timesteps", 1000)
    if not 1 <= model.num_experts <= timesteps:
        raise ConfigError(f"model.num_experts={model.num_experts}: must lie between 1 and {timesteps} timesteps")
    _validate_boundaries(model, timesteps)
    vae, unet = model.vae.config, model.unet.config
    for part, name in ((model.vae, "model.vae.config"), (model.unet, "model.unet.config")):
        if not part.pretrained:
            _validate_levels(part.config, name)
    if not model.unet.pretrained and unet.get("out_channels", 4) != unet.get("in_channels", 4):
        raise ConfigError(f"model.unet.config.out_channels={unet.get('out_channels', 4)} does not fit "
                          f"in_channels={unet.get('in_channels', 4)}")
    text = model.text_encoder.config
    hidden, heads = text.get("hidden_size", 768), text.get("num_attention_heads", 12)
    if not model.text_encoder.pretrained and hidden % heads:
        raise ConfigError(f"model.text_encoder.config.hidden_size={hidden} is not a multiple of "
                          f"num_attention_heads={heads}")
    if not model.vae.pretrained and not model.unet.pretrained:
        if vae.get("latent_channels", 4) != unet.get("in_channels", 4):
            raise ConfigError(f"model.vae.config.latent_channels={vae.get('latent_channels', 4)} does not fit "
                              f"model.unet.config.in_channels={unet.get('in_channels', 4)}")
    if not model.text_encoder.pretrained and not model.unet.pretrained:
        hidden, cross = model.text_encoder.config.get("hidden_size", 768), unet.get("cross_attention_dim", 1280)
        if hidden != cross:
            raise ConfigError(f"model.text_encoder.config.hidden_size={hidden} does not fit "
                              f"model.unet.config.cross_attention_dim={cross}")
        positions = model.text_encoder.config.get("max_position_embeddings", 2048)
        if model.tokenizer.max_length > positions:
            raise ConfigError(f"model.tokenizer.max_length={model.tokenizer.max_length} is longer than "
                              f"model.text_encoder.config.max_position_embeddings={positions}")
    if not model.vae.pretrained and not model.unet.pretrained:
        factor = picture_multiple(config)
        for width, height in config.data.shapes:
            if width % factor or height % factor:
                raise ConfigError(f"data.shapes: {width}x{height} is not a multiple of {factor}, the VAE's factor "
                                  f"times the UNet's deepest level")


def picture_multiple(config) -> int:
    """Width and height of pictures must be multiples of this: VAE factor times UNet downsampling."""
    vae, unet = config.model.vae.config, config.model.unet.config
    vae_levels = len(vae.get("block_out_channels", [64]))
    unet_levels = len(unet.get("block_out_channels", [320, 640, 1280, 1280]))
    return vae.get("patch_size", 1) * 2 ** (vae_levels - 1) * 2 ** (unet_levels - 1)


def fingerprint(node) -> str:
    """SHA-256 of a configuration node's resolved content, independent of the order of its keys."""
    content = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
