"""The free-form parts of a recipe: keys and types of the stock classes, and sizes that must fit each other."""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np
from paddlenlp.transformers import ErnieConfig
from ppdiffusers import DDIMScheduler, UNet2DConditionModel

from ppvilg.config import ConfigError, Recipe, unknown_key
from ppvilg.diffusion import DenoisingLoss
from ppvilg.engine import builder
from ppvilg.engine.weights import sentence
from ppvilg.models import uniform_boundaries, validate_boundaries

# Settings that the stock classes take in more forms than their default shows.
_ALSO_LISTS = ("attention_head_dim", "num_attention_heads", "layers_per_block", "transformer_layers_per_block",
               "cross_attention_dim", "only_cross_attention", "dual_cross_attention", "sample_size")
_OWN_SETTINGS = ("vocab_size", "pad_token_id")  # of the text encoder, which the tokenizer decides


def stock_settings(recipe: Recipe) -> dict[str, tuple[Mapping, dict]]:
    """{name of a free-form part: (what the recipe says, defaults of the stock class)}."""
    model = recipe.model
    return {
        "model.text_encoder.config": (model.text_encoder.config, _defaults_of(ErnieConfig, _OWN_SETTINGS)),
        "model.vae.config": (model.vae.config, _defaults_of(builder.vae_class(recipe))),
        "model.unet.config": (model.unet.config, _defaults_of(UNet2DConditionModel)),
        "model.scheduler": (model.scheduler, _defaults_of(DDIMScheduler)),
    }


def _defaults_of(cls: type, without: tuple = ()) -> dict:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: each.default for name, each in parameters.items() if name not in ("self", "kwargs", *without)}


def check_settings(recipe: Recipe) -> None:
    """Keys and types of the free-form parts, tables of names, noise schedule, experts' blocks. Raises ConfigError."""
    for name, (given, defaults) in stock_settings(recipe).items():
        for key, value in builder.plain(given).items():
            if key not in defaults:
                raise ConfigError(unknown_key(f"{name}.", key, defaults))
            problem = _problem(key, value, defaults[key])
            if problem:
                raise ConfigError(f"{name}.{key}={value}: {problem}")
    builder.build_names(recipe)
    _check_schedule(recipe)
    _check_blocks(recipe)


def _problem(key: str, value: object, default: object) -> str | None:
    """What is wrong with the type of a value, or None."""
    if isinstance(value, list):
        if not isinstance(default, (list, tuple)) and default is not None and key not in _ALSO_LISTS:
            return f"one value is wanted, such as {default!r}"
        items = [each for each in value if not isinstance(each, list)]
        sample = default[0] if isinstance(default, (list, tuple)) and default else default
        return "at least one value is wanted" if not value else next(
            (problem for each in items if (problem := _problem(key, each, sample))), None)
    if isinstance(default, (list, tuple)) and default and not isinstance(value, str) and value is not None:
        return f"a list is wanted, such as {list(default)}" if key not in _ALSO_LISTS else None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "write true or false"
    if isinstance(value, bool):
        return None if default is None else f"a {'text' if isinstance(default, str) else 'number'} is wanted"
    if isinstance(default, int) or (default is None and isinstance(value, int)):
        whole = isinstance(value, int)
        return None if whole and value >= 0 else "a whole number is wanted, 0 or more"
    if isinstance(default, float):
        return None if isinstance(value, (int, float)) and math.isfinite(value) else "a finite number is wanted"
    if isinstance(default, str):
        return None if isinstance(value, str) else f"a text is wanted, such as {default!r}"
    return None


def _check_schedule(recipe: Recipe) -> None:
    """The noise schedule can be built, is one, and gives the loss something to learn at every timestep."""
    try_settings("model.scheduler", builder.plain(recipe.model.scheduler), _try_schedule)


def _try_schedule(settings: dict) -> None:
    if settings.get("num_train_timesteps", 1000) < 1:
        raise ValueError("there must be at least one timestep")
    scheduler = DDIMScheduler(**settings)
    scheduler.set_timesteps(1)
    DenoisingLoss(scheduler)
    kept = np.asarray(scheduler.alphas_cumprod, np.float64)  # (T,)
    if not (np.isfinite(kept).all() and (kept >= 0).all() and (kept <= 1).all() and (np.diff(kept) < 0).all()):
        raise ValueError("noise must grow from timestep to timestep: betas lie between 0 and 1, beta_start first")
    if kept[-1] < 1e-7 and scheduler.config.prediction_type == "epsilon":
        raise ValueError("the last timestep is noise alone (zero-terminal SNR), from which predicting the noise learns "
                         "nothing: use prediction_type=v_prediction or sample")


def _check_blocks(recipe: Recipe) -> None:
    model = recipe.model
    timesteps = model.scheduler.get("num_train_timesteps", 1000)
    if model.num_experts > timesteps:
        raise ConfigError(f"model.num_experts={model.num_experts}: must be at most the {timesteps} timesteps")
    try:
        boundaries = model.boundaries
        uniform = boundaries is None and uniform_boundaries(model.num_experts, timesteps)
        validate_boundaries(uniform or list(boundaries), model.num_experts, timesteps)
    except ValueError as error:
        raise ConfigError(f"model.boundaries={list(model.boundaries)}: {error}") from error


def try_settings(name: str, settings: dict, attempt: Callable[[dict], None], usual: Mapping | None = None) -> None:
    """`attempt(settings)`; what it raises becomes a ConfigError about the one setting that is at fault.

    That is the one without which, or with its value in `usual`, the attempt succeeds; where it takes several, all that
    were given are named.
    """
    try:
        attempt(settings)
    except ConfigError:
        raise
    except Exception as error:  # libraries answer wrong settings with every type of exception
        for key, value in settings.items():
            others = {other: settings[other] for other in settings if other != key}
            if usual is not None and key in usual:
                others[key] = _as_long(usual[key], value)
            if _succeeds(attempt, others):
                raise ConfigError(f"{name}.{key}={value}: {sentence(error)}") from error
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{name}={{{given}}}: {sentence(error)}") from error


def _as_long(usual: object, value: object) -> object:
    """A usual list with as many entries as another, which stands for levels of a network; other values as they are."""
    lists = isinstance(usual, (list, tuple)) and usual and isinstance(value, list)
    return [usual[i % len(usual)] for i in range(len(value))] if lists else usual


def _succeeds(attempt: Callable[[dict], None], settings: dict) -> bool:
    try:
        attempt(settings)
    except Exception:  # still wrong: another setting is at fault
        return False
    return True
