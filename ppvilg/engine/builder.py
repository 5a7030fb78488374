"""Recipe -> live components: tokenizer, text encoder, autoencoder, denoiser, scheduler, data."""
from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
from omegaconf import OmegaConf
from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from ppdiffusers.configuration_utils import FrozenDict

from ppvilg.config import ConfigError, Recipe
from ppvilg.data import ImageTransform, MixedSource, RecordSource, fit_shapes, open_source, repeats_of
from ppvilg.engine.checkpoint import replaced_folder
from ppvilg.engine.parallel import distributed
from ppvilg.engine.weights import read_weights
from ppvilg.files import file_sha256, read_json
from ppvilg.knowledge import NameTable, TextKnowledge, VisualKnowledge, add_marks, build_tokenizer, open_names
from ppvilg.models import MoDEUNet2DConditionModel, PatchAutoencoderKL, block_origins

logger = logging.getLogger(__name__)
TOKENIZER_NOTE = "made_of.json"


def plain(node) -> dict:
    """A free-form part of the recipe as ordinary Python values."""
    return OmegaConf.to_container(node, resolve=True)


def seed_weights(seed: int, component: int) -> None:
    """Seed everything that initial weights are drawn from; each component has its own stream."""
    state = np.random.SeedSequence([seed, 7, component]).generate_state(2)
    paddle.seed(int(state[0] >> 1))
    np.random.seed(int(state[1]))


def build_sources(recipe: Recipe) -> tuple[RecordSource | MixedSource, RecordSource | MixedSource]:
    """(training, validation) sources; ConfigError where there is none, or nothing usable in it.

    An adapter without validation data is validated on what it learns from.
    """
    if recipe.train.lora.steps and not recipe.data.validation:  # a few pictures, with nothing to spare
        source = _training_source(recipe)
        return source, source
    if not recipe.data.validation:
        raise ConfigError("data.validation is not set: experts are judged against their base on data neither has seen. "
                          "Give a second folder or shard pattern")
    return _training_source(recipe), _open_source("validation", recipe.data.validation)


def _training_source(recipe: Recipe) -> RecordSource | MixedSource:
    data = recipe.data
    if not data.sets:
        return _open_source("train", data.train, data.annotations)
    sources = [_open_source(f"sets[{number}].path", each.path, each.annotations)
               for number, each in enumerate(data.sets)]
    if data.sets[0].weight is not None:
        return MixedSource(sources, repeats_of([len(each) for each in sources], [each.weight for each in data.sets]))
    return MixedSource(sources, [each.repeats or 1.0 for each in data.sets])


def with_found_shapes(recipe: Recipe, source: RecordSource | MixedSource) -> Recipe:
    """The recipe with shapes that fit the data in the place of `data.buckets=auto`; says how well they do."""
    data = recipe.data
    if data.buckets != "auto":
        return recipe
    multiple, (width, height) = size_multiple(recipe), data.shapes[0]
    try:
        fitted = fit_shapes(source.sizes, width * height, multiple, data.max_buckets)
    except ValueError as error:
        raise ConfigError(f"data.shapes=[[{width}, {height}]]: {error}") from error
    if distributed.is_main():
        told = "; ".join(f"{each.shape[0]}x{each.shape[1]} {each.share:.1%} ({each.cropped:.1%})" for each in fitted)
        logger.info("data.buckets=auto: shape, share of the pictures (cropped away): %s", told)
    found = OmegaConf.merge(recipe, {"data": {"buckets": "listed", "shapes": [list(each.shape) for each in fitted]}})
    OmegaConf.set_readonly(found, True)
    return found


def size_multiple(recipe: Recipe) -> int:
    """What sides of pictures must be multiples of: the autoencoder's factor times the denoiser's deepest level.

    64, as in Stable Diffusion, where a part is known by its name alone.
    """
    vae, unet = ({**plain(recipe.model[part].config), **_published(recipe.model[part].pretrained)}
                 for part in ("vae", "unet"))
    if any(part.pretrained and not settings for part, settings in ((recipe.model.vae, vae), (recipe.model.unet, unet))):
        return 64
    levels = len(vae.get("block_out_channels", [64])) + len(unet.get("block_out_channels", (0,) * 4)) - 2
    return 2**levels * vae.get("patch_size", 1)


def _published(folder: str | None) -> dict:
    path = Path(folder or "") / "config.json"
    settings = read_json(path) if folder and path.is_file() else {}
    return settings.get("unet", settings)


def _open_source(key: str, place: str, annotations: str | None = None) -> RecordSource:
    if annotations is not None and not Path(annotations).is_file():
        raise ConfigError(f"data.annotations={annotations}: there is no such file; give the JSONL beside the shards, "
                          "or null to look for annotations.jsonl there")
    try:
        return open_source(place, annotations)
    except (ValueError, OSError) as error:  # nothing usable in it, not a data set at all, or not to be read
        raise ConfigError(f"data.{key}={place}: {error}") from error


def build_transform(recipe: Recipe) -> ImageTransform:
    """Pictures of any size -> the recipe's shapes. ConfigError where these cannot be drawn."""
    shapes = [tuple(shape) for shape in recipe.data.shapes]
    try:
        return ImageTransform(shapes, recipe.data.crop, recipe.data.horizontal_flip)
    except ValueError as error:
        raise ConfigError(f"data.shapes={[list(shape) for shape in shapes]}: {error}") from error


def build_tokenizer_for(recipe: Recipe, captions: Callable[[], Iterable[str]], data_hash: str, folder: Path,
                        in_use: bool = False) -> ErnieTokenizer:
    """The recipe's stock tokenizer with the marks added, or one whose vocabulary comes from `captions`.

    The latter is kept in `folder` with a note of `data_hash` and of its files' own, and made again when either differs;
    where it is `in_use` by checkpoints, other data alone are no reason.
    """
    place = recipe.model.tokenizer.pretrained
    if place:
        tokenizer = read_weights("model.tokenizer.pretrained", place, lambda: load_tokenizer(place))
        add_marks(tokenizer)
        return tokenizer
    if distributed.is_main():
        problem, of_other_data = _tokenizer_problem(folder, data_hash)
        if of_other_data and in_use:
            logger.warning("%s is kept, for checkpoints were trained with it, though %s: characters that are not in it "
                           "are unknown to the model", folder, problem)
        elif problem:
            if folder.exists():
                logger.warning("%s is made again: %s", folder, problem)
            with replaced_folder(folder) as partial:
                build_tokenizer(captions(), partial)
                note = {"data": data_hash, "files": {path.name: file_sha256(path) for path in partial.iterdir()}}
                (partial / TOKENIZER_NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    distributed.barrier()
    return load_tokenizer(str(folder))


def _tokenizer_problem(folder: Path, data_hash: str) -> tuple[str | None, bool]:
    """(why the vocabulary in a folder cannot be used, None where it can; whether that is other data alone)."""
    try:
        note = json.loads((folder / TOKENIZER_NOTE).read_text(encoding="utf-8"))
        for name, expected in note["files"].items():
            if file_sha256(folder / name) != expected:
                return f"{name} is damaged", False
        if note["data"] != data_hash:
            return "its words are those of other data", "vocab.txt" in note["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is not whole ({type(error).__name__})", False
    return None, False


def load_tokenizer(name: str) -> ErnieTokenizer:
    """A stock tokenizer from a folder or by its name, as it is."""
    tokenizer = ErnieTokenizer.from_pretrained(name)
    tokenizer.init_kwargs.pop("special_tokens_map_file", None)  # a path on this machine, not to be saved
    return tokenizer


def build_text_encoder(recipe: Recipe, tokenizer: ErnieTokenizer) -> ErnieModel:
    """ERNIE with an embedding for every token of the tokenizer, marks included."""
    part = recipe.model.text_encoder
    seed_weights(recipe.seed, 1)
    if part.pretrained:
        encoder = read_text_encoder(recipe)
        add_marks(tokenizer, encoder)
        return encoder
    settings = dict(plain(part.config), vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return ErnieModel(ErnieConfig(**settings))


def read_text_encoder(recipe: Recipe) -> ErnieModel:
    """The published text encoder as it is, without our marks. ConfigError where it cannot be read."""
    place = recipe.model.text_encoder.pretrained
    return read_weights("model.text_encoder.pretrained", place, lambda: ErnieModel.from_pretrained(place))


def build_vae(recipe: Recipe, folder: Path | None = None) -> AutoencoderKL:
    """The autoencoder of a finished stage in `folder`, of published weights, or a new one."""
    part, cls = recipe.model.vae, vae_class(recipe)
    if folder is not None:
        return _without_path(read_weights("output", folder, lambda: cls.from_pretrained(str(folder))))
    seed_weights(recipe.seed, 2)
    if part.pretrained:
        return _without_path(read_weights("model.vae.pretrained", part.pretrained, lambda: cls.from_pretrained(
            part.pretrained, from_diffusers=part.from_diffusers)))
    return cls(**plain(part.config))


def vae_class(recipe: Recipe) -> type:
    """The stock class, or the one that works on patches where the recipe gives their size."""
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
        unet = read_weights("model.unet.pretrained", part.pretrained, lambda: UNet2DConditionModel.from_pretrained(
            part.pretrained, from_diffusers=part.from_diffusers))
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
        names=build_names(recipe),
    )


def build_names(recipe: Recipe) -> NameTable:
    """What detected objects are called. ConfigError where a table of the recipe is missing or contradicts itself."""
    tables = recipe.knowledge.vision.names
    try:
        return open_names(tables)
    except (ValueError, OSError) as error:
        raise ConfigError(f"knowledge.vision.names={list(tables)}: {error}") from error
