"""Time per picture with n experts over n = 1, interleaved in one run; prints the ratio (mixture costs nothing).

python tests/benchmarks/bench_experts.py [--experts 10] [--rounds 20] [--steps 20]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import paddle
from ppdiffusers import DDIMScheduler

from ppvilg.models import MoDEUNet2DConditionModel

UNET = dict(
    sample_size=8,
    in_channels=16,
    out_channels=16,
    block_out_channels=(96, 192),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=128,
    attention_head_dim=6,
)


@paddle.no_grad()
def denoise(model: MoDEUNet2DConditionModel, steps: int, latents, text) -> float:
    """Seconds for one picture: `steps` DDIM steps on a batch of two (with and without the prompt)."""
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(steps)
    start = time.perf_counter()
    for timestep in scheduler.timesteps:
        prediction = model(paddle.concat([latents, latents]), timestep, text).sample
        latents = scheduler.step(prediction[1:], timestep, latents).prev_sample
    latents.numpy()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints one line per model and the ratio of medians with its bootstrap interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    paddle.seed(0)
    one = MoDEUNet2DConditionModel(1, unet=UNET)
    one.eval()
    models = {1: one, options.experts: MoDEUNet2DConditionModel.from_base(one, options.experts)}
    latents, text = paddle.randn([1, 16, 8, 8]), paddle.randn([2, 32, 128])
    seconds = {n: [] for n in models}
    for round_number in range(options.rounds + 1):
        # the order alternates, so that neither model always follows the other; round 0 warms up
        for n in list(models)[:: 1 if round_number % 2 else -1]:
            elapsed = denoise(models[n], options.steps, latents, text)
            if round_number:
                seconds[n].append(elapsed)
    for n, times in seconds.items():
        print(f"n = {n:2d}: median {1000 * np.median(times):.1f} ms, fastest {1000 * min(times):.1f} ms per picture")
    ratios = np.array(seconds[options.experts]) / np.array(seconds[1])  # of neighbours in time
    rng = np.random.default_rng(0)
    resampled = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    print(f"ratio n = {options.experts} / n = 1: {np.median(ratios):.3f} (95 % interval {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
