"""Settings inside a PNG: written when a picture is handed out with them, read back when one is dropped on the page."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib

from PIL import Image

from ppvilg.files import PictureError, picture_size

from ..errors import ServiceError
from .adapters import tags_of, take_tags
from .requests import SETTINGS, Limits

KEY = "ppvilg"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_TEXT = 2**20
# Names in the text chunks that tools/infer.py writes, and in A1111's "parameters".
_OF_INFER = {
    "prompt": str,
    "negative_prompt": str,
    "style": str,
    "seed": int,
    "num_inference_steps": int,
    "eta": float,
    "strength": float,
}
_OF_A1111 = {"Steps": ("num_inference_steps", int), "CFG scale": ("guidance_scale", float), "Seed": ("seed", int)}


def with_metadata(png: bytes, picture) -> bytes:
    """A PNG with the settings of a picture in two text chunks: JSON, and the form that other programs read."""
    model = picture.model
    chunks = [
        _text_chunk(KEY, json.dumps({"settings": picture.settings, "model": model}, ensure_ascii=False)),
        _text_chunk("parameters", infotext(picture.settings, model)),
    ]
    end = len(_SIGNATURE) + 25  # behind IHDR: length, type, 13 bytes, checksum
    return png[:end] + b"".join(chunks) + png[end:]


def tagged_prompt(settings: dict) -> str:
    """The prompt with the adapters that were chosen, as A1111's users write them."""
    return f"{settings['prompt']} {tags_of(settings.get('lora') or {})}".strip()


def infotext(settings: dict, model: dict) -> str:
    """Settings in the form that A1111 puts under its pictures."""
    lines = [tagged_prompt(settings)]
    if settings["negative_prompt"]:
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    values = {
        "Steps": settings["num_inference_steps"],
        "Sampler": settings["sampler"],
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model": model["name"],
        "Model hash": (model["hash"] or "")[:10],
        "Style": settings["style"],
    }
    if model.get("lora"):
        hashes = ", ".join(f"{name}: {(hash or '')[:12]}" for name, hash in model["lora"].items())
        values["Lora hashes"] = f'"{hashes}"'
    lines.append(", ".join(f"{name}: {value}" for name, value in values.items()))
    return "\n".join(lines)


def read_settings(png: bytes, limits: Limits) -> dict:
    """{settings, model, text}: what a PNG says of how it was made, as far as it is understood.

    ServiceError bad_picture: no PNG, JPEG or WebP, damaged, too many pixels.
    """
    try:
        picture_size(png, max_pixels=limits.picture_pixels)
        with Image.open(io.BytesIO(png), formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
            text = {str(key): str(value) for key, value in getattr(image, "text", image.info).items()}
    except (PictureError, OSError, ValueError, SyntaxError, zlib.error) as error:
        raise ServiceError("bad_picture", f"the picture cannot be read: {error}") from None
    text = {key: value for key, value in text.items() if len(value) <= _LARGEST_TEXT}
    settings, model = _of_ours(text)
    if settings is None and "parameters" in text:
        settings = _of_a1111(text["parameters"])
    if settings is None and "prompt" in text:
        settings = _of_infer(text)
    return {"settings": settings, "model": model, "text": text}


def _of_ours(text: dict) -> tuple[dict | None, dict | None]:
    try:
        found = json.loads(text.get(KEY, "null"))
        settings = {name: value for name, value in found["settings"].items() if name in SETTINGS}
        return settings, {name: found["model"].get(name) for name in ("name", "hash")}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # somebody else's chunk of that name
        return None, None


def _of_infer(text: dict) -> dict:
    settings = {}
    for name, kind in _OF_INFER.items():
        try:
            settings[name] = kind(text[name])
        except (KeyError, ValueError):
            continue
    try:
        settings["guidance_scale"] = json.loads(text["guidance_scale"])
    except (KeyError, ValueError):
        pass  # it was not written, or by another program: the model's own is used
    return settings


def _of_a1111(parameters: str) -> dict | None:
    *lines, last = parameters.strip().split("\n")
    pairs = dict(re.findall(r"\s*(\w[\w \-/]*):\s*([^,]+)(?:,|$)", last))
    if "Steps" not in pairs:
        return None
    text = "\n".join(lines)
    prompt, _, negative = text.partition("\nNegative prompt: ")
    settings: dict = {"prompt": prompt, "negative_prompt": negative}
    try:
        settings["prompt"], lora = take_tags(prompt)
        settings |= {"lora": lora} if lora else {}
    except ServiceError:
        pass  # tags of another kind stay in the text
    for name, (ours, kind) in _OF_A1111.items():
        try:
            settings[ours] = kind(pairs[name])
        except (KeyError, ValueError):
            continue
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", "").strip())
    if size:
        settings["width"], settings["height"] = int(size[1]), int(size[2])
    return settings


def _text_chunk(key: str, value: str) -> bytes:
    """An iTXt chunk, UTF-8, not compressed."""
    content = b"iTXt" + key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8")
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
