"""Where the randomness of a picture comes from: one numpy stream per picture, the same on every device.

Nothing else is random: schedulers that draw noise in their steps draw it here too (see schedulers.py), and Paddle's
process-wide generator is asked for one seed when a call has none, so that `paddle.seed` decides.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import paddle
from ppdiffusers.utils.paddle_utils import RNG_STATE_TRACKER

Generator = int | np.random.Generator | Sequence | None  # and paddle.Generator, which ppdiffusers made a function
ACCEPTED = "a seed (a whole number), a numpy.random.Generator, a paddle.Generator with a seed, or a list of them"


class NoiseSource:
    """Standard normal noise for `count` pictures, so that no picture depends on the batch it is drawn in.

    generator: None (seeded from Paddle's global generator), one seed (picture i draws from seed + i), one numpy
    Generator (drawn from in turn), or a list of `count` seeds or Generators. A paddle.Generator stands for the seed
    that it was given. `seeds` has the seed of each picture, None where a numpy Generator was given.

    Raises:
        TypeError: it is none of these. ValueError: a seed is negative, a list has another length.
    """

    def __init__(self, generator: Generator, count: int) -> None:
        if isinstance(generator, (list, tuple)):
            if len(generator) != count:
                raise ValueError(f"generator has {len(generator)} entries for {count} pictures; give one per picture")
            entries = [seed_of(entry) for entry in generator]
        elif isinstance(generator, np.random.Generator):
            entries = [generator] * count
        else:
            first = new_seed() if generator is None else seed_of(generator)
            entries = [first + i for i in range(count)]
        self.seeds = [None if isinstance(entry, np.random.Generator) else entry for entry in entries]
        self.streams = [np.random.default_rng(entry) for entry in entries]

    def normal(self, shape: Sequence[int]) -> paddle.Tensor:
        """float32 (count, *shape)."""
        return paddle.to_tensor(np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in self.streams]))


def new_seed() -> int:
    """A seed from Paddle's global generator."""
    return paddle.randint(0, 2**31 - 1, [1]).item()


def seed_of(value: object) -> int | np.random.Generator:
    """A seed as a Python number, whatever type it came in; a numpy Generator as it is. Errors: see NoiseSource."""
    if isinstance(value, np.random.Generator):
        return value
    if hasattr(value, "initial_seed"):
        return int(value.initial_seed())
    if value is RNG_STATE_TRACKER:
        raise TypeError("generator is a paddle.Generator without a seed: give paddle.Generator().manual_seed(7), or 7")
    if isinstance(value, str) and value in RNG_STATE_TRACKER.states_:
        raise TypeError("generator is a paddle.Generator that was seeded before ppvilg was imported: give its seed")
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"generator must be {ACCEPTED}, got {_described(value)}")
    try:
        seed = operator.index(value)
    except TypeError:  # arrays and tensors of several numbers
        raise TypeError(f"generator must be {ACCEPTED}, got {_described(value)}") from None
    if seed < 0:
        raise ValueError(f"a seed must not be negative, got {seed}")
    return seed


def _described(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


class SeededGenerator(str):
    """What ppdiffusers gives for `paddle.Generator().manual_seed(7)`, a name, with the seed it stands for."""

    seed: int

    def initial_seed(self) -> int:
        return self.seed


def remember_seeds() -> None:
    """Makes ppdiffusers' `paddle.Generator().manual_seed(7)` remember the 7, which it forgets on a CPU.

    It also seeds Paddle's process-wide generator there; that one is put back, as it is on a GPU.
    """
    stock = RNG_STATE_TRACKER.manual_seed

    def manual_seed(seed: int, generator_name: str | None = None) -> SeededGenerator:
        state = paddle.get_rng_state()
        name = SeededGenerator(stock(seed, generator_name))
        paddle.set_rng_state(state)
        name.seed = operator.index(seed)
        return name

    if not hasattr(RNG_STATE_TRACKER, "_ppvilg_remembers"):
        RNG_STATE_TRACKER.manual_seed = manual_seed
        RNG_STATE_TRACKER._ppvilg_remembers = True


remember_seeds()
