"""A LoRA step against a full step of the same expert: peak memory and time, and their ratios (aims: .5 and .7).

    python tests/benchmarks/lora_step.py [--batch 16] [--size 8] [--channels 128] [--steps 8] [--rounds 3]

Each side is a process forked from one that has imported the libraries: it builds an expert of emoji64's kind (or wider
ones), takes steps with AdamW and an average of the weights, as the trainer does, and tells the CPU seconds of a step
and the high-water mark of resident memory above what was there. Sides take turns; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import paddle
from recompute import memory

from ppvilg.engine.lora.layers import LowRankLayers
from ppvilg.engine.training.ema import ExponentialMovingAverage
from ppvilg.models import MoDEUNet2DConditionModel, use_matmul_bias_gradients
from ppvilg.pipelines import zoo_folder

TRANSFORMERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out"]
SIDES = {"full": None, "lora, attention": ["to_q", "to_k", "to_v", "to_out.0"], "lora, transformers": TRANSFORMERS,
         "lora, all layers": ["all"]}  # fmt: skip
WARM = 2


def train(targets: list[str] | None, options: argparse.Namespace, results) -> None:
    """Puts (peak MiB above the start, median CPU seconds of a step, trained parameters) of one side."""
    paddle.seed(1)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    config = dict(MoDEUNet2DConditionModel.without_experts(zoo_folder("emoji64") / "unet").config.unet)
    config["block_out_channels"] = [options.channels] * 2
    unet = MoDEUNet2DConditionModel(unet=config)
    unet.train()
    trained = unet
    if targets is not None:
        trained = LowRankLayers(8, None)
        trained.attach("unet.shared", [unet.experts[0]], targets)
    use_matmul_bias_gradients(trained)
    parameters = dict(trained.named_parameters())
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=list(parameters.values()))
    averages = ExponentialMovingAverage(parameters, 0.9)
    rng, seconds = np.random.default_rng(0), []
    shapes = ((options.batch, config["in_channels"], options.size, options.size),
              (options.batch, 24, config["cross_attention_dim"]))  # fmt: skip
    sample, text = (paddle.to_tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    for step in range(WARM + options.steps):
        started = time.process_time()
        unet(sample, paddle.arange(options.batch), text).sample.square().mean().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        averages.update(step + 1)
        seconds.append(time.process_time() - started)
    size = sum(p.size for p in parameters.values())
    results.put((memory("VmHWM") - before, statistics.median(seconds[WARM:]), size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 16), ("size", 8), ("channels", 128), ("steps", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    context, found = multiprocessing.get_context("fork"), {name: [] for name in SIDES}
    for _ in range(options.rounds):
        for name, targets in SIDES.items():
            results = context.Queue()
            process = context.Process(target=train, args=(targets, options, results))
            process.start()
            found[name].append(results.get())
            process.join()
    for name, rounds in found.items():
        peak, seconds, size = (statistics.median(values) for values in zip(*rounds))
        ratios = [statistics.median(one[i] / full[i] for one, full in zip(rounds, found["full"])) for i in (0, 1)]
        print(f"{name:<18}{size / 1e6:>7.2f} M trained {peak:>7.0f} MiB ({ratios[0]:.2f})  "
              f"{1e3 * seconds:>7.0f} ms ({ratios[1]:.2f})")


if __name__ == "__main__":
    main()
