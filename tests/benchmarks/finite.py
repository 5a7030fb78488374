"""Every number of steps and every eta must give a finite picture: the shipped model, DDIM.

python tests/benchmarks/finite.py [last step count, 60]

A run of emoji64 at 1 to 60 steps and eta 0, .5 and 1 takes some minutes on one core. Prints the failures, and the
darkest picture; exit code 1 if there is a failure.
"""

from __future__ import annotations

import sys
import time

from ppvilg._runtime import prepare_cpu


def main(last: int = 60) -> int:
    prepare_cpu()
    from ppvilg.pipelines import open_pipeline

    pipeline = open_pipeline("emoji64")
    pipeline.set_progress_bar_config(disable=True)
    started, failures, darkest = time.time(), [], 255.0
    for eta in (0.0, 0.5, 1.0):
        for steps in range(1, last + 1):
            try:
                picture = pipeline(
                    "白色背景上的一只猫", num_inference_steps=steps, eta=eta, generator=steps, output_type="np"
                ).images
            except FloatingPointError as error:
                failures.append(f"{steps} steps, eta {eta}: {error}")
                continue
            darkest = min(darkest, float(picture.max()) * 255)
    print(f"{3 * last} pictures in {time.time() - started:.0f} s, darkest maximum {darkest:.0f}/255")
    print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
