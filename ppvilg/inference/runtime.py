"""Opens the parts of a bundle: verified, proven, behind the calls of the components they stand in for.

`exported_components(folder, backend)` gives what ErnieViLG2Pipeline is made of; routing, pipeline and denoising loop
are the ones of the dygraph model and do not know the difference.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import paddle

from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.models.expert_files import expert_folder_name

from .components import ExportedAutoencoder, ExportedExpert, ExportedTextEncoder, Graph
from .engines import engine_module, require_backend
from .engines.paddle_inference import check_readable
from .manifest import ONNX_WEIGHTS, PROOF, WEIGHTS, Manifest, read_manifest, verify
from .options import BackendOptions, as_options
from .proofs import check_proven, fastest_proven
from .trusted import load_scheduler, load_tokenizer

Backend = str | BackendOptions | None  # None: the fastest that is proven here


def open_bundle(
    folder: str | os.PathLike, backend: Backend, threads: int | None = None
) -> tuple[Manifest, BackendOptions]:
    """Manifest of a bundle and options of the back end to run it with; nothing heavy is loaded.

    Raises:
        FileNotFoundError: the folder is no bundle or lacks a file.
        ValueError: it is damaged; the back end is unknown, not here, not proven, or has no graphs in the bundle.
    """
    manifest = read_manifest(folder)
    if backend is None:
        backend, proof = fastest_proven(folder)
        milliseconds = f"{1e3 * proof.step_seconds:.1f} ms a step"
        print(f"{os.fspath(folder)}: back end {backend}, the fastest proven here ({milliseconds})", file=sys.stderr)
    options = as_options(backend, threads)
    require_backend(options)
    check_graphs(folder, manifest, options)
    check_proven(folder, options)
    return manifest, options


def check_graphs(folder: str | os.PathLike, manifest: Manifest, options: BackendOptions) -> None:
    """ValueError unless the bundle has graphs for the back end that the installed library can read."""
    needed = engine_module(options).FILES
    missing = [name for name, part in manifest.parts.items() if not set(needed) <= part.files.keys()]
    if missing:
        raise ValueError(
            f"{os.fspath(folder)} has no {needed[0]} of {missing[0]}, which backend {options.backend!r} runs: export "
            f"again with --backends {options.engine if options.device == 'cpu' else 'onednn onnxruntime'}"
        )
    if WEIGHTS in needed:
        check_readable(manifest, folder)


def open_part(folder: Path, manifest: Manifest, name: str, options: BackendOptions, verified: bool = False) -> Graph:
    """Verifies the files of one part, unless they are `verified`, and loads it.

    Raises:
        ValueError: the bundle has no such part; a file was changed; the library cannot read it.
        FileNotFoundError: a file is missing.
    """
    if name not in manifest.parts:
        raise ValueError(f"{folder} has no part {name!r}, it has {', '.join(manifest.parts)}")
    engine, files = engine_module(options), manifest.parts[name].files
    if not verified:
        verify(folder / name, {file: files[file] for file in (*engine.FILES, ONNX_WEIGHTS) if file in files})
    try:
        return engine.Graph(folder / name, options)
    except ValueError:
        raise
    except Exception as error:  # each library has exceptions of its own, and all of them say much
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        file = folder / name / engine.FILES[0]
        raise ValueError(f"{file} cannot be loaded by backend {options.backend!r}: {reason[0].strip()}") from None


def load_exported_expert(
    folder: str | os.PathLike, index: int, backend: Backend = None, threads: int | None = None
) -> ExportedExpert:
    """Expert `index` of a bundle, its files verified: callable like UNet2DConditionModel.

    Raises:
        FileNotFoundError: the folder is no bundle or lacks a file.
        ValueError: unknown or unproven back end, changed file, newer graph format, or no such expert.
    """
    folder = Path(folder)
    manifest, options = open_bundle(folder, backend, threads)
    return open_expert(folder, manifest, index, options)


def open_expert(
    folder: Path, manifest: Manifest, index: int, options: BackendOptions, verified: bool = False
) -> ExportedExpert:
    """As `load_exported_expert`, with a manifest that was read and checked before."""
    levels = len(manifest.components["unet"]["unet"]["block_out_channels"])
    graph = open_part(folder, manifest, expert_folder_name(index), options, verified)
    return ExportedExpert(graph, 2 ** (levels - 1))


def exported_unet(
    folder: str | os.PathLike,
    backend: Backend = None,
    experts: Sequence[int] | None = None,
    threads: int | None = None,
) -> MoDEUNet2DConditionModel:
    """The mixture of a bundle: the routing of MoDEUNet2DConditionModel over exported experts.

    experts: which to load (all); the others stay absent.
    """
    manifest, options = open_bundle(folder, backend, threads)
    return assemble_unet(Path(folder), manifest, options, experts)


def assemble_unet(
    folder: Path, manifest: Manifest, options: BackendOptions, experts: Sequence[int] | None = None
) -> MoDEUNet2DConditionModel:
    """As `exported_unet`, of a bundle that was opened before."""
    model = MoDEUNet2DConditionModel(**manifest.components["unet"], experts=[])
    for index in range(model.num_experts) if experts is None else experts:
        model.experts[index] = open_expert(folder, manifest, index, options)
    model.experts.dtype = paddle.float32  # no parameter tells it
    model.eval()
    return model


def exported_components(
    folder: str | os.PathLike,
    backend: Backend = None,
    unet: MoDEUNet2DConditionModel | None = None,
    threads: int | None = None,
) -> dict:
    """Arguments of ErnieViLG2Pipeline from a bundle; errors as `load_exported_expert`.

    unet: the bundle's experts, if they were loaded already (None: all of them are loaded here).
    """
    manifest, options = open_bundle(folder, backend, threads)
    return assemble_components(Path(folder), manifest, options, unet)


def assemble_components(
    folder: Path, manifest: Manifest, options: BackendOptions, unet: MoDEUNet2DConditionModel | None = None
) -> dict:
    """As `exported_components`, of a bundle that was opened before."""
    if manifest.pipeline is None:
        raise ValueError(f"{folder} holds experts alone, no text encoder and VAE: use load_exported_expert")
    verify(folder, {name: entry for name, entry in manifest.files.items() if not name.startswith(f"{PROOF}/")})

    def part(name: str) -> Graph:
        return open_part(folder, manifest, name, options)

    return {
        "vae": ExportedAutoencoder(
            functools.partial(part, "vae_encoder"), part("vae_decoder"), manifest.components["vae"], options.backend
        ),
        "text_encoder": ExportedTextEncoder(part("text_encoder"), manifest.components["text_encoder"]),
        "tokenizer": load_tokenizer(folder / "tokenizer"),
        "unet": assemble_unet(folder, manifest, options) if unet is None else unet,
        "scheduler": load_scheduler(folder / "scheduler"),
        **manifest.pipeline,
    }
