"""Models that see a picture and a text, in Chinese or in English: how well they fit, as a cosine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from PIL import Image
from tqdm import tqdm

from ppvilg.files import damage_of

from ..drawing.folder import read_json
from .weights import read_safetensors, weights_sha256

CONFIGS = ("text_config", "vision_config")
WEIGHT_FILES = ("model.safetensors", "model_state.safetensors", "model_state.pdparams", "pytorch_model.bin")


class Classes(NamedTuple):
    """Names in paddlenlp.transformers."""

    model: str
    config: str
    processor: str


SCORERS = {
    "clip": Classes("CLIPModel", "CLIPConfig", "CLIPProcessor"),
    "chinese_clip": Classes("ChineseCLIPModel", "ChineseCLIPConfig", "ChineseCLIPProcessor"),
    "ernie_vil": Classes("ErnieViLModel", "ErnieViLConfig", "ErnieViLProcessor"),
}


class ImageTextScorer:
    """Cosines between pictures and texts.

    kind: "clip" (English), "chinese_clip" or "ernie_vil" (Chinese). weights: a folder, Paddle's or one that PyTorch's
    transformers wrote, with what its processor needs; or a name that PaddleNLP downloads. allow_pickle: take weights
    that are no safetensors. ValueError when the folder holds another model or lacks some of its weights.
    """

    def __init__(self, kind: str, weights: str | os.PathLike, allow_pickle: bool = False) -> None:
        import paddlenlp.transformers as library

        if kind not in SCORERS:
            raise ValueError(f"scorer={kind!r} is not one of {', '.join(SCORERS)}")
        self.kind, self.weights = kind, os.fspath(weights)
        model, config, processor = (getattr(library, name) for name in SCORERS[kind])
        if Path(weights).is_dir():
            _check_kind(Path(weights), kind)
            self.model = model(config.from_pretrained(self.weights))
            _load(self.model, Path(weights), kind, allow_pickle)
        elif Path(weights).is_absolute() or self.weights.startswith("."):
            raise FileNotFoundError(f"no folder {weights} with the weights of a {kind} model")
        elif not allow_pickle:
            raise ValueError(
                f"{weights} is no folder here, and what PaddleNLP would download of that name is a pickle, which can "
                "run code: set allow_pickle=true if you trust it"
            )
        else:
            self.model = model.from_pretrained(self.weights)
        self.processor = processor.from_pretrained(self.weights)
        self.model.eval()
        self.max_length = _positions(self.model.config)
        self.sha256 = weights_sha256(self.model)

    @paddle.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings (N, D) of length one."""
        pixels = np.stack([prepare(image, self.processor.image_processor) for image in images])  # (N, 3, H, W)
        return _unit(self.model.get_image_features(pixel_values=paddle.to_tensor(pixels)))

    @paddle.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) of length one; texts longer than the model reads are cut."""
        settings = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pd"}
        tokens = self.processor(text=list(texts), return_attention_mask=True, **settings)
        names = ("input_ids", "attention_mask", "token_type_ids")
        if self.kind == "clip":  # its text model has no kinds of tokens
            names = names[:2]
        return _unit(self.model.get_text_features(**{name: tokens[name] for name in names if name in tokens}))

    def similarities(
        self, images: Sequence[Image.Image], texts: Sequence[str], batch_size: int = 32, description: str = ""
    ) -> np.ndarray:
        """Cosine (N,) of each picture with the text of the same number; ValueError when the numbers differ."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts do not pair up")
        values = []
        for start in tqdm(range(0, len(texts), batch_size), desc=description or self.kind, unit="batch"):
            rows = range(start, min(start + batch_size, len(texts)))
            pictures = self.embed_images([images[i] for i in rows])
            values.append((pictures * self.embed_texts([texts[i] for i in rows])).sum(axis=1))
        return np.concatenate(values)


def prepare(image: Image.Image, settings: Any) -> np.ndarray:
    """Pixels (3, H, W) float32 as the settings of an image processor ask.

    PaddleNLP's own processors do not know sizes of a height and a width, which published Chinese CLIPs have.
    """
    image, size = image.convert("RGB"), settings.size
    if settings.do_resize and "shortest_edge" in size:
        edge, short, long = size["shortest_edge"], min(image.size), max(image.size)
        sides = [edge if side == short else int(edge * long / short) for side in image.size]
        image = image.resize(sides, settings.resample)
    elif settings.do_resize:
        image = image.resize((size["width"], size["height"]), settings.resample)
    if settings.do_center_crop:
        width, height = settings.crop_size["width"], settings.crop_size["height"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))  # black where the picture is smaller
    pixels = np.asarray(image, dtype=np.float64)
    if settings.do_rescale:
        pixels = pixels * settings.rescale_factor
    if settings.do_normalize:
        pixels = (pixels - settings.image_mean) / settings.image_std
    return pixels.transpose(2, 0, 1).astype(np.float32)


def _unit(features: paddle.Tensor) -> np.ndarray:
    values = features.numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the scorer gives embeddings that are not finite numbers: are its weights damaged?")
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _positions(config: Any) -> int:
    text = getattr(config, "text_config", None)
    return int(getattr(text, "max_position_embeddings", None) or config.max_text_length)


def _check_kind(folder: Path, kind: str) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is no folder of a {kind} model")
    found = read_json(folder / "config.json").get("model_type")
    if found not in (None, kind):
        raise ValueError(f"{folder} holds a {found} model, scorer={kind} was asked for")


def _load(model: Any, folder: Path, kind: str, allow_pickle: bool) -> None:
    """Set every weight of the model from the folder's file, converting names where PyTorch wrote it."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no weights in {folder}: needs {WEIGHT_FILES[0]}")
    state, from_torch = _read_state(path, allow_pickle)
    if from_torch:
        state = _rename(state, model, kind, folder)
    own = model.state_dict()
    wrong = [name for name in own if name not in state or list(state[name].shape) != list(own[name].shape)]
    wrong = [name for name in wrong if not name.endswith("position_ids")]
    if wrong:
        raise ValueError(f"{path} lacks {wrong[0]} in the shape that config.json asks for ({len(wrong)} such)")
    model.set_state_dict({name: np.asarray(state[name], dtype=np.float32) for name in own if name in state})


def _read_state(path: Path, allow_pickle: bool) -> tuple[Mapping[str, np.ndarray], bool]:
    """Arrays by name, and whether the names are PyTorch's."""
    if path.suffix != ".pdparams":
        return read_safetensors(path)
    if not allow_pickle:
        raise ValueError(f"{path} is a pickle, which can run code: set allow_pickle=true if you trust where it is from")
    try:
        return paddle.load(str(path), return_numpy=True), False
    except Exception as error:  # unpickling damaged bytes raises whatever they lead to
        raise ValueError(damage_of(path)) from error


def _rename(state: Mapping[str, np.ndarray], model: Any, kind: str, folder: Path) -> dict[str, np.ndarray]:
    """Weights under Paddle's names, by PaddleNLP's own tables; linear layers are transposed."""
    if kind == "clip":
        mappings = type(model)._get_name_mappings(model.config)
    elif kind == "chinese_clip":
        from paddlenlp.transformers.chineseclip.converter import ChineseCLIPConverter

        layers = {key: {"num_hidden_layers": getattr(model.config, key).num_hidden_layers} for key in CONFIGS}
        mappings = ChineseCLIPConverter(str(folder)).get_name_mapping(layers)
    else:
        raise ValueError(f"no weights of PyTorch are known for scorer={kind}; use Paddle's")
    renamed = {}
    for mapping in mappings:
        if mapping.source_name in state:
            value = np.asarray(state[mapping.source_name])
            value = value.T if mapping.action == "transpose" else value
            renamed[mapping.target_name] = value.reshape(1) if value.ndim == 0 else value
    return renamed
