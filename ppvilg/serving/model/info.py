"""What a model says of itself in its JSON files, read without Paddle: sizes, experts, defaults. And its hash."""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ppvilg.files import digest_of, file_sha256, read_json
from ppvilg.knowledge import STYLES

from .adapters import OfferedAdapter, read_offers

INDEX, MANIFEST, ABOUT = "model_index.json", "manifest.json", "about.json"
SAMPLERS = ("ddim", "ddpm", "pndm", "dpmsolver++", "unipc", "euler", "euler_ancestral")
SHAPE_NAMES = {"square": ("方图", "Square"), "portrait": ("长图", "Portrait"), "landscape": ("横图", "Landscape")}
# Of the service that the model's paper describes: 1024*1024, 1024*1536, 1536*1024.
SHAPE_RATIOS = {"square": (1.0, 1.0), "portrait": (1.0, 1.5), "landscape": (1.5, 1.0)}
_WEIGHED = (".safetensors", ".json", ".txt", ".model", ".pdiparams", ".onnx")


@dataclass(frozen=True)
class ModelInfo:
    """A model as the service describes it; sizes are (width, height) in pixels."""

    name: str
    folder: Path
    is_bundle: bool
    num_experts: int
    boundaries: tuple[int, ...]
    num_train_timesteps: int
    size_multiple: int
    shapes: dict[str, tuple[int, int]]
    default_sampler: str
    default_num_inference_steps: int
    default_guidance_scale: float | tuple[float, ...]
    default_eta: float
    key_token_weight: float
    max_length: int
    mark: bool
    styles_learned: tuple[str, ...] | None = None  # None: the model does not say
    shapes_learned: tuple[str, ...] | None = None
    adapters: Mapping[str, OfferedAdapter] = field(default_factory=dict)  # that requests may choose, by name

    @property
    def default_size(self) -> tuple[int, int]:
        return self.shapes["square"]

    @property
    def max_pixels(self) -> int:
        """A picture may have four times the pixels of the model's largest shape."""
        return 4 * max(width * height for width, height in self.shapes.values())

    def fits(self, width: int, height: int) -> bool:
        """Whether the model draws this size."""
        whole = width % self.size_multiple == 0 and height % self.size_multiple == 0
        return whole and min(width, height) > 0 and width * height <= self.max_pixels

    def nearest_shape(self, width: int, height: int) -> tuple[int, int]:
        """The model's shape whose ratio of sides is nearest to the one asked for."""
        ratio = math.log(width / height)
        return min(self.shapes.values(), key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


def find_model(name_or_folder: str) -> Path:
    """Folder of a zoo name, a pipeline folder or a bundle. FileNotFoundError: none of them."""
    folder = Path(name_or_folder)
    if any((folder / name).is_file() for name in (INDEX, MANIFEST)):
        return folder
    zoo = Path(str(importlib.resources.files("ppvilg"))) / "zoo"
    names = sorted(path.parent.name for path in zoo.glob(f"*/{INDEX}"))
    if name_or_folder in names:
        return zoo / name_or_folder
    if folder.is_dir():
        raise FileNotFoundError(f"{folder} is neither a pipeline folder (no {INDEX}) nor a bundle (no {MANIFEST})")
    raise FileNotFoundError(f"{name_or_folder!r} is neither a folder nor a model of the zoo ({', '.join(names)})")


def read_model(name_or_folder: str, adapters: Mapping[str, str] | None = None) -> ModelInfo:
    """Reads the JSON files of a model. FileNotFoundError and ValueError name what is missing or wrong.

    adapters: paths of those that requests may choose, by name.
    """
    folder = find_model(name_or_folder)
    try:
        info = _read_model(folder)
        if adapters and info.is_bundle:
            raise ValueError(f"{folder} is a bundle, whose graphs stay as exported: export the model with --lora")
        return replace(info, adapters=read_offers(adapters or {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: its settings are not those of a model ({error!r}): copy it again") from error


def _read_model(folder: Path) -> ModelInfo:
    is_bundle = not (folder / INDEX).is_file()
    if is_bundle:
        manifest = read_json(folder / MANIFEST)
        index, routing, components = manifest.get("pipeline"), manifest["routing"], manifest["components"]
        if index is None:
            raise ValueError(f"{folder} holds experts alone: export the whole pipeline to serve it")
        unet, vae = components["unet"], components["vae"]
    else:
        index, vae = read_json(folder / INDEX), read_json(folder / "vae" / "config.json")
        unet = routing = read_json(folder / "unet" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    stock = unet.get("unet", unet)
    factor = 2 ** (len(vae["block_out_channels"]) - 1) * (vae.get("patch_size") or 1)
    multiple = factor * 2 ** (len(stock["block_out_channels"]) - 1)
    scale = index.get("default_guidance_scale", 7.5)
    return ModelInfo(
        name=folder.resolve().name,
        folder=folder,
        is_bundle=is_bundle,
        num_experts=routing["num_experts"],
        boundaries=tuple(routing["boundaries"]),
        num_train_timesteps=routing["num_train_timesteps"],
        size_multiple=multiple,
        shapes=_shapes(stock.get("sample_size"), factor, multiple),
        default_sampler=_sampler(scheduler.get("_class_name", "")),
        default_num_inference_steps=index.get("default_num_inference_steps", 50),
        default_guidance_scale=tuple(scale) if isinstance(scale, list) else float(scale),
        default_eta=float(index.get("default_eta", 0.0)),
        key_token_weight=float(index.get("key_token_weight", 0.01)),
        max_length=int(index.get("max_length", 64)),
        mark=bool(index.get("mark", True)),
        **_learned(folder / ABOUT),
    )


def model_hash(folder: str | os.PathLike) -> str:
    """One hash over the files that decide what a model draws; of a bundle, over its manifest, which has the hashes."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return file_sha256(folder / MANIFEST)
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in _WEIGHED and path.name != ABOUT and path.is_file()
    )
    return digest_of([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])


def describe(info: ModelInfo, hash: str | None) -> dict:
    """A model as JSON, without where it is on the disk."""
    return {
        "name": info.name,
        "hash": hash,
        "num_experts": info.num_experts,
        "boundaries": list(info.boundaries),
        "num_train_timesteps": info.num_train_timesteps,
        "size_multiple": info.size_multiple,
        "shapes": [
            {
                "id": id,
                "zh": SHAPE_NAMES[id][0],
                "en": SHAPE_NAMES[id][1],
                "width": width,
                "height": height,
                "learned": None if info.shapes_learned is None else id in info.shapes_learned,
            }
            for id, (width, height) in info.shapes.items()
        ],
        "styles": list(STYLES),
        "styles_learned": None if info.styles_learned is None else list(info.styles_learned),
        "samplers": list(SAMPLERS),
        "lora": [adapter.describe() for adapter in info.adapters.values()],
        "defaults": {
            "num_inference_steps": info.default_num_inference_steps,
            "guidance_scale": info.default_guidance_scale,
            "eta": info.default_eta,
            "sampler": info.default_sampler,
            "strength": 0.8,
            "strength_with_mask": 1.0,
            "num_images": 1,
            "key_token_weight": info.key_token_weight,
        },
    }


def _learned(path: Path) -> dict[str, tuple[str, ...]]:
    """What a model says of its training in `about.json`, which may be missing."""
    if not path.is_file():
        return {}
    about = read_json(path)
    return {name: tuple(about[name]) for name in ("styles_learned", "shapes_learned") if name in about}


def _shapes(sample_size, factor: int, multiple: int) -> dict[str, tuple[int, int]]:
    """The three shapes of the service around the size that the model was trained at."""
    if sample_size is None:
        raise ValueError("the unet's config has no sample_size, which says how large the model draws")
    cells = [sample_size, sample_size] if isinstance(sample_size, int) else list(sample_size)
    side = min(cells) * factor
    return {
        id: tuple(max(multiple, round(side * ratio / multiple) * multiple) for ratio in ratios)
        for id, ratios in SHAPE_RATIOS.items()
    }


def _sampler(scheduler_class: str) -> str:
    """Short name of a scheduler's class."""
    names = {
        "DDIMScheduler": "ddim",
        "DDPMScheduler": "ddpm",
        "PNDMScheduler": "pndm",
        "DPMSolverMultistepScheduler": "dpmsolver++",
        "UniPCMultistepScheduler": "unipc",
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_ancestral",
    }
    if scheduler_class not in names:
        raise ValueError(f"the scheduler {scheduler_class!r} is none that the service knows: {', '.join(names)}")
    return names[scheduler_class]
