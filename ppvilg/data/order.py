"""The order of samples: a pure function of (seed, epoch, position) in memory that does not grow with their number.

A permutation of n things is computed, not stored: a small cipher over [0, n). A stream of samples is shuffled in two
levels, so that reading stays near itself on disk: blocks of neighbours change places all over the data set, and the
samples of `window` samples' worth of blocks are mixed with each other. To resume is to ask for another position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

SHUFFLE_BLOCK = 256  # neighbours that stay in one window
SHUFFLE_WINDOW = 16384  # samples that are mixed with each other; one window holds a small data set whole
OWN_STAND_INS = 16  # stand-ins from a sample's own bucket before any other
_ROUNDS = 8
_SORTED = 2**16  # up to so many things are sorted rather than enciphered
_CHUNK = 4096  # steps whose buckets are drawn at once, about
_SCHEDULE_STREAM = 2**31  # a bucket's own number is its stream
_STAND_IN_STREAM = 2**31 + 2
_MASK = 2**64 - 1


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 (k,): the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*words: int) -> int:
    """A 64-bit key from whole numbers in [0, 2^64); the same in every version of every library."""
    key = 0x9E3779B97F4A7C15
    for word in words:
        if not 0 <= word <= _MASK:
            raise ValueError(f"words of a key must lie in [0, 2^64), got {words}")
        key = (key * 0xD1342543DE82EF95 + word + 1) & _MASK
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


class Permutation:
    """A pseudo-random order of [0, n), asked for by position: bounded memory and time, whatever n is.

    Up to 65,536 things are sorted by a hash. More go through a Feistel network over a x b >= n (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains"): what lands at n or above is enciphered again until it does not (cycle
    walking), which keeps it one-to-one. ValueError when n is not positive.
    """

    def __init__(self, n: int, key: int):
        if n < 1:
            raise ValueError(f"a permutation needs at least one thing, got n={n}")
        self.n = int(n)
        self._table = None
        if self.n <= _SORTED:
            hashes = _mix(_mix(np.arange(self.n, dtype=np.uint64) + np.uint64(key_of(key))))
            self._table = np.argsort(hashes, kind="stable")
            return
        self._left = np.uint64(math.isqrt(self.n))
        self._right = np.uint64(-(-self.n // math.isqrt(self.n)))
        self._keys = [np.uint64(key_of(key, number)) for number in range(_ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 (k,) positions in [0, n) -> int64 (k,), each the image of its position."""
        if self._table is not None:
            return self._table[positions]
        values = self._encipher(np.asarray(positions).astype(np.uint64))  # (k,)
        outside = values >= self.n
        while outside.any():
            values[outside] = self._encipher(values[outside])
            outside = values >= self.n
        return values.astype(np.int64)

    def _encipher(self, values: np.ndarray) -> np.ndarray:
        left, right = values // self._right, values % self._right
        for number, key in enumerate(self._keys):
            if number % 2:
                left = (left + _mix(right + key) % self._left) % self._left
            else:
                right = (right + _mix(left + key) % self._right) % self._right
        return left * self._right + right


class BlockPermutation:
    """An order of [0, n) that stays near itself: `window` neighbouring positions touch window / block blocks only.

    Blocks of `block` neighbours are permuted; then positions are permuted inside each window. The last block may be
    short: its missing places are walked over. With n <= window it is a permutation like any other.
    """

    def __init__(self, n: int, key: int, block: int = SHUFFLE_BLOCK, window: int = SHUFFLE_WINDOW):
        if n < 1 or block < 1 or window < block:
            raise ValueError(f"n {n} and block {block} must be positive and window {window} at least a block")
        self.n, self.key = int(n), key
        self.block = min(int(block), self.n)
        self.blocks = -(-self.n // self.block)
        self.per_window = max(1, int(window) // self.block)
        self._order_of_blocks = Permutation(self.blocks, key_of(key, 0))
        self._inside = lru_cache(maxsize=4)(self._make_inside)

    def _make_inside(self, window: int) -> Permutation:
        blocks = min(self.per_window, self.blocks - window * self.per_window)
        return Permutation(blocks * self.block, key_of(self.key, 1, window))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 (k,) positions in [0, n) -> int64 (k,), each the image of its position."""
        values = self._once(np.asarray(positions, dtype=np.int64))  # (k,)
        outside = values >= self.n
        while outside.any():  # at most one block of all is not whole
            values[outside] = self._once(values[outside])
            outside = values >= self.n
        return values

    def _once(self, values: np.ndarray) -> np.ndarray:
        size = self.per_window * self.block
        windows, within = np.divmod(values, size)
        for window in np.unique(windows):
            mine = windows == window
            within[mine] = self._inside(int(window))(within[mine])
        slots, offsets = np.divmod(within, self.block)
        return self._order_of_blocks(windows * self.per_window + slots) * self.block + offsets


class Buckets(Protocol):
    """Which samples have which shape; `ShapeBuckets` keeps it on disk, `ArrayBuckets` in memory."""

    numbers: Sequence[int]  # of the buckets that have samples, ascending
    counts: Sequence[int]  # samples of each

    def members(self, bucket: int, places: np.ndarray, epoch: int = 0) -> np.ndarray:
        """The samples at places (k,) of a bucket's list, int64 (k,); those of a mixture depend on the epoch."""


class ArrayBuckets:
    """Buckets of a small data set, from an array (n,) with each sample's bucket."""

    def __init__(self, bucket_of_sample: np.ndarray):
        buckets = np.asarray(bucket_of_sample, dtype=np.int64)
        if buckets.ndim != 1 or not len(buckets) or buckets.min() < 0:
            raise ValueError(
                f"bucket_of_sample must hold a bucket >= 0 for each of at least one sample; shape {buckets.shape}"
            )
        self.numbers = np.unique(buckets).tolist()
        self._members = {bucket: np.flatnonzero(buckets == bucket) for bucket in self.numbers}
        self.counts = [len(members) for members in self._members.values()]

    def members(self, bucket: int, places: np.ndarray, epoch: int = 0) -> np.ndarray:
        return self._members[bucket][places]


class RangeBuckets:
    """Buckets of samples that lie sorted by bucket: only their counts are kept."""

    def __init__(self, counts: dict[int, int]):
        self.numbers = sorted(bucket for bucket, count in counts.items() if count)
        self.counts = [int(counts[bucket]) for bucket in self.numbers]
        if not self.counts or min(self.counts) < 0 or min(self.numbers) < 0:
            raise ValueError(f"counts must be those of at least one sample in buckets >= 0, got {counts}")
        self._starts = dict(zip(self.numbers, np.cumsum([0, *self.counts[:-1]]).tolist()))

    def members(self, bucket: int, places: np.ndarray, epoch: int = 0) -> np.ndarray:
        return self._starts[bucket] + np.asarray(places, dtype=np.int64)


class BatchOrder:
    """Which samples form the batch of a step, in any order of asking and without walking the steps before.

    Each bucket is an endless stream of its samples: permutation 0, permutation 1, ..., each holding every sample once.
    Batch j of a bucket is positions [j * batch_size, (j + 1) * batch_size) of its stream, so a remainder is carried
    into the next permutation and nothing is dropped. Epoch e contains, of a bucket with n samples, the batches from
    floor(e * n / batch_size) to floor((e + 1) * n / batch_size). It is cut into chunks of about 4096 steps that hold
    every bucket in its proportion; within a chunk the buckets are shuffled. Nothing here grows with the number of
    samples, except what `buckets` keeps; an array (n,) with each sample's bucket is for small data sets.
    """

    def __init__(
        self,
        buckets: Buckets | np.ndarray,
        batch_size: int,
        seed: int,
        block: int = SHUFFLE_BLOCK,
        window: int = SHUFFLE_WINDOW,
    ):
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size {batch_size} must be positive and seed {seed} not negative")
        self._held = buckets if hasattr(buckets, "members") else ArrayBuckets(buckets)
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self.block, self.window = int(block), int(window)
        self.buckets = np.array(self._held.numbers, dtype=np.int64)
        self._counts = np.array(self._held.counts, dtype=np.int64)
        self._count_of = dict(zip(self._held.numbers, self._held.counts))
        self.num_samples = int(self._counts.sum())  # of an epoch
        self.num_different = getattr(self._held, "samples", self.num_samples)  # a mixture repeats some
        self._chunks = max(1, round(self.num_samples / self.batch_size / _CHUNK))  # per epoch
        # Two per bucket: a batch may straddle two permutations. Pure functions, so a cache cannot change the order.
        self._permutation = lru_cache(maxsize=2 * len(self.buckets))(self._make_permutation)
        self._schedule = lru_cache(maxsize=2)(self._make_schedule)

    def __reduce__(self):
        return BatchOrder, (self._held, self.batch_size, self.seed, self.block, self.window)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an average epoch, rounded down (at least 1); `epoch_start` has the exact bounds."""
        return max(1, self.num_samples // self.batch_size)

    def epoch_start(self, epoch: int) -> int:
        """The first step of an epoch."""
        return self._start_of(epoch * self._chunks)

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to."""
        return self._chunk_of(step) // self._chunks

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(bucket, int64 (batch_size,) sample indices) of the global batch of a step."""
        bucket, number = self._locate(step)
        positions = number * self.batch_size + np.arange(self.batch_size)
        return bucket, self._at(bucket, positions)

    def part(self, step: int, first: int, last: int) -> tuple[int, np.ndarray]:
        """(bucket, int64 (last - first,) sample indices) of slots [first, last) of a step's global batch."""
        bucket, number = self._locate(step)
        return bucket, self._at(bucket, number * self.batch_size + np.arange(first, last))

    def replacement(self, step: int, slot: int, attempt: int) -> int:
        """The sample that stands in when the one in `slot` of a batch is bad, and attempt - 1 stand-ins as well.

        First it is the one in the same slot of the bucket's next batches, so that slots do not compete for one
        stand-in and no rank needs to know what another found; after OWN_STAND_INS of these, any sample of the data.
        """
        bucket, number = self._locate(step)
        if attempt > OWN_STAND_INS:
            place = key_of(self.seed, step, slot, attempt, _STAND_IN_STREAM) % self.num_samples
            before = np.cumsum(self._counts)
            position = int(np.searchsorted(before, place, side="right"))
            place -= int(before[position] - self._counts[position])
            return int(self._held.members(int(self.buckets[position]), np.array([place]))[0])
        return int(self._at(bucket, np.array([(number + attempt) * self.batch_size + slot]))[0])

    def _locate(self, step: int) -> tuple[int, int]:
        """(bucket, number of this batch in the bucket's stream)."""
        chunk = self._chunk_of(step)
        schedule, numbers = self._schedule(chunk)
        offset = step - self._start_of(chunk)
        return int(schedule[offset]), int(numbers[offset])

    def _chunk_of(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        chunk = step * self.batch_size * self._chunks // self.num_samples  # never too late, and early by a few at most
        while self._start_of(chunk + 1) <= step:
            chunk += 1
        return chunk

    def _start_of(self, chunk: int) -> int:
        return int(self._batches_before(chunk).sum())

    def _batches_before(self, chunk: int) -> np.ndarray:
        """Batches of each bucket before a chunk, int64 (buckets,)."""
        return np.array([chunk * int(n) // (self.batch_size * self._chunks) for n in self._counts], dtype=np.int64)

    def _make_schedule(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        first = self._batches_before(chunk)
        amounts = self._batches_before(chunk + 1) - first
        total = int(amounts.sum())
        shuffled = Permutation(total, key_of(self.seed, chunk, _SCHEDULE_STREAM))(np.arange(total))
        which = np.repeat(np.arange(len(self.buckets)), amounts)[shuffled]
        numbers = np.empty(total, dtype=np.int64)
        for position, amount in enumerate(amounts):
            numbers[which == position] = first[position] + np.arange(amount)
        return self.buckets[which], numbers

    def _make_permutation(self, bucket: int, epoch: int) -> BlockPermutation:
        return BlockPermutation(self._count_of[bucket], key_of(self.seed, epoch, bucket), self.block, self.window)

    def _at(self, bucket: int, positions: np.ndarray) -> np.ndarray:
        """Samples at positions of a bucket's endless stream."""
        epochs, places = np.divmod(positions, self._count_of[bucket])
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            shuffled = self._permutation(bucket, int(epoch))(places[mine])
            found[mine] = self._held.members(bucket, shuffled, int(epoch))
        return found
