"""A graph under Paddle Inference, and what the installed Paddle can read."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paddle
from paddle import inference

from ..manifest import GRAPH, WEIGHTS, Manifest
from ..options import BackendOptions

FILES = (GRAPH, WEIGHTS)
PACKAGE = "paddlepaddle"


def require(options: BackendOptions) -> None:
    """ValueError unless the installed Paddle has the back end, and the machine its device."""
    if options.device == "cpu":
        return
    if not paddle.is_compiled_with_cuda():
        raise ValueError(
            f"backend {options.backend!r} needs paddlepaddle-gpu, installed is paddlepaddle {paddle.__version__} for "
            "CPUs: install paddlepaddle-gpu from Paddle's index, or use backend 'onednn'"
        )
    count = paddle.device.cuda.device_count()
    if options.device_id >= count:
        raise ValueError(
            f"backend {options.backend!r} needs GPU {options.device_id} and its driver, Paddle sees {count} GPUs"
        )


def inference_config(folder: Path, options: BackendOptions) -> inference.Config:
    """Paddle Inference settings for one part."""
    return graph_config(folder / GRAPH, folder / WEIGHTS, options)


def graph_config(graph: Path, weights: Path, options: BackendOptions) -> inference.Config:
    """Paddle Inference settings for a graph."""
    config = inference.Config(str(graph), str(weights))
    config.disable_glog_info()
    if options.device == "gpu":
        precisions = {"float32": "Float32", "float16": "Half", "bfloat16": "Bfloat16"}
        precision = getattr(inference.PrecisionType, precisions[options.precision])
        config.enable_use_gpu(options.memory_pool_mib, options.device_id, precision)
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(options.num_threads)
    if options.engine == "onednn":
        _switch_onednn(config, "enable")
        # With oneDNN this pass overwrites a buffer that the sine and cosine of the timestep share: silently wrong.
        config.delete_pass("inplace_pass")
        if options.precision == "bfloat16":
            _switch_onednn(config, "enable", "_bfloat16")
    else:
        _switch_onednn(config, "disable")  # it is on by default, with that pass
    return config


def _switch_onednn(config: inference.Config, verb: str, what: str = "") -> None:
    """`enable` or `disable` oneDNN, or a part of it; it was called MKL-DNN before, and Paddle's methods with it."""
    switch = getattr(config, f"{verb}_onednn{what}", None) or getattr(config, f"{verb}_mkldnn{what}")
    switch()


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


class Graph:
    """One part of a bundle: tensors in, tensors out, in the order of the manifest; threads take turns."""

    def __init__(self, folder: Path, options: BackendOptions) -> None:
        self._predictor = inference.create_predictor(inference_config(Path(folder), options))
        self._turn = threading.Lock()
        self._has_a_thread = options.engine == "onednn"

    def __call__(self, *inputs: paddle.Tensor) -> list[paddle.Tensor]:
        """Runs the graph."""
        if self._has_a_thread:
            return _onednn_thread().submit(self._run, inputs).result()
        with self._turn:  # the predictor hands out its own buffers, which the next call overwrites
            return self._run(inputs)

    def _run(self, inputs: tuple) -> list[paddle.Tensor]:
        return [output.clone() for output in self._predictor.run(list(inputs))]


@functools.cache
def _onednn_thread() -> ThreadPoolExecutor:
    """The one thread that runs every oneDNN graph: oneDNN keeps what it prepared per thread and fails in later ones."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="onednn")


os.register_at_fork(after_in_child=_onednn_thread.cache_clear)  # threads stay in the parent
