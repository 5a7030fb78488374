"""The "clipscore" suite: how well pictures fit their prompts, by models that see both, in Chinese or in English.

Hessel et al. 2021 (arXiv 2104.08718): the cosine between a picture's and its text's embedding; CLIPScore is
2.5 max(cosine, 0). Which model measured belongs to the number: cosines of two models cannot be compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from omegaconf import MISSING
from PIL import Image
from tqdm import tqdm

from ppvilg.config import ConfigError, bounded, choice
from ppvilg.data import BadSample

from ..drawing.folder import METADATA, PROTOCOL, read_json, write_whole
from ..drawing.painter import Painter
from ..drawing.prompts import choose_prompts, read_prompts
from ..drawing.sampling import Sampling
from ..metrics.features import Pictures
from ..metrics.inception import weights_sha256
from ..metrics.intervals import average
from ..metrics.torch_file import read_torch_weights
from ..reporting.html import Report
from ..reporting.markdown import interval_text, table
from ..reporting.protocol import REPORT, about, open_output, write_results
from .fid import scale_name

WEIGHT = 2.5  # of the score of Hessel et al.
CONFIGS = ("text_config", "vision_config")
SHOWN = 24  # pictures of a kind in the report
WEIGHT_FILES = ("model_state.pdparams", "model.safetensors", "pytorch_model.bin")


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
    transformers wrote, with what its processor needs; or a name that PaddleNLP downloads. ValueError when the folder
    holds another model or lacks some of its weights.
    """

    def __init__(self, kind: str, weights: str | os.PathLike) -> None:
        import paddlenlp.transformers as library

        if kind not in SCORERS:
            raise ValueError(f"scorer={kind!r} is not one of {', '.join(SCORERS)}")
        self.kind, self.weights = kind, os.fspath(weights)
        model, config, processor = (getattr(library, name) for name in SCORERS[kind])
        if Path(weights).is_dir():
            _check_kind(Path(weights), kind)
            self.model = model(config.from_pretrained(self.weights))
            _load(self.model, Path(weights), kind)
        elif Path(weights).is_absolute() or self.weights.startswith("."):
            raise FileNotFoundError(f"no folder {weights} with the weights of a {kind} model")
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


def _load(model: Any, folder: Path, kind: str) -> None:
    """Set every weight of the model from the folder's file, converting names where PyTorch wrote it."""
    present = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise FileNotFoundError(f"no weights in {folder}: needs one of {', '.join(WEIGHT_FILES)}")
    state, from_torch = _read_state(present[0])
    if from_torch:
        state = _rename(state, model, kind, folder)
    own = model.state_dict()
    wrong = [name for name in own if name not in state or list(state[name].shape) != list(own[name].shape)]
    wrong = [name for name in wrong if not name.endswith("position_ids")]
    if wrong:
        raise ValueError(f"{present[0]} lacks {wrong[0]} in the shape that config.json asks for ({len(wrong)} such)")
    model.set_state_dict({name: np.asarray(state[name], dtype=np.float32) for name in own if name in state})


def _read_state(path: Path) -> tuple[Mapping[str, np.ndarray], bool]:
    """Arrays by name, and whether the names are PyTorch's."""
    if path.suffix == ".pdparams":
        return paddle.load(str(path), return_numpy=True), False
    if path.suffix == ".bin":
        return read_torch_weights(path), True
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as opened:
        from_torch = (opened.metadata() or {}).get("format") == "pt"
        return {name: opened.get_tensor(name) for name in opened.keys()}, from_torch  # noqa: SIM118


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


# ---- suite ----


@dataclass(frozen=True)
class ClipScoreRecipe(Sampling):
    """Everything the numbers depend on."""

    suite: str = "clipscore"
    output: str = MISSING
    scorer: str = choice(MISSING, SCORERS)
    weights: str = MISSING  # folder or PaddleNLP's name
    pictures: str | None = None  # a folder that was drawn before, with its prompts; None: the model draws
    prompts: str | None = None  # .txt, .jsonl, COCO .json or samples
    language: str = "zh"  # of the captions of samples
    text: str = "prompt"  # key of the prompt that the scorer reads: prompt_en for an English scorer of Chinese prompts
    count: int = bounded(1000, least=1)
    prompt_seed: int = bounded(0, least=0)
    draw_size: list[int] | None = bounded(None, least=1)  # width, height; None: those of the prompts, else the model's
    scorer_batch_size: int = bounded(32, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draw_size is not None and len(self.draw_size) != 2:
            raise ConfigError(f"draw_size={self.draw_size} must be [width, height] in pixels, or null")
        if self.pictures is None and self.prompts is None:
            raise ConfigError("give prompts= for the model to draw, or pictures= that were drawn")


class ClipScoreSuite:
    """One evaluation: draw what is missing, score every picture with its prompt, write results and report."""

    def __init__(self, recipe: ClipScoreRecipe):
        self.recipe = recipe
        self.painter: Painter | None = None
        if recipe.pictures is None:
            self.painter = Painter(recipe)
            self.prompts = self._choose_prompts()
        else:
            self.prompts = read_folder_prompts(Path(recipe.pictures))
        missing = [i for i, prompt in enumerate(self.prompts) if not isinstance(prompt.get(recipe.text), str)]
        if missing:
            known = ", ".join(self.prompts[missing[0]])
            raise ValueError(f"prompt {missing[0]} has no text={recipe.text!r}, only {known}")
        self.scorer = ImageTextScorer(recipe.scorer, recipe.weights)
        self.output = open_output(recipe.output, "clipscore")

    def _choose_prompts(self) -> list[dict]:
        recipe = self.recipe
        prompts = choose_prompts(read_prompts(recipe.prompts, recipe.language), recipe.count, recipe.prompt_seed)
        if recipe.draw_size is None:
            return prompts
        width, height = recipe.draw_size
        return [{**prompt, "width": width, "height": height} for prompt in prompts]

    def run(self) -> dict:
        """Draw, score and write everything; returns what results.json holds."""
        folder = Path(self.recipe.pictures or self.output / "pictures")
        if self.painter is not None:
            self.painter.draw(folder, self.prompts)
        pictures = Pictures(folder)
        prompts = pair(pictures, self.prompts)
        texts = [prompt[self.recipe.text] for prompt in prompts]
        try:
            cosines = self.scorer.similarities(pictures, texts, self.recipe.scorer_batch_size, "scores")
        except BadSample as error:
            hint = "" if self.painter is None else "; remove it to have it drawn again"
            raise ValueError(f"{error}{hint}") from error
        report = {**about("clipscore", self.recipe, self._hashes()), "generated": self._generated(folder)}
        report["results"] = summarise(prompts, cosines)
        write_results(self.output, report)
        self._write_scores(pictures, texts, cosines)
        self._write_page(report, pictures, texts, cosines)
        return report

    def _hashes(self) -> dict:
        return {"model": self.painter.sha256 if self.painter else None, "scorer": self.scorer.sha256}

    def _generated(self, folder: Path) -> dict:
        if self.painter is not None:
            return self.painter.protocol()
        return read_json(folder / PROTOCOL) if (folder / PROTOCOL).is_file() else {"source": "pictures"}

    def _write_scores(self, pictures: Pictures, texts: Sequence[str], cosines: np.ndarray) -> None:
        lines = [
            json.dumps({"picture": name, "text": text, "cosine": float(value)}, ensure_ascii=False)
            for name, text, value in zip(pictures.names, texts, cosines)
        ]
        write_whole(self.output / "scores.jsonl", "".join(line + "\n" for line in lines))

    def summary(self, report: dict) -> str:
        """Cosine and score with their intervals."""
        return table(HEADER, rows(report["results"]))

    def _write_page(self, report: dict, pictures: Pictures, texts: Sequence[str], cosines: np.ndarray) -> None:
        recipe, page = self.recipe, Report(f"clipscore: {self.recipe.pictures or self.recipe.model}")
        page.table(HEADER, rows(report["results"]))
        scale = scale_name(report["generated"].get("guidance_scale"))
        page.paragraph(f"Measured by {recipe.scorer}, {recipe.weights}; guidance {scale}. Intervals are over prompts.")
        page.plot(histogram_figure(cosines), "Cosines of pictures with their prompts, and their mean.")
        order = np.argsort(-cosines)
        for title, chosen in (("Highest", order[:SHOWN]), ("Lowest", order[::-1][:SHOWN])):
            page.heading(title)
            page.pictures([pictures[i] for i in chosen], [f"{cosines[i]:.3f} {texts[i]}" for i in chosen])
        page.heading("Protocol")
        page.data({key: report[key] for key in ("protocol", "generated", "versions", "hashes")})
        page.write(self.output / REPORT)


def read_folder_prompts(folder: Path) -> list[dict]:
    """The prompts of a folder of pictures in GenEval's layout; FileNotFoundError when it says nothing of them."""
    if not (folder / METADATA).is_file():
        raise FileNotFoundError(f"{folder} has no {METADATA}: which picture belongs to which prompt is not known")
    return read_prompts(folder / METADATA)


def pair(pictures: Pictures, prompts: Sequence[dict]) -> list[dict]:
    """The prompt of each picture `00012/samples/0003.png`; ValueError when pictures and prompts do not pair up."""
    numbers = [int(name.split("/")[0]) for name in pictures.names]
    wrong = sorted(set(numbers) ^ set(range(len(prompts))))
    if wrong:
        side = "no picture" if wrong[0] < len(prompts) else "no prompt"
        raise ValueError(f"{pictures.path} and its prompts do not pair up: there is {side} for number {wrong[0]:05d}")
    return [{**prompts[number], "number": number} for number in numbers]


def summarise(prompts: Sequence[dict], cosines: np.ndarray) -> dict:
    """Means over prompts of the cosine and of CLIPScore, with intervals; a prompt is one unit."""
    by_prompt: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, cosines):
        by_prompt.setdefault(prompt["number"], []).append(float(value))
    cosine = [float(np.mean(values)) for values in by_prompt.values()]
    score = [float(np.mean(WEIGHT * np.maximum(values, 0))) for values in by_prompt.values()]
    return {"cosine": average(cosine), "clip_score": average(score)}


HEADER = ("", "mean", "95 % interval", "prompts")


def rows(results: dict) -> list[list]:
    """Lines under HEADER."""
    return [
        [name, f"{entry['mean']:.4f}", interval_text(entry["interval"], 4), entry["count"]]
        for name, entry in results.items()
    ]


def histogram_figure(cosines: np.ndarray) -> Any:
    """How the cosines are spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(cosines, bins=40, color="#1f77b4")
    axes.axvline(cosines.mean(), color="black", linewidth=1)
    axes.set(xlabel="cosine", ylabel="pictures")
    return figure
