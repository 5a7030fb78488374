"""Recompute: the same gradients from less memory. Prints peak memory and time with and without, and their ratio.

    python tests/benchmarks/recompute.py [--batch 8] [--size 32]

One backward pass of a denoiser with key-weighted cross-attention, each mode in a process of its own, forked from one
that has imported the libraries; the peak is the kernel's high-water mark of resident memory above what was there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import paddle

from ppvilg.models import MoDEUNet2DConditionModel, use_matmul_bias_gradients

UNET = dict(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=64,
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4)


def memory(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def backward(recompute: bool, batch: int, size: int, results) -> None:
    """Puts (peak MiB above the start, CPU seconds, loss, gradients by name) of one backward pass."""
    paddle.seed(1)
    unet = MoDEUNet2DConditionModel(unet=UNET)
    unet.train()
    use_matmul_bias_gradients(unet)
    if recompute:
        unet.enable_gradient_checkpointing()
    rng = np.random.default_rng(0)
    sample, text = (paddle.to_tensor(rng.standard_normal(shape).astype(np.float32))
                    for shape in ((batch, 4, size, size), (batch, 16, 64)))
    weights = paddle.to_tensor((1 + 0.01 * rng.integers(0, 2, (batch, 16))).astype(np.float32))
    before, started = memory("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    loss = unet(sample, paddle.arange(batch), text, key_token_weights=weights).sample.square().mean()
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in unet.named_parameters() if p.grad is not None}
    results.put((memory("VmHWM") - before, time.process_time() - started, float(loss), gradients))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    arguments = parser.parse_args()
    context, found = multiprocessing.get_context("fork"), {}
    for recompute in (False, True):
        results = context.Queue()
        process = context.Process(target=backward, args=(recompute, arguments.batch, arguments.size, results))
        process.start()
        found[recompute] = results.get()
        process.join()
    (plain, plain_seconds, loss, gradients), (less, seconds, same, again) = found[False], found[True]
    assert gradients.keys() == again.keys() and len(gradients) > 100
    equal = sum(gradients[name].tobytes() == again[name].tobytes() for name in gradients)
    largest = max(float(np.abs(gradients[name] - again[name]).max()) for name in gradients)
    print(f"loss {loss:.6f} and {same:.6f} with recompute; {equal} of {len(gradients)} gradients equal bit for bit, "
          f"largest difference {largest:.1e}")
    print(f"peak memory above the start: {plain:.0f} MiB, with recompute {less:.0f} MiB ({less / plain:.2f} of it); "
          f"CPU time {plain_seconds:.1f} s and {seconds:.1f} s ({seconds / plain_seconds:.2f} times)")


if __name__ == "__main__":
    main()
