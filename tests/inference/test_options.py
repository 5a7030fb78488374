"""What back ends are told, for GPUs by what a stand-in for their library records: no GPU has run any of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppvilg.inference import BACKENDS, BackendOptions, engines
from ppvilg.inference.engines import onnx_runtime, paddle_inference, require_backend
from ppvilg.inference.options import as_options, parse_shape_range

RANGES = {"sample": [[1, 4, 8, 8], [2, 4, 64, 64], [4, 4, 128, 128]]}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_name_says_library_device_and_precision(name):
    options = BackendOptions(name)
    assert options.engine + ("" if options.precision == "float32" else f"_{options.precision}") == name
    assert options.device == ("gpu" if "gpu" in name or "cuda" in name or "tensorrt" in name else "cpu")
    assert as_options(options) is options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "magic"}, "unknown backend 'magic', choose one of cpu"),
        ({"threads": 0}, "threads must be a whole number from 1, got 0"),
        ({"threads": True}, "threads must be a whole number from 1, got True"),
        ({"backend": "gpu", "threads": 2}, "backend 'gpu' has no setting threads, got 2"),
        ({"backend": "cpu", "device_id": 1}, "backend 'cpu' has no setting device_id, got 1"),
        ({"backend": "gpu", "device_id": -1}, "device_id must be a whole number from 0"),
        ({"backend": "onnxruntime", "memory_limit_mib": 5}, "has no setting memory_limit_mib"),
        ({"backend": "onednn", "cache_folder": "x"}, "has no setting cache_folder"),
        ({"backend": "openvino", "shape_ranges": RANGES}, "has no setting shape_ranges"),
        ({"backend": "onnxruntime_tensorrt", "shape_ranges": {"a": [[2], [1], [3]]}}, "smallest, usual and largest"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BackendOptions(**values)


def test_shape_ranges_on_a_command_line():
    assert dict([parse_shape_range("sample=1x4x8x8:2x4x64x64:4x4x128x128")]) == RANGES
    for text in ("sample", "sample=1x4:2x4", "=1:2:3", "sample=1x-1:2:3"):
        with pytest.raises(ValueError, match="a shape range is NAME=SMALLEST:USUAL:LARGEST"):
            parse_shape_range(text)


class Recorder:
    """Stands for inference.Config: notes every call."""

    def __init__(self, *files):
        self.calls = [("files", files)]

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, values))


def test_what_paddle_inference_is_told_of_a_gpu(monkeypatch):
    precisions = paddle_inference.inference.PrecisionType
    monkeypatch.setattr(paddle_inference.inference, "Config", Recorder)
    for precision, expected in (("gpu", precisions.Float32), ("gpu_float16", precisions.Half)):
        options = BackendOptions(precision, device_id=3, memory_pool_mib=512)
        config = paddle_inference.inference_config(Path("part"), options)
        assert ("enable_use_gpu", (512, 3, expected)) in config.calls
        assert not any("onednn" in name or "mkldnn" in name for name, _ in config.calls)


def test_what_onnx_runtime_is_told_of_a_gpu(tmp_path):
    (cuda,) = onnx_runtime.providers(BackendOptions("onnxruntime_cuda", device_id=1, memory_limit_mib=2))
    assert cuda == ("CUDAExecutionProvider", {"device_id": "1", "gpu_mem_limit": str(2**21), "use_tf32": "0"})
    options = BackendOptions("onnxruntime_tensorrt_float16", cache_folder=tmp_path, shape_ranges=RANGES)
    tensorrt, behind = onnx_runtime.providers(options)
    assert behind[0] == "CUDAExecutionProvider" and tensorrt[0] == "TensorrtExecutionProvider"
    assert tensorrt[1]["trt_fp16_enable"] == "1" and tensorrt[1]["trt_bf16_enable"] == "0"
    assert tensorrt[1]["trt_engine_cache_path"] == str(tmp_path)
    assert tensorrt[1]["trt_profile_opt_shapes"] == "sample:2x4x64x64"


def test_back_ends_that_are_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(get_available_providers=lambda: ["Other"]))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="needs CUDAExecutionProvider, the installed onnxruntime has Other"):
        require_backend(BackendOptions("onnxruntime_cuda"))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        with pytest.raises(ValueError, match=rf"not installed: pip install 'ppvilg\[{extra}\]'"):
            require_backend(BackendOptions(name))
