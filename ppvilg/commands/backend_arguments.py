"""The settings of a bundle's back end on a command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import whole


def add_backend_settings(parser: argparse.ArgumentParser) -> None:
    """--threads, --device-id, --memory-pool, --memory-limit, --cache-folder and --shape-range."""
    group = parser.add_argument_group("settings of the back end, where it has them")
    group.add_argument("--threads", type=whole(1), help="of the CPU (OMP_NUM_THREADS, else all cores)")
    group.add_argument("--device-id", type=whole(0), help="number of the GPU (0)")
    group.add_argument("--memory-pool", type=whole(1), metavar="MIB", help="gpu: memory taken at the start (256)")
    group.add_argument(
        "--memory-limit", type=whole(1), metavar="MIB", help="onnxruntime_cuda: memory it may take (all)"
    )
    group.add_argument("--cache-folder", type=Path, help="openvino, onnxruntime_tensorrt: for compiled graphs")
    group.add_argument(
        "--shape-range",
        action="append",
        default=[],
        metavar="INPUT=MIN:USUAL:MAX",
        help="onnxruntime_tensorrt: sizes of an input, e.g. sample=1x4x64x64:2x4x64x64:4x4x64x64; may be given again",
    )


def backend_options(backend: str, arguments: argparse.Namespace):
    """BackendOptions of a back end's name and the settings; ValueError: it does not have one of them."""
    from ppvilg.inference import BackendOptions
    from ppvilg.inference.options import parse_shape_range

    given = {
        "threads": arguments.threads,
        "device_id": arguments.device_id,
        "memory_pool_mib": arguments.memory_pool,
        "memory_limit_mib": arguments.memory_limit,
        "cache_folder": arguments.cache_folder,
        "shape_ranges": dict(map(parse_shape_range, arguments.shape_range)) or None,
    }
    return BackendOptions(backend, **{name: value for name, value in given.items() if value is not None})
