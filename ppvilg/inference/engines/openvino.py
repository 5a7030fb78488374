"""A graph under OpenVINO on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import paddle

from ..manifest import ONNX
from ..options import BackendOptions
from . import require_package

FILES = (ONNX,)
PACKAGE = "openvino"
_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def require(options: BackendOptions) -> None:
    """ValueError unless OpenVINO is installed."""
    require_package(PACKAGE, "openvino", options.backend)


class Graph:
    """One part of a bundle: tensors in, tensors out, in the order of the manifest; threads take turns."""

    def __init__(self, folder: Path, options: BackendOptions) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": options.num_threads,
            "INFERENCE_PRECISION_HINT": _PRECISION[options.precision],
            "NUM_STREAMS": 1,
            # Its fused subgraphs, compiled for a small first input, are silently wrong for a later larger one (2026.4).
            "SNIPPETS_MODE": "DISABLE",
        }
        if options.cache is not None:
            settings["CACHE_DIR"] = str(options.cache)
        compiled = openvino.Core().compile_model(str(folder / ONNX), "CPU", settings)
        self._names = [each.get_any_name() for each in compiled.inputs]
        self._request = compiled.create_infer_request()
        self._turn = threading.Lock()

    def __call__(self, *inputs: paddle.Tensor) -> list[paddle.Tensor]:
        """Runs the graph."""
        given = dict(zip(self._names, (tensor.numpy() for tensor in inputs)))
        with self._turn:  # the request owns its outputs, which to_tensor copies
            return [paddle.to_tensor(value) for value in self._request.infer(given).values()]
