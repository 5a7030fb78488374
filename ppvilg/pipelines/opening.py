"""One way to open a model, for drawing, evaluation, export and the service: zoo name, pipeline folder or bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import paddle
from ppdiffusers.pipelines import auto_pipeline

from ppvilg.files import adapter_file
from ppvilg.inference import BACKENDS, BackendOptions, is_bundle, open_bundle

from .adapters import Scale
from .folders import INDEX, ZOO, resolve
from .pipeline import ErnieViLG2Pipeline

# So that ppdiffusers' AutoPipelineForText2Image, ...Image2Image and ...Inpainting open a folder of ours.
for _task in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT"):
    getattr(auto_pipeline, f"AUTO_{_task}_PIPELINES_MAPPING")["ernie-vilg2"] = ErnieViLG2Pipeline


def open_pipeline(
    name_or_folder: str | os.PathLike,
    backend: str | BackendOptions | None = None,
    max_resident_experts: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    adapters: Sequence[tuple[str | os.PathLike, Scale]] = (),
) -> ErnieViLG2Pipeline:
    """The pipeline of a zoo name, a pipeline folder or an export bundle; everything is checked before it is loaded.

    backend: of a bundle, by name or with options (None: the fastest that is proven here, and it says which).
    max_resident_experts: at most so many experts in memory (None: all).
    threads: of the CPU (None: OMP_NUM_THREADS, else all cores). device: "cpu", "gpu" or "gpu:1"; Paddle's own for a
    pipeline folder when None, while a bundle's is part of its backend. adapters: (file, scale) of LoRAs to load, in
    this order, each named by its path; not for bundles, which are exported with theirs.

    Raises:
        FileNotFoundError: there is no such model, or a file of it is missing.
        ValueError: an argument does not fit the model or this machine; a file is damaged.
    """
    name = os.fspath(name_or_folder)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be a whole number from 1, got {threads!r}")
    check_device(device)
    for file, _ in adapters:
        adapter_file(file)
    if is_bundle(name):
        if adapters:
            raise ValueError(f"{name} is a bundle, whose graphs stay as exported: export the model with --lora")
        if isinstance(backend, str) and device is not None and device.startswith("gpu:"):
            backend = BackendOptions(backend, device_id=int(device.partition(":")[2]))
        _, options = open_bundle(name, backend, threads)
        if device is not None and device.partition(":")[0] != options.device:
            raise ValueError(f"device {device!r} does not go with backend {options.backend!r} of the bundle {name}")
        return ErnieViLG2Pipeline.from_exported(name, options, max_resident_experts)
    folder = Path(name)
    if folder.is_dir() and name not in ZOO and not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{name} is neither a pipeline folder (no {INDEX}) nor a bundle (no manifest.json)")
    folder = resolve(name)
    if backend is not None:
        given = backend.backend if isinstance(backend, BackendOptions) else backend
        known = "for bundles" if given in BACKENDS else "unknown"
        raise ValueError(f"backend {given!r} is {known}, and {name} is no bundle: export it, or leave backend out")
    if device is not None:
        paddle.set_device(device)
    if threads is not None:
        paddle.base.core.set_num_threads(threads)
    pipeline = ErnieViLG2Pipeline.from_pretrained(folder, max_resident_experts=max_resident_experts)
    for file, scale in adapters:
        pipeline.load_lora_weights(file, os.fspath(file), scale)
    return pipeline


def check_device(device: str | None) -> None:
    """ValueError unless `device` is None, "cpu", or a GPU that is there: "gpu", "gpu:1"."""
    if device is None or device == "cpu":
        return
    kind, _, number = str(device).partition(":")
    if kind != "gpu" or not (number or "0").isdigit():
        raise ValueError(f"device must be 'cpu', 'gpu' or 'gpu:N', got {device!r}")
    count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if int(number or 0) >= count:
        what = f"Paddle sees {count} GPUs" if count else "no GPU, or a paddlepaddle for CPUs"
        raise ValueError(f"device {device!r} is not there ({what}): use 'cpu', or install paddlepaddle-gpu")
