"""Which model a name stands for, read from its JSON files and hashes without loading a weight."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ppvilg.files import digest_of, file_sha256, read_json
from ppvilg.inference import is_bundle, open_bundle

from .zoo import INDEX, resolve

MODEL_FILES = (".json", ".txt", ".safetensors", ".pdparams", ".pdiparams", ".model")


@dataclass(frozen=True)
class ModelIdentity:
    """A pipeline folder or export bundle: what its pictures depend on, and what can be asked of it."""

    folder: Path
    sha256: str  # over names and contents of its files
    backend: str | None  # that runs a bundle; None: a pipeline folder
    num_inference_steps: int  # this and the next two: the model's own
    guidance_scale: float | list[float]
    eta: float
    num_experts: int
    num_train_timesteps: int
    size_multiple: int  # of width and height in pixels


def identify(name_or_folder: str | os.PathLike, backend: str | None = None) -> ModelIdentity:
    """The identity of a zoo name, a pipeline folder or an export bundle on a back end (None: the fastest proven here).

    Raises:
        FileNotFoundError: there is no such model, or a file of it is missing.
        ValueError: a file is damaged; the bundle is not proven for the back end, or a folder is given one.
    """
    if is_bundle(name_or_folder):
        return _identify_bundle(Path(name_or_folder), backend)
    folder = resolve(name_or_folder)
    if backend is not None:
        raise ValueError(f"backend {backend!r} is for bundles, {name_or_folder} is not one: export it first")
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    return _identity(folder, folder_sha256(folder), None, read_json(folder / INDEX), unet, vae)


def _identify_bundle(folder: Path, backend: str | None) -> ModelIdentity:
    manifest, options = open_bundle(folder, backend)
    if manifest.pipeline is None:
        raise ValueError(f"{folder} holds experts alone, no text encoder and VAE: it cannot draw")
    files = {name: entry.sha256 for name, entry in manifest.listed().items()}
    # Not of versions: a bundle that is exported again is the same model.
    content = [files, manifest.routing, manifest.components, manifest.prediction_type, manifest.pipeline]
    unet, vae = manifest.components["unet"], manifest.components["vae"]
    return _identity(folder, digest_of(content), options.backend, manifest.pipeline, unet, vae)


def _identity(folder: Path, sha256: str, backend: str | None, pipeline: dict, unet: dict, vae: dict) -> ModelIdentity:
    try:
        levels = len(unet["unet"]["block_out_channels"]) + len(vae["block_out_channels"]) - 2
        experts, timesteps = unet["num_experts"], unet["num_train_timesteps"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no model of this package: its networks do not say {error}") from error
    return ModelIdentity(
        folder,
        sha256,
        backend,
        num_inference_steps=pipeline.get("default_num_inference_steps", 50),
        guidance_scale=pipeline.get("default_guidance_scale", 7.5),
        eta=pipeline.get("default_eta", 0.0),
        num_experts=experts,
        num_train_timesteps=timesteps,
        size_multiple=vae.get("patch_size", 1) * 2**levels,
    )


def folder_sha256(folder: str | os.PathLike) -> str:
    """One hash over the names and contents of a model's files, without what only people read."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()
