"""A graph under Paddle Inference, and what the installed Paddle can read."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path

import paddle
from paddle import inference

from .backends import require_backend
from .manifest import GRAPH, WEIGHTS, Manifest


def inference_config(folder: Path, backend: str, threads: int | None = None) -> inference.Config:
    """Paddle Inference settings for one part; `threads` is for CPUs (None: OMP_NUM_THREADS, else all cores)."""
    config = inference.Config(str(folder / GRAPH), str(folder / WEIGHTS))
    config.disable_glog_info()
    if backend == "gpu":
        config.enable_use_gpu(256, 0)
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads or _default_threads())
    if backend.startswith("onednn"):
        _switch_onednn(config, "enable")
        # With oneDNN this pass overwrites a buffer that the sine and cosine of the timestep share: silently wrong.
        config.delete_pass("inplace_pass")
        if backend == "onednn_bfloat16":
            _switch_onednn(config, "enable", "_bfloat16")
    else:
        _switch_onednn(config, "disable")  # it is on by default, with that pass
    return config


def _switch_onednn(config: inference.Config, verb: str, what: str = "") -> None:
    """`enable` or `disable` oneDNN, or a part of it; it was called MKL-DNN before, and Paddle's methods with it."""
    switch = getattr(config, f"{verb}_onednn{what}", None) or getattr(config, f"{verb}_mkldnn{what}")
    switch()


def _default_threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


@functools.cache
def readable_program_version() -> int:
    """Version of the graph format that the installed Paddle writes; Paddle itself loads newer ones without a word."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, GRAPH)
        paddle.core.serialize_pir_program(paddle.base.libpaddle.pir.Program(), str(graph))
        return program_version(graph)


def program_version(graph: Path) -> int:
    """Version of the graph format of a file; ValueError if it is no Paddle 3 graph."""
    try:
        header = json.loads(graph.read_text(encoding="utf-8"))["base_code"]
        assert header["magic"] == "pir"
        return int(header["version"])
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{graph} is not a graph of Paddle 3 (PIR JSON): export the model again") from None


def check_readable(manifest: Manifest, folder: str | os.PathLike) -> None:
    """ValueError if the bundle's graphs are in a newer format than the installed Paddle knows."""
    mine = readable_program_version()
    if manifest.program_version > mine:
        made_by = manifest.versions.get("paddlepaddle") or manifest.versions.get("paddlepaddle-gpu")
        raise ValueError(
            f"{os.fspath(folder)} was made by Paddle {made_by} (graph format {manifest.program_version}), the "
            f"installed Paddle {paddle.__version__} reads up to format {mine}: install Paddle {made_by} or newer, or "
            "export the model again with the Paddle that is installed"
        )


class Predictor:
    """One part of a bundle: tensors in, tensors out, in the order of the manifest."""

    def __init__(self, folder: Path, backend: str, threads: int | None = None) -> None:
        require_backend(backend)
        self.folder, self.backend = Path(folder), backend
        self._predictor = inference.create_predictor(inference_config(self.folder, backend, threads))

    def __call__(self, *inputs: paddle.Tensor) -> list[paddle.Tensor]:
        # The predictor hands out its own buffers, which the next call overwrites.
        return [output.clone() for output in self._predictor.run(list(inputs))]
