"""Settings of a training recipe that do not fit together, found before anything is loaded or allocated."""

from __future__ import annotations

from .limits import ConfigError
from .training import STAGES, DataConfig, Recipe, StageConfig


def validate(config: Recipe) -> None:
    """Settings that do not fit together, found before anything is loaded or allocated. Raises ConfigError."""
    if config.data.cache_latents and (config.data.crop != "center" or config.data.horizontal_flip):
        raise ConfigError("data.cache_latents=true keeps one latent per picture: it needs data.crop=center and "
                          "data.horizontal_flip=0, or set data.cache_latents=false")
    _validate_sets(config.data)
    _validate_shapes(config.data.shapes)
    for stage in STAGES[:-1]:
        validate_stage(config.train[stage], f"train.{stage}", config.model.num_experts if stage == "experts" else 1)
    _validate_experts(config)
    others = [stage for stage in STAGES[:-1] if config.train[stage].steps]
    if config.train.lora.steps and others:  # its networks are those of a finished model
        raise ConfigError(f"train.lora.steps={config.train.lora.steps} and train.{others[0]}.steps="
                          f"{config.train[others[0]].steps}: an adapter is trained in a recipe of its own, on a "
                          "finished model (train.lora.base)")


def _validate_sets(data: DataConfig) -> None:
    if bool(data.train) == bool(data.sets):
        raise ConfigError(f"data.train={data.train}: give a path, or several data sets as data.sets=[{{path: ...}}, "
                          f"...]{'; not both' if data.train else ''}")
    if data.sets and data.annotations:
        raise ConfigError(f"data.annotations={data.annotations}: with data.sets each set names its own")
    weighted = [each.weight is not None for each in data.sets]
    for number, each in enumerate(data.sets):
        name = f"data.sets[{number}]"
        if each.weight is not None and not each.weight > 0:
            raise ConfigError(f"{name}.weight={each.weight:g}: must be more than 0; leave a set out that is not wanted")
        if each.repeats is not None and not each.repeats >= 1:
            raise ConfigError(f"{name}.repeats={each.repeats:g}: must be at least 1")
        if any(weighted) and (each.weight is None or each.repeats is not None):
            raise ConfigError(f"{name}: where one data set has a weight, all have one, and none has repeats")


def _validate_shapes(shapes) -> None:
    given = f"data.shapes={[list(shape) for shape in shapes]}"
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ConfigError(f"{given}: give one pair [width, height] in pixels or several, such as [[64, 64], [64, 96]]")
    if len({tuple(shape) for shape in shapes}) < len(shapes):
        raise ConfigError(f"{given}: the same shape is there twice; name each once")


def validate_stage(stage: StageConfig, name: str, turns: int) -> None:
    """Settings of one stage, whose networks take `turns`. Raises ConfigError."""
    own = -(-stage.steps // turns)  # steps of each network, where they take turns
    told = f"{own} steps" if turns == 1 else f"{own} steps of each expert"
    if stage.steps and stage.ema != "none" and own < stage.ema_every:
        raise ConfigError(f"{name}.ema_every={stage.ema_every} is longer than the stage ({told}): its result, the "
                          "averaged weights, would be the initial ones")
    if stage.steps and stage.warmup_steps > own:
        raise ConfigError(f"{name}.warmup_steps={stage.warmup_steps} is longer than the stage ({told})")
    if stage.batch_size % stage.accumulation:
        raise ConfigError(f"{name}.batch_size={stage.batch_size} cannot be cut into accumulation={stage.accumulation} "
                          f"equal passes: choose a multiple")
    _validate_optimizer(stage, name)


def _validate_optimizer(stage: StageConfig, name: str) -> None:
    """Numbers that an optimizer would not look at, and rates of what is not trained, are mistakes."""
    unused = {"lion": ("epsilon",), "adafactor": ("beta1", "beta2")}.get(stage.optimizer, ())
    for key in unused:
        if stage[key] is not None:
            raise ConfigError(f"{name}.{key}={stage[key]}: optimizer={stage.optimizer} has none; leave it out")
    rates = stage.learning_rates if "learning_rates" in stage else {}
    if rates and not stage.learning_rate:
        raise ConfigError(f"{name}.learning_rate=0: rates of parts are scaled as it is; give one above 0")
    if "text_encoder" in rates and not stage.train_text_encoder:
        raise ConfigError(f"{name}.learning_rates.text_encoder={rates['text_encoder']:g}: the text encoder is not "
                          "trained; set train_text_encoder=true, or leave the rate out")


def _validate_experts(config: Recipe) -> None:
    experts, count = config.train.experts, config.model.num_experts
    if experts.only is not None:
        chosen = list(experts.only)
        if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= k < count for k in chosen):
            raise ConfigError(f"train.experts.only={chosen}: different numbers from 0 to {count - 1} are wanted")
    if experts.train_text_encoder and (experts.only is not None or config.distributed.expert > 1):
        raise ConfigError("train.experts.train_text_encoder=true: experts that are trained apart would end with text "
                          "encoders of their own; set it to false, or train all experts in one group")
