"""Batches in an order that is a pure function of (seed, step): to resume is to start at another step."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .records import BadSample, Record, RecordSource
from .transforms import ImageTransform

# Last words of the seed sequences, so that streams of different purpose never share one. Buckets use their own number.
_SCHEDULE_STREAM = 2**31
_SAMPLE_STREAM = 2**31 + 1


def sample_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator for everything random about one sample at one step; the same on every rank and worker."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, index, _SAMPLE_STREAM])))


class BatchOrder:
    """Which samples form the batch of a step, in any order of asking and without walking the steps before.

    Each bucket is an endless stream of its samples: permutation 0, permutation 1, ..., each holding every sample once.
    Batch j of a bucket is positions [j * batch_size, (j + 1) * batch_size) of its stream, so a remainder is carried
    into the next permutation and nothing is dropped. Epoch e contains, of a bucket with n samples, the batches from
    floor(e * n / batch_size) to floor((e + 1) * n / batch_size), shuffled with those of the other buckets: buckets
    keep their proportion, and the length of an epoch varies by less than the number of buckets.
    """

    def __init__(self, bucket_of_sample: np.ndarray, batch_size: int, seed: int):
        buckets = np.asarray(bucket_of_sample, dtype=np.int64)
        if buckets.ndim != 1 or not len(buckets) or buckets.min() < 0:
            raise ValueError(
                f"bucket_of_sample must hold a bucket >= 0 for each of at least one sample; shape {buckets.shape}"
            )
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size {batch_size} must be positive and seed {seed} not negative")
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self.num_samples = len(buckets)
        self.buckets = np.unique(buckets)
        self._members = {int(bucket): np.flatnonzero(buckets == bucket) for bucket in self.buckets}
        self._counts = np.array([len(members) for members in self._members.values()], dtype=np.int64)
        # Two per bucket: a batch may straddle two permutations. Pure functions, so a cache cannot change the order.
        self._permutation = lru_cache(maxsize=2 * len(self.buckets))(self._make_permutation)
        self._schedule = lru_cache(maxsize=2)(self._make_schedule)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an average epoch, rounded down (at least 1); `epoch_start` has the exact bounds."""
        return max(1, self.num_samples // self.batch_size)

    def epoch_start(self, epoch: int) -> int:
        """The first step of an epoch."""
        return int(self._batches_before(epoch).sum())

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        epoch = step * self.batch_size // self.num_samples  # never too late, and early by a few epochs at most
        while self.epoch_start(epoch + 1) <= step:
            epoch += 1
        return epoch

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(bucket, int64 (batch_size,) sample indices) of the global batch of a step."""
        bucket, number = self._locate(step)
        positions = number * self.batch_size + np.arange(self.batch_size)
        return bucket, self._at(bucket, positions)

    def replacement(self, step: int, slot: int, attempt: int) -> int:
        """The sample that stands in when the one in `slot` of a batch is bad, and attempt - 1 stand-ins as well.

        It is the one in the same slot of the bucket's next batches, so that slots do not compete for one stand-in and
        no rank needs to know what another found.
        """
        bucket, number = self._locate(step)
        return int(self._at(bucket, np.array([(number + attempt) * self.batch_size + slot]))[0])

    def _locate(self, step: int) -> tuple[int, int]:
        """(bucket, number of this batch in the bucket's stream)."""
        epoch = self.epoch_of(step)
        schedule, numbers = self._schedule(epoch)
        offset = step - self.epoch_start(epoch)
        return int(schedule[offset]), int(numbers[offset])

    def _batches_before(self, epoch: int) -> np.ndarray:
        return epoch * self._counts // self.batch_size  # (buckets,)

    def _make_schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        first = self._batches_before(epoch)
        amounts = self._batches_before(epoch + 1) - first
        which = self._rng(epoch, _SCHEDULE_STREAM).permutation(np.repeat(np.arange(len(self.buckets)), amounts))
        numbers = np.empty(len(which), dtype=np.int64)
        for position, amount in enumerate(amounts):
            numbers[which == position] = first[position] + np.arange(amount)
        return self.buckets[which], numbers

    def _make_permutation(self, bucket: int, epoch: int) -> np.ndarray:
        return self._rng(epoch, bucket).permutation(self._members[bucket])

    def _at(self, bucket: int, positions: np.ndarray) -> np.ndarray:
        """Samples at positions of a bucket's endless stream."""
        epochs, within = np.divmod(positions, len(self._members[bucket]))
        samples = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            samples[mine] = self._permutation(bucket, int(epoch))[within[mine]]
        return samples

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, stream])))


@dataclass
class Batch:
    """A rank's part of a batch: pixel_values float32 (N, 3, H, W) in [-1, 1], its records without image."""

    pixel_values: np.ndarray
    records: list[Record]
    bucket: int
    indices: np.ndarray


@dataclass
class LoadReport:
    """What a loader has handed out so far: samples read, used, skipped (read - used), and each bad sample once."""

    read: int = 0
    used: int = 0
    skipped: int = 0
    bad: list[BadSample] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.read} samples read, {self.used} used, {self.skipped} skipped ({len(self.bad)} different ones)"
        return "\n".join([head, *(f"  {problem}" for problem in self.bad[:10])])


@dataclass
class _Loaded:
    batch: Batch | None
    bad: list[tuple[int, BadSample]]


class SampleLoader:
    """Decoded, transformed batches of one rank, from any step on; the result does not depend on the number of workers.

    A bad sample is counted, named in `report.bad`, in `bad_sample_list` (a JSONL to append to) and to `on_bad_sample`,
    and replaced by `BatchOrder.replacement`. RuntimeError once more than `bad_sample_limit` different ones were bad.
    `workers` threads prepare whole batches ahead; 0 prepares each when it is asked for.
    """

    def __init__(
        self,
        source: RecordSource,
        transform: ImageTransform,
        order: BatchOrder,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bad_sample_limit: int = 100,
        workers: int = 0,
        prefetch: int = 2,
        on_bad_sample: Callable[[BadSample], None] | None = None,
        bad_sample_list: str | os.PathLike | None = None,
    ):
        if not 0 <= rank < world_size or order.batch_size % world_size:
            raise ValueError(
                f"rank {rank}, world_size {world_size}, global batch {order.batch_size}: the rank must be below "
                "world_size, and the batch a multiple of it"
            )
        if order.num_samples != len(source) or order.buckets.max() >= len(transform.shapes):
            raise ValueError(
                f"the order speaks of {order.num_samples} samples and bucket {order.buckets.max()}, the source has "
                f"{len(source)} samples and the transform {len(transform.shapes)} shapes: build the order from "
                "transform.buckets_of(source.sizes)"
            )
        if workers < 0 or prefetch < 1 or bad_sample_limit < 0 or seed < 0:
            raise ValueError(
                f"workers {workers}, bad_sample_limit {bad_sample_limit} and seed {seed} must be >= 0, "
                f"prefetch {prefetch} >= 1"
            )
        self.source = source
        self.transform = transform
        self.order = order
        self.seed = int(seed)
        self.bad_sample_limit = bad_sample_limit
        self.workers = workers
        self.prefetch = prefetch
        self.on_bad_sample = on_bad_sample
        self.bad_sample_list = bad_sample_list
        self.report = LoadReport()
        share = order.batch_size // world_size
        self._slots = range(rank * share, (rank + 1) * share)
        self._bad_indices: set[int] = set()

    def iterate_from(self, step: int) -> Iterator[tuple[int, Batch]]:
        """Yield (step, Batch) for this step and all that follow, without end."""
        return self._iterate_ahead(step) if self.workers else self._iterate_inline(step)

    def _iterate_inline(self, step: int) -> Iterator[tuple[int, Batch]]:
        for current in itertools.count(step):
            yield current, self._accept(self._load(current))

    def _iterate_ahead(self, step: int) -> Iterator[tuple[int, Batch]]:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="ppvilg-data") as pool:
            steps = itertools.count(step)
            pending = deque(
                (s, pool.submit(self._load, s)) for s in itertools.islice(steps, self.workers * self.prefetch)
            )
            try:
                while True:
                    current, future = pending.popleft()
                    loaded = future.result()
                    following = next(steps)
                    pending.append((following, pool.submit(self._load, following)))
                    yield current, self._accept(loaded)
            finally:
                for _, future in pending:
                    future.cancel()

    def _load(self, step: int) -> _Loaded:
        """This rank's part of a batch; changes no state of the loader, so threads may run it for several steps."""
        bucket, indices = self.order.batch(step)
        width, height = self.transform.shapes[bucket]
        pixel_values = np.empty((len(self._slots), 3, height, width), dtype=np.float32)
        records, used, bad = [], [], []
        for row, slot in enumerate(self._slots):
            found = self._load_slot(step, bucket, int(indices[slot]), slot, bad)
            if found is None:
                return _Loaded(None, bad)
            index, pixels, record = found
            np.divide(pixels.transpose(2, 0, 1), 127.5, out=pixel_values[row], dtype=np.float32)
            records.append(record)
            used.append(index)
        pixel_values -= 1.0
        return _Loaded(Batch(pixel_values, records, bucket, np.array(used, dtype=np.int64)), bad)

    def _load_slot(
        self, step: int, bucket: int, index: int, slot: int, bad: list[tuple[int, BadSample]]
    ) -> tuple[int, np.ndarray, Record] | None:
        """The sample of a slot or its first good stand-in; bad ones are added to `bad`. None when stand-ins run out."""
        for attempt in range(max(self.bad_sample_limit, 16) + 1):
            candidate = index if attempt == 0 else self.order.replacement(step, slot, attempt)
            try:
                record = self.source.read(candidate)
                rng = sample_rng(self.seed, step, candidate)
                pixels, objects = self.transform(record.image, record.objects, bucket, rng)
            except BadSample as problem:
                bad.append((candidate, problem))
                continue
            return candidate, pixels, replace(record, image=None, objects=objects)
        return None

    def _accept(self, loaded: _Loaded) -> Batch:
        """Book what a batch cost, in the order of steps, so that the report too is independent of the workers."""
        for index, problem in loaded.bad:
            self.report.read += 1
            self.report.skipped += 1
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                self._name(problem)
        if loaded.batch is None or len(self.report.bad) > self.bad_sample_limit:
            first = "\n".join(f"  {problem}" for problem in self.report.bad[:10])
            raise RuntimeError(
                f"{len(self.report.bad)} bad samples, bad_sample_limit={self.bad_sample_limit}; the first:\n{first}\n"
                f"The whole list is in {self.bad_sample_list or 'loader.report.bad'}. Mend or remove them, or raise "
                "bad_sample_limit."
            )
        self.report.read += len(loaded.batch.records)
        self.report.used += len(loaded.batch.records)
        return loaded.batch

    def _name(self, problem: BadSample) -> None:
        self.report.bad.append(problem)
        if self.bad_sample_list is not None:
            fields = {"key": problem.key, "source": problem.source, "reason": problem.reason}
            with open(self.bad_sample_list, "a", encoding="utf-8") as file:
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        if self.on_bad_sample is not None:
            self.on_bad_sample(problem)
