"""Do the 95 % intervals of side-by-side studies cover the truth in 95 % of studies? A simulation with known preference.

python tests/benchmarks/preference_coverage.py [--studies 1000] [--seed 0]

Every prompt has preferences of its own, drawn around those of its class (Dirichlet), so that the votes of one prompt
hang together; every voter answers by them, and some answers are missing. The truth is the mean over the classes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import numpy as np

from ppvilg.evaluation.metrics.intervals import share_interval

OUTCOMES = np.array([[1.0, 0, 0, 1.0], [0, 1.0, 0, 0.5], [0, 0, 1.0, 0]])  # answer -> first, tie, second, score
VILG300_CLASSES = (36, 24, 23, 23, 22, 20, 19, 18, 18, 16, 16, 16, 16, 14, 10, 9)


def simulate_study(
    rng: np.random.Generator, preferences: np.ndarray, sizes: tuple[int, ...], voters: int, sameness: float
) -> np.ndarray:
    """Mean answers of prompts (P, 4): first, tie, second, score. preferences (C, 3) of classes of `sizes` prompts.

    sameness: correlation of two votes of one prompt within its class.
    """
    own = [rng.dirichlet(p * (1 - sameness) / sameness, n) for p, n in zip(preferences, sizes)]
    counts = np.maximum(1, rng.binomial(voters, 0.95, sum(sizes)))  # a vote in twenty is missing
    votes = rng.multinomial(counts, np.concatenate(own))  # (P, 3)
    return votes @ OUTCOMES / counts[:, None]


def truth(preferences: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Rates (4,) that a study would find with endless prompts in the same shares of classes."""
    return np.average(preferences, axis=0, weights=sizes) @ OUTCOMES


def coverage(preferences: np.ndarray, sizes: tuple[int, ...], voters: int, sameness: float, studies: int, seed: int):
    """Share (4,) of studies whose intervals hold the truth."""
    rng = np.random.default_rng(seed)
    strata = np.repeat(np.arange(len(sizes)), sizes).tolist() if len(sizes) > 1 else None
    wanted, hits = truth(preferences, sizes), np.zeros(4)
    for _ in range(studies):
        values = simulate_study(rng, preferences, sizes, voters, sameness)
        for column in range(4):
            low, high = share_interval(values[:, column], strata)
            hits[column] += low <= wanted[column] <= high
    return hits / studies


def settings() -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    """(name, preferences of the classes, sizes): all of ViLG-300 with classes that differ, and single classes."""
    rng = np.random.default_rng(300)
    yield "ViLG-300, 16 classes that differ", rng.dirichlet([5, 2, 3], 16), VILG300_CLASSES
    for size, rates in itertools.product((36, 20, 9), ((0.4, 0.2, 0.4), (0.6, 0.2, 0.2), (0.8, 0.1, 0.1))):
        yield f"one class, {size} prompts, rates {rates}", np.array([rates]), (size,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| study | voters | votes of a prompt correlate | first | tie | second | score |\n" + "|---" * 7 + "|")
    for name, preferences, sizes in settings():
        for voters, sameness in ((1, 0.3), (3, 0.3), (5, 0.1), (5, 0.3), (5, 0.6)):
            shares = coverage(preferences, sizes, voters, sameness, arguments.studies, arguments.seed)
            cells = " | ".join(f"{100 * share:.1f}" for share in shares)
            print(f"| {name} | {voters} | {sameness} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
