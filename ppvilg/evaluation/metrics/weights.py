"""Weights of judging networks, from safetensors files alone: a pickle can run code when it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import paddle.nn as nn
from safetensors import SafetensorError, safe_open

from ppvilg.files import damage_of

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays by name, and whether the names are PyTorch's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or a pickle of PyTorch's, with the line that converts it.
    """
    if not path.is_file():
        raise FileNotFoundError(damage_of(path))
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code: if you trust it, convert it by {conversion(path)}")
    try:
        with safe_open(str(path), framework="np") as opened:
            from_torch = (opened.metadata() or {}).get("format") == "pt"
            return {name: opened.get_tensor(name) for name in opened.keys()}, from_torch  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{damage_of(path)} ({error})") from error


def conversion(path: Path) -> str:
    """A command that writes a .safetensors file beside weights of PyTorch's."""
    target = path.with_suffix(".safetensors")
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{target}', {{'format': 'pt'}})\""
    )


def weights_sha256(layer: nn.Layer) -> str:
    """One hash over names and values of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(layer.state_dict().items()):
        digest.update(f"{name}\n{list(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()
