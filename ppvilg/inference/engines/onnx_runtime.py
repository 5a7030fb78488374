"""A graph under ONNX Runtime, on the CPU, with CUDA or with TensorRT."""

from __future__ import annotations

from pathlib import Path

import paddle

from ..manifest import ONNX
from ..options import BackendOptions
from . import require_package

FILES = (ONNX,)
PACKAGE = "onnxruntime"
PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime_cuda": "CUDAExecutionProvider",
    "onnxruntime_tensorrt": "TensorrtExecutionProvider",
}


def require(options: BackendOptions) -> None:
    """ValueError unless ONNX Runtime is installed, with the provider of the back end."""
    if options.device == "cpu":
        require_package(PACKAGE, "onnx", options.backend)
        return
    require_package(PACKAGE, "onnx-gpu", options.backend)
    import onnxruntime

    provider, there = PROVIDERS[options.engine], onnxruntime.get_available_providers()
    if provider not in there:
        raise ValueError(
            f"backend {options.backend!r} needs {provider}, the installed onnxruntime has {', '.join(there)}: "
            "pip uninstall onnxruntime && pip install 'ppvilg[onnx-gpu]', or use backend 'onnxruntime'"
        )


def providers(options: BackendOptions) -> list[tuple[str, dict[str, str]]]:
    """Execution providers in order, with their settings."""
    if options.device == "cpu":
        return [(PROVIDERS["onnxruntime"], {})]
    device = {"device_id": str(options.device_id)}
    limit = {} if options.memory_limit_mib is None else {"gpu_mem_limit": str(options.memory_limit_mib * 2**20)}
    cuda = (PROVIDERS["onnxruntime_cuda"], {**device, **limit, "use_tf32": "0"})
    if options.engine == "onnxruntime_cuda":
        return [cuda]
    tensorrt = {**device, "trt_fp16_enable": str(int(options.precision == "float16"))}
    tensorrt["trt_bf16_enable"] = str(int(options.precision == "bfloat16"))
    if options.cache is not None:
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(options.cache)}
    for i, kind in enumerate(("min", "opt", "max")):
        shapes = (f"{name}:{'x'.join(map(str, shape[i]))}" for name, shape in options.shape_ranges.items())
        if options.shape_ranges:
            tensorrt[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    return [(PROVIDERS["onnxruntime_tensorrt"], tensorrt), cuda]


class Graph:
    """One part of a bundle: tensors in, tensors out, in the order of the manifest; any thread may call it."""

    def __init__(self, folder: Path, options: BackendOptions) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = options.num_threads
        wanted = providers(options)
        self._session = onnxruntime.InferenceSession(str(folder / ONNX), settings, providers=wanted)
        if self._session.get_providers()[:1] != [wanted[0][0]]:
            raise ValueError(
                f"backend {options.backend!r}: ONNX Runtime could not start {wanted[0][0]} and took "
                f"{self._session.get_providers()[0]}: check the driver and CUDA, or use backend 'onnxruntime'"
            )
        self._inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, *inputs: paddle.Tensor) -> list[paddle.Tensor]:
        """Runs the graph."""
        given = dict(zip(self._inputs, (tensor.numpy() for tensor in inputs)))
        return [paddle.to_tensor(value) for value in self._session.run(None, given)]
