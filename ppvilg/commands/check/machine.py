"""What is installed, and which devices and back ends are here; asked in a process of its own, which may crash."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "ppdiffusers", "numpy", "onnxruntime", "onnxruntime-gpu",
            "openvino", "paddle2onnx", "visualdl")  # fmt: skip

# What the process of `probe` runs: the last line that it prints is JSON.
_PROBE = """
import json, sys
import paddle
from ppvilg.inference.engines import require_backend
from ppvilg.inference.options import BACKENDS, BackendOptions
from ppvilg.pipelines.opening import check_device
device = sys.argv[1] or None
check_device(device)
if device:
    paddle.set_device(device)
place = paddle.get_device()
found = {"device": place, "gpus": [], "float16": False, "bfloat16": False, "backends": {}}
if paddle.device.is_compiled_with_cuda():
    for index in range(paddle.device.cuda.device_count()):
        about = paddle.device.cuda.get_device_properties(index)
        found["gpus"].append(f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute {about.major}.{about.minor}")
    found["cuda"], found["cudnn"] = str(paddle.version.cuda()), str(paddle.version.cudnn())
if place != "cpu":
    found["float16"] = bool(paddle.amp.is_float16_supported())
    found["bfloat16"] = bool(paddle.amp.is_bfloat16_supported())
for name in BACKENDS:
    try:
        require_backend(BackendOptions(name))
        found["backends"][name] = None
    except (ValueError, ImportError) as error:
        found["backends"][name] = str(error)
print(json.dumps(found))
"""


def probe(device: str | None) -> dict:
    """Device, GPUs, low precisions and {back end: why it is not here, None where it is}. ValueError: no such device."""
    done = subprocess.run([sys.executable, "-c", _PROBE, device or ""], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"Paddle does not start: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def last_line(text: str) -> str:
    """The last line that says something, without the name of the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "rror:" in line), lines[-1] if lines else "")
    return told.partition("rror: ")[2] or told


def describe(found: dict) -> str:
    """Versions and devices, for people."""
    import ppvilg

    versions = {"ppvilg": ppvilg.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    lines = ["versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
             f"system: {platform.platform()}, {_processor()}", f"device: {found['device']}"]  # fmt: skip
    lines += [f"gpu {number}: {about}" for number, about in enumerate(found["gpus"])]
    if "cuda" in found:
        lines.append(f"CUDA {found['cuda']}, cuDNN {found['cudnn']}")
    return "\n".join(lines)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} threads" if names else platform.processor() or platform.machine()
