"""Settings of a training recipe that do not fit together, found before anything is loaded or allocated."""

from __future__ import annotations

from omegaconf import OmegaConf

from .limits import ConfigError
from .training import STAGES


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
