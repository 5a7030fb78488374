"""Where the randomness of a picture comes from: one numpy stream per picture, the same on every device.

`paddle.Generator` is not used: ppdiffusers replaces it by a tracker of CUDA states that has no effect on a CPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np
import paddle

Generator = int | np.random.Generator | Sequence[int | np.random.Generator] | None


class NoiseSource:
    """Standard normal noise for `count` pictures, so that no picture depends on the batch it is drawn in.

    generator: None (seeded from Paddle's global generator), one seed (picture i draws from seed + i), one numpy
    Generator (drawn from in turn), or a list of `count` seeds or numpy Generators. `seeds` has the seed of each
    picture, None where a numpy Generator was given.
    """

    def __init__(self, generator: Generator, count: int) -> None:
        if generator is None:
            generator = paddle.randint(0, 2**31 - 1, [1]).item()
        if isinstance(generator, (Integral, np.random.Generator)):
            one = isinstance(generator, np.random.Generator)
            generators = [generator if one else _seed(generator) + i for i in range(count)]
        elif isinstance(generator, (list, tuple)):
            generators = list(generator)
        else:
            generators = [generator] * count
        if len(generators) != count:
            raise ValueError(f"generator has {len(generators)} entries for {count} pictures; give one per picture")
        self.seeds = [None if isinstance(entry, np.random.Generator) else _seed(entry) for entry in generators]
        self.streams = [
            entry if isinstance(entry, np.random.Generator) else np.random.default_rng(seed)
            for entry, seed in zip(generators, self.seeds)
        ]
        self._paddle_state = None

    def normal(self, shape: Sequence[int]) -> paddle.Tensor:
        """float32 (count, *shape)."""
        return paddle.to_tensor(np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in self.streams]))

    @contextlib.contextmanager
    def paddle_seeded(self) -> Iterator[None]:
        """Paddle's global generator as seeded from the first stream; puts the caller's state back at the end.

        Entered again, it goes on where it was left.
        """
        state = paddle.get_rng_state()
        if self._paddle_state is None:
            first = copy.deepcopy(self.streams[0])  # drawing from the stream itself would tell the first picture apart
            paddle.seed(int(first.integers(2**31)))
        else:
            paddle.set_rng_state(self._paddle_state)
        try:
            yield
        finally:
            self._paddle_state = paddle.get_rng_state()
            paddle.set_rng_state(state)


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"generator must be a seed (int), a numpy.random.Generator or a list of them, got {value!r}; "
            "a paddle.Generator has no effect on a CPU"
        )
    if value < 0:
        raise ValueError(f"a seed must not be negative, got {value}")
    return int(value)
