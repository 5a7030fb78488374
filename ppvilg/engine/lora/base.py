"""What a recipe of stage "lora" takes from the model that is taught: everything that decides its pictures."""
from __future__ import annotations

import inspect
from pathlib import Path

import paddle
from omegaconf import OmegaConf
from paddlenlp.transformers import ErnieConfig
from ppdiffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from ppvilg.config import ConfigError, Recipe, validate_stage
from ppvilg.files import read_json
from ppvilg.models import PatchAutoencoderKL
from ppvilg.models.lora import adaptable_layers
from ppvilg.pipelines import resolve

from .layers import TEXT_TARGETS, matching_paths
from .prior import prior_prompts
from .words import listed_words


def base_folder(recipe: Recipe) -> Path:
    """The pipeline folder that is taught. ConfigError: none is given, or it is not there."""
    base = recipe.train.lora.base
    if base is None:
        raise ConfigError("train.lora.base is not set: give the model that is to learn, a zoo name such as emoji64 or "
                          "a pipeline folder")
    try:
        return resolve(base)
    except FileNotFoundError as error:
        raise ConfigError(f"train.lora.base={base}: {error}") from error


def with_base(recipe: Recipe) -> Recipe:
    """The recipe with the model, noise schedule and textual knowledge of `train.lora.base`.

    Raises:
        ConfigError: the base cannot be read, or the recipe says something else of what is the base's.
    """
    folder = base_folder(recipe)
    try:
        known = _settings(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"train.lora.base={recipe.train.lora.base}: {error}") from error
    defaults = OmegaConf.structured(Recipe)
    _check_untouched("model", recipe.model, defaults.model, known["model"])
    text = known["knowledge"]["text"]
    for key, value in text.items():
        given = recipe.knowledge.text[key]
        if given not in (defaults.knowledge.text[key], value):
            raise _is_the_bases(f"knowledge.text.{key}", given, value)
    filled = OmegaConf.merge(recipe, known)
    OmegaConf.set_readonly(filled, True)
    return filled


def _settings(folder: Path) -> dict:
    """The parts of a recipe that a pipeline folder decides."""
    index, unet, schedule, vae, text = (
        read_json(folder / name) for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json",
                                              "vae/config.json", "text_encoder/config.json"))
    vae_class = PatchAutoencoderKL if "patch_size" in vae else AutoencoderKL
    model = {
        "tokenizer": {"pretrained": str(folder / "tokenizer"), "max_length": index["max_length"]},
        "text_encoder": {"pretrained": str(folder / "text_encoder"),
                         "config": _declared(ErnieConfig, text, ("vocab_size", "pad_token_id"))},
        "vae": {"pretrained": str(folder / "vae"), "config": _declared(vae_class, vae)},
        "unet": {"config": dict(unet["unet"])},
        "num_experts": unet["num_experts"],
        "boundaries": list(unet["boundaries"]),
        "scheduler": _declared(DDIMScheduler, schedule),
    }
    knowledge = {"text": {"enabled": index["mark"], "key_token_weight": index["key_token_weight"]}}
    return {"model": model, "knowledge": knowledge}


def _declared(cls: type, settings: dict, without: tuple = ()) -> dict:
    """Settings that a class's constructor names, but for those that are null and so its own."""
    names = inspect.signature(cls.__init__).parameters.keys() - set(without)
    return {key: value for key, value in settings.items() if key in names and value is not None}


def _check_untouched(name: str, given, default, known) -> None:
    """ConfigError where a recipe gives what the base decides, other than the base does."""
    for key in given:
        value, usual = given[key], default[key]
        if OmegaConf.is_dict(value) and value and isinstance(known.get(key), dict):
            inner = usual if OmegaConf.is_dict(usual) else {}
            _check_untouched(f"{name}.{key}", value, {k: inner.get(k) for k in value}, known[key])
        elif value != usual and _plain(value) != known.get(key):
            raise _is_the_bases(f"{name}.{key}", _plain(value), known.get(key))


def _plain(value):
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _is_the_bases(key: str, given, known) -> ConfigError:
    return ConfigError(f"{key}={given}: with stage lora the model is train.lora.base's, which has {known}; take it out "
                       "of the recipe")


def chosen_experts(recipe: Recipe) -> list[int]:
    """Numbers of the experts that the adapter changes."""
    chosen = recipe.train.lora.experts
    return list(range(recipe.model.num_experts)) if chosen == "all" else sorted(chosen)


def check_lora(recipe: Recipe) -> None:
    """The stage's settings against its base. Raises ConfigError."""
    config, count = recipe.train.lora, recipe.model.num_experts
    chosen = config.experts
    if chosen != "all":
        chosen = _plain(chosen)
        listed = isinstance(chosen, list) and chosen and all(type(k) is int and 0 <= k < count for k in chosen)
        if not listed or len(set(chosen)) < len(chosen):
            raise ConfigError(f"train.lora.experts={chosen}: all, or different numbers from 0 to {count - 1} are "
                              "wanted")
        if config.shared:
            raise ConfigError(f"train.lora.experts={chosen}: with train.lora.shared=true all experts change alike; "
                              "take one of the two away")
        if config.text_encoder:
            raise ConfigError(f"train.lora.experts={chosen}: with train.lora.text_encoder=true the other experts would "
                              "be given another text than they know; take one of the two away")
    listed_words(recipe)
    prior_prompts(recipe)
    validate_stage(config, "train.lora", 1 if config.shared else count)
    if not config.targets:
        raise ConfigError("train.lora.targets=[]: nothing would be trained; give ends of layers' paths, such as to_q")
    layers = denoiser_layers(recipe.model.unet.config)
    try:
        matching_paths(layers, config.targets)
    except ValueError as error:
        raise ConfigError(f"train.lora.targets={_plain(config.targets)}: {error}") from error


def denoiser_layers(config: dict) -> dict[str, tuple[int, ...]]:
    """{path: shape of the weight} of a denoiser's layers that an adapter may change; nothing is allocated."""
    with paddle.LazyGuard():
        network = UNet2DConditionModel(**_plain(config))
    return {path: tuple(layer.weight.shape) for path, layer in adaptable_layers(network).items()}


def adapter_shapes(recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """Shapes of the matrices that the stage trains, in Paddle's layout."""
    config, layers = recipe.train.lora, denoiser_layers(recipe.model.unet.config)
    copies = 1 if config.shared else len(chosen_experts(recipe))
    shapes = [layers[path] for path in matching_paths(layers, config.targets)] * copies
    if config.text_encoder:
        text = recipe.model.text_encoder.config
        shapes += [(text["hidden_size"],) * 2] * (text["num_hidden_layers"] * len(TEXT_TARGETS))
    return tuple(part for shape in shapes for part in _pair(shape, config.rank))


def _pair(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], ...]:
    """(down, up) of a linear layer (in, out), or of a convolution (out, in, kh, kw)."""
    if len(shape) == 2:
        return (shape[0], rank), (rank, shape[1])
    return (rank, *shape[1:]), (shape[0], rank, 1, 1)
