"""Decoding a large picture with the SD VAE's shape (random weights): peak memory and seams, whole and in tiles.

python tests/benchmarks/tiling.py [--size 1536 1024] [--backends dygraph onednn onnxruntime openvino] [--whole]

Each back end decodes in a process of its own; --whole also decodes in one piece, which needs many times the memory. A
seam is a step that the whole picture does not have: along every column and row the mean change from one pixel to the
next, tiled minus whole; the largest is told in 1/255. It needs --whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ONE = "--one"
# AutoencoderKL of Stable Diffusion 1
SHAPE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def build_vae():
    """The same random weights in every process."""
    import paddle
    from ppdiffusers import AutoencoderKL

    paddle.seed(0)
    vae = AutoencoderKL(**SHAPE)
    vae.eval()
    return vae


def export(folder: Path) -> None:
    """The decoder as graphs for all back ends."""
    from ppvilg.export.graphs import GRAPH, ONNX, autoencoder_plans, write_part

    write_part(autoencoder_plans(build_vae())[1], folder, formats=[GRAPH, ONNX])


def open_vae(backend: str, folder: Path):
    """The autoencoder that decodes with a back end."""
    if backend == "dygraph":
        return build_vae()
    from ppvilg.inference.components import ExportedAutoencoder
    from ppvilg.inference.engines import engine_module
    from ppvilg.inference.options import as_options

    options = as_options(backend)
    graph = engine_module(options).Graph(folder / "vae_decoder", options)
    return ExportedAutoencoder(lambda: None, graph, SHAPE, backend)


def decode(backend: str, folder: Path, size: list[int], tiled: bool) -> None:
    """In a process of its own: decodes, saves the picture, prints seconds and MiB."""
    import paddle

    paddle.set_grad_enabled(False)
    width, height = size
    vae = open_vae(backend, folder)
    if tiled:
        vae.enable_tiling()
    generator = np.random.default_rng(0)
    latents = paddle.to_tensor(generator.standard_normal((1, 4, height // 8, width // 8), np.float32))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    start = time.perf_counter()
    pixels = vae.decode(latents).sample.numpy()
    seconds = time.perf_counter() - start
    np.save(folder / f"{backend}-{'tiled' if tiled else 'whole'}.npy", pixels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "peak": peak, "loaded": pages * resource.getpagesize() / 2**20}))


def seam(tiled: np.ndarray, whole: np.ndarray) -> float:
    """The largest step between neighbouring columns or rows that the tiles brought, on average along it, in 1/255."""
    difference = (tiled - whole)[0] * 127.5  # (3, H, W) in 1/255: pixels are -1 to 1
    steps = [np.abs(np.diff(difference.mean(axis=axis), axis=1)).max() for axis in (1, 2)]
    return float(max(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[1536, 1024], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--backends", nargs="+", default=["dygraph", "onednn", "onnxruntime", "openvino"])
    parser.add_argument("--whole", action="store_true", help="also in one piece, for seams")
    parser.add_argument(ONE, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        backend, folder, form = options.one
        decode(backend, Path(folder), options.size, form == "tiled")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder)
        for backend in options.backends:
            for form in ("tiled", "whole") if options.whole else ("tiled",):
                command = [sys.executable, __file__, ONE, backend, name, form, "--size", *map(str, options.size)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{backend:12s} {form}: ended with {done.returncode}: {done.stderr[-300:]}", flush=True)
                    continue
                told = json.loads(done.stdout.splitlines()[-1])
                sizes = f"peak {told['peak']:.0f} MiB, {told['loaded']:.0f} before"
                print(f"{backend:12s} {form}: {told['seconds']:.1f} s, {sizes}", flush=True)
            files = [folder / f"{backend}-{form}.npy" for form in ("tiled", "whole")]
            if all(file.is_file() for file in files):
                tiled, whole = (np.load(file) for file in files)
                spread = f"standard deviation of the picture {whole.std() * 127.5:.1f}/255"
                print(f"{backend:12s} seam {seam(tiled, whole):.3f}/255, {spread}", flush=True)


if __name__ == "__main__":
    main()
