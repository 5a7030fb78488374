"""Do the 95 % intervals of shares and of their differences hold the truth in 95 % of studies? A simulation.

python tests/benchmarks/interval_coverage.py [--studies 2000]
"""

from __future__ import annotations

import argparse

import numpy as np

from ppvilg.evaluation.metrics.intervals import difference_interval, share_interval


def share_coverage(prompts: int, truth: float, images: int, studies: int, seed: int = 0) -> float:
    """Share of studies whose interval holds `truth`; prompts differ (Beta) where each has several pictures."""
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(studies):
        own = truth if images == 1 else rng.beta(2 * truth, 2 * (1 - truth), prompts)
        low, high = share_interval(rng.binomial(images, own, prompts) / images)
        hits += low <= truth <= high
    return hits / studies


def difference_coverage(prompts: int, better: float, worse: float, studies: int, seed: int = 0) -> float:
    """The same for a model that is right where another is wrong with probability `better`, and the reverse."""
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(studies):
        differences = rng.choice([1.0, -1.0, 0.0], prompts, p=[better, worse, 1 - better - worse])
        low, high = difference_interval(differences)
        hits += low <= better - worse <= high
    return hits / studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print("| prompts | true share | 1 picture each | 4 pictures each |\n|---|---|---|---|")
    for prompts in (24, 100, 320):
        for truth in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99):
            one, four = (100 * share_coverage(prompts, truth, images, studies) for images in (1, 4))
            print(f"| {prompts} | {truth} | {one:.1f} | {four:.1f} |", flush=True)
    print("\n| prompts | only one right | only the other right | difference |\n|---|---|---|---|")
    for prompts in (24, 140, 320):
        for better, worse in ((0.0, 0.0), (0.01, 0.01), (0.05, 0.02), (0.2, 0.1)):
            shown = 100 * difference_coverage(prompts, better, worse, studies)
            print(f"| {prompts} | {better} | {worse} | {shown:.1f} |", flush=True)


if __name__ == "__main__":
    main()
