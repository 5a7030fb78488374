"""Recipe -> live components: tokenizer, text encoder, autoencoder, denoiser, scheduler, data."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from ppdiffusers.configuration_utils import FrozenDict

from ppvilg.config import ConfigError, Recipe, unknown_key
from ppvilg.data import ImageTransform, RecordSource, open_source
from ppvilg.engine.checkpoint import replaced_folder
from ppvilg.engine.parallel import distributed
from ppvilg.knowledge import TextKnowledge, VisualKnowledge, add_marks, build_tokenizer
from ppvilg.models import MoDEUNet2DConditionModel, PatchAutoencoderKL, block_origins


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
    try:
        return open_source(recipe.data.train, recipe.data.annotations), open_source(recipe.data.validation)
    except ValueError as error:  # nothing usable in it, or not a data set at all; the text names the folder
        raise ConfigError(f"data: {error}") from error


def build_transform(recipe: Recipe) -> ImageTransform:
    """Pictures of any size -> the recipe's shapes."""
    shapes = [tuple(shape) for shape in recipe.data.shapes]
    return ImageTransform(shapes, recipe.data.crop, recipe.data.horizontal_flip)


def check_settings(recipe: Recipe) -> None:
    """Keys of the free-form parts must be the stock classes' own. Raises ConfigError naming the key."""
    model = recipe.model
    text_settings = set(inspect.signature(ErnieConfig.__init__).parameters) - {"self", "kwargs", "vocab_size"}
    for name, node, known in (
        ("model.text_encoder.config", model.text_encoder.config, text_settings - {"pad_token_id"}),
        ("model.vae.config", model.vae.config, _settings_of(_vae_class(recipe))),
        ("model.unet.config", model.unet.config, _settings_of(UNet2DConditionModel)),
        ("model.scheduler", model.scheduler, _settings_of(DDIMScheduler)),
    ):
        for key in node:
            if key not in known:
                raise ConfigError(unknown_key(f"{name}.", key, known))


def _settings_of(cls) -> set:
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


def check_components(recipe: Recipe, vae, text_encoder: ErnieModel, unet: MoDEUNet2DConditionModel) -> None:
    """Sizes of networks must fit together, also where they came from files. Raises ConfigError."""
    pairs = (
        ("channels of the autoencoder's latents", vae.config.latent_channels, "denoiser's channels", unet.in_channels),
        ("width of the text encoder", text_encoder.config.hidden_size, "denoiser's cross_attention_dim",
         unet.config.unet["cross_attention_dim"]),
        ("model.scheduler.num_train_timesteps", recipe.model.scheduler.get("num_train_timesteps", 1000),
         "denoiser's num_train_timesteps", unet.num_train_timesteps),
    )
    for one, left, other, right in pairs:
        if left != right:
            raise ConfigError(f"{one} ({left}) do not fit the {other} ({right})")
    positions = text_encoder.config.max_position_embeddings
    if recipe.model.tokenizer.max_length > positions:
        raise ConfigError(f"model.tokenizer.max_length={recipe.model.tokenizer.max_length} is longer than the "
                          f"{positions} positions of the text encoder")


def build_tokenizer_for(recipe: Recipe, captions: Callable[[], list[str]], data_hash: str, folder: Path
                        ) -> ErnieTokenizer:
    """The recipe's stock tokenizer with the marks added, or one whose vocabulary comes from `captions`.

    The latter is kept in `folder` beside `data_hash`, and made again when the data are others.
    """
    if recipe.model.tokenizer.pretrained:
        tokenizer = _load_tokenizer(recipe.model.tokenizer.pretrained)
        add_marks(tokenizer)
        return tokenizer
    note = folder / "data.sha256"
    if distributed.is_main() and not (note.is_file() and note.read_text(encoding="utf-8") == data_hash):
        with replaced_folder(folder) as partial:
            build_tokenizer(captions(), partial)
            (partial / note.name).write_text(data_hash, encoding="utf-8")
    distributed.barrier()
    return _load_tokenizer(str(folder))


def _load_tokenizer(name: str) -> ErnieTokenizer:
    tokenizer = ErnieTokenizer.from_pretrained(name)
    tokenizer.init_kwargs.pop("special_tokens_map_file", None)  # a path on this machine, not to be saved
    return tokenizer


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
    part, cls = recipe.model.vae, _vae_class(recipe)
    if folder is not None:
        return _without_path(cls.from_pretrained(str(folder)))
    seed_weights(recipe.seed, 2)
    if part.pretrained:
        return _without_path(cls.from_pretrained(part.pretrained, from_diffusers=part.from_diffusers))
    return cls(**plain(part.config))


def _vae_class(recipe: Recipe) -> type:
    return PatchAutoencoderKL if "patch_size" in recipe.model.vae.config else AutoencoderKL


def _without_path(vae: AutoencoderKL) -> AutoencoderKL:
    """A path on the machine that loaded the weights has no business in the files saved from here."""
    vae._internal_dict = FrozenDict({key: value for key, value in vae.config.items() if key != "_name_or_path"})
    return vae


def build_base_unet(recipe: Recipe) -> MoDEUNet2DConditionModel:
    """One denoiser for all timesteps, new or from published weights."""
    part = recipe.model.unet
    seed_weights(recipe.seed, 3)
    steps = recipe.model.scheduler.get("num_train_timesteps", 1000)
    if part.pretrained:
        unet = UNet2DConditionModel.from_pretrained(part.pretrained, from_diffusers=part.from_diffusers)
        return MoDEUNet2DConditionModel.from_base(unet, 1, num_train_timesteps=steps)
    return MoDEUNet2DConditionModel(num_experts=1, num_train_timesteps=steps, unet=plain(part.config))


def build_experts(folder: Path, boundaries: list[int], experts: list[int]) -> MoDEUNet2DConditionModel:
    """Some of the experts of a mixture, each a copy of the denoiser in `folder` that owns the middle of its block.

    The others stay absent. `folder` is the `unet` folder of a base, or of a mixture with another number of experts.
    """
    source = MoDEUNet2DConditionModel.from_pretrained(str(folder), experts=[])
    mixture = MoDEUNet2DConditionModel(len(boundaries) - 1, boundaries, source.num_train_timesteps,
                                       dict(source.config.unet), experts=experts)
    origins = block_origins(boundaries, source.boundaries)
    for expert in experts:
        origin = origins[expert]
        if origin not in source.loaded_experts:
            source.load_expert(folder, origin)
        mixture.experts[expert].set_state_dict(source.experts[origin].state_dict())
    mixture.eval()
    return mixture


@contextmanager
def saving_present_experts(unet: MoDEUNet2DConditionModel) -> Iterator[None]:
    """Inside, saving a denoiser writes its config and the experts that are here, rather than refusing."""

    def save(save_directory, dtype: str | None = None, **_):
        for expert in unet.loaded_experts:
            unet.save_expert(save_directory, expert, dtype)
        unet.save_config(str(save_directory))

    if len(unet.loaded_experts) == unet.num_experts:
        yield
        return
    unet.save_pretrained = save
    try:
        yield
    finally:
        del unet.save_pretrained


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
        min_score=part.min_score,
        synonyms={label: list(names) for label, names in part.synonyms.items()},
    )
