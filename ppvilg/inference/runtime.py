"""Opens the parts of a bundle: verified, proven, behind the calls of the components they stand in for.

`exported_components(folder, backend)` gives what ErnieViLG2Pipeline is made of; routing, pipeline and denoising loop
are the ones of the dygraph model and do not know the difference.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import paddle

from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.models.expert_files import expert_folder_name

from .backends import require_backend
from .components import ExportedAutoencoder, ExportedExpert, ExportedTextEncoder
from .manifest import Manifest, read_manifest, verify
from .paddle_engine import Predictor, check_readable
from .trusted import load_scheduler, load_tokenizer


def open_part(
    folder: Path, manifest: Manifest, name: str, backend: str, threads: int | None = None, verified: bool = False
) -> Predictor:
    """Verifies the files of one part, unless they are `verified`, and loads it.

    Raises:
        ValueError: the bundle has no such part; it was not proven for the back end; a file was changed.
        FileNotFoundError: a file is missing.
    """
    check_proven(folder, manifest, backend)
    if name not in manifest.parts:
        raise ValueError(f"{folder} has no part {name!r}, it has {', '.join(manifest.parts)}")
    if not verified:
        verify(folder / name, manifest.parts[name].files)
    return Predictor(folder / name, backend, threads)


def check_proven(folder: Path, manifest: Manifest, backend: str) -> None:
    """ValueError unless this machine has the back end and the bundle was proven for it."""
    require_backend(backend)
    if backend not in manifest.proof:
        raise ValueError(
            f"{folder} is proven for {', '.join(manifest.proof)}, not for backend {backend!r}: export with "
            f"--backends {' '.join([*manifest.proof, backend])}"
        )


def load_exported_expert(
    folder: str | os.PathLike, index: int, backend: str = "onednn", threads: int | None = None
) -> ExportedExpert:
    """Expert `index` of a bundle, its files verified: callable like UNet2DConditionModel.

    Raises:
        FileNotFoundError: the folder is no bundle or lacks a file.
        ValueError: unknown or unproven back end, changed file, newer graph format, or no such expert.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    return open_expert(folder, manifest, index, backend, threads)


def open_expert(
    folder: Path, manifest: Manifest, index: int, backend: str, threads: int | None = None, verified: bool = False
) -> ExportedExpert:
    """As `load_exported_expert`, with a manifest that was read and checked before."""
    levels = len(manifest.components["unet"]["unet"]["block_out_channels"])
    predictor = open_part(folder, manifest, expert_folder_name(index), backend, threads, verified)
    return ExportedExpert(predictor, 2 ** (levels - 1))


def exported_unet(
    folder: str | os.PathLike,
    backend: str = "onednn",
    experts: Sequence[int] | None = None,
    threads: int | None = None,
) -> MoDEUNet2DConditionModel:
    """The mixture of a bundle: the routing of MoDEUNet2DConditionModel over exported experts.

    experts: which to load (all); the others stay absent.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    model = MoDEUNet2DConditionModel(**manifest.components["unet"], experts=[])
    for index in range(model.num_experts) if experts is None else experts:
        model.experts[index] = open_expert(folder, manifest, index, backend, threads)
    model.experts.dtype = paddle.float32  # no parameter tells it
    model.eval()
    return model


def exported_components(
    folder: str | os.PathLike,
    backend: str = "onednn",
    unet: MoDEUNet2DConditionModel | None = None,
    threads: int | None = None,
) -> dict:
    """Arguments of ErnieViLG2Pipeline from a bundle; errors as `load_exported_expert`.

    unet: the bundle's experts, if they were loaded already (None: all of them are loaded here).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    if manifest.pipeline is None:
        raise ValueError(f"{folder} holds experts alone, no text encoder and VAE: use load_exported_expert")
    verify(folder, manifest.files)

    def part(name: str) -> Predictor:
        return open_part(folder, manifest, name, backend, threads)

    return {
        "vae": ExportedAutoencoder(
            functools.partial(part, "vae_encoder"), part("vae_decoder"), manifest.components["vae"]
        ),
        "text_encoder": ExportedTextEncoder(part("text_encoder"), manifest.components["text_encoder"]),
        "tokenizer": load_tokenizer(folder / "tokenizer"),
        "unet": exported_unet(folder, backend, threads=threads) if unet is None else unet,
        "scheduler": load_scheduler(folder / "scheduler"),
        **manifest.pipeline,
    }
