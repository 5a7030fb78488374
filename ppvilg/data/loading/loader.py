"""Loaders: which samples come is a pure function of (seed, step); to resume is to start at another step."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..latents import LatentStore
from ..order import BatchOrder
from ..records import BAD_SAMPLE_SHARE, BadSample, BadSampleLimit, TooManyBadSamples
from ..report import DataReport, Tally
from ..source import RecordSource
from ..transforms import ImageTransform
from .batches import STAND_INS, Batch, Finish, LatentReader, Loaded, PictureReader
from .pool import WorkerPool


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


class _Loader:
    """Batches of one rank, from any step on; the result does not depend on the number of workers or passes.

    A rank's share of a step comes in `passes` batches. `workers` processes prepare them ahead, `prefetch` each; 0
    prepares each when it is asked for. `finish` makes arrays of the records where they are read, in the workers too.
    """

    def __init__(self, order: BatchOrder, rank: int, world_size: int, passes: int, workers: int, prefetch: int):
        if not 0 <= rank < world_size or passes < 1 or order.batch_size % (world_size * passes):
            raise ValueError(
                f"rank {rank}, world_size {world_size}, passes {passes}, global batch {order.batch_size}: the rank "
                "must be below world_size, and the batch a multiple of world_size x passes"
            )
        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers {workers} must be >= 0, prefetch {prefetch} >= 1")
        self.order, self.workers, self.prefetch, self.passes = order, workers, prefetch, passes
        self._rank, self._world_size = rank, world_size

    def iterate_from(self, step: int, takes: Callable[[int], bool] | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield (step, Batch) for this step and all that follow, without end; only those that takes(step) wants."""
        share = self.order.batch_size // self._world_size
        size = share // self.passes
        starts = range(self._rank * share, (self._rank + 1) * share, size)
        wanted = ((each, number, range(start, start + size))
                  for each in filter(takes or (lambda step: True), itertools.count(step))
                  for number, start in enumerate(starts))  # fmt: skip
        reader = self._reader()
        pool = WorkerPool(reader, self.workers, self.workers * self.prefetch, wanted) if self.workers else None
        self._begin(step)
        try:
            for loaded in pool if pool is not None else itertools.starmap(reader, wanted):
                batch = self._accept(loaded)
                yield batch.step, batch
        finally:
            if pool is not None:
                pool.close()
            self._end()

    def _reader(self) -> Callable[[int, int, range], Loaded]:
        raise NotImplementedError

    def _begin(self, step: int) -> None:
        """Reading begins."""

    def _accept(self, loaded: Loaded) -> Batch:
        """The batch that was loaded."""
        return loaded.batch

    def _end(self) -> None:
        """Reading ends."""


class LatentLoader(_Loader):
    """Batches of cached latents; see `_Loader` for what is common."""

    def __init__(self, store: LatentStore, order: BatchOrder, rank: int = 0, world_size: int = 1, workers: int = 0,
                 prefetch: int = 2, passes: int = 1, finish: Finish | None = None):
        super().__init__(order, rank, world_size, passes, workers, prefetch)
        if order.num_different != len(store):
            raise ValueError(f"the order speaks of {order.num_different} samples, the store has {len(store)}")
        self.store, self.finish = store, finish

    def _reader(self) -> LatentReader:
        return LatentReader(self.store, self.order, self.finish)


class SampleLoader(_Loader):
    """Batches of decoded, transformed pictures; see `_Loader` for what is common.

    A bad sample is counted, named in `report.bad`, in `bad_sample_list` (a JSONL to append to) and to `on_bad_sample`,
    and replaced by `BatchOrder.replacement`. TooManyBadSamples once more than `bad_sample_share` of them are bad.
    `account` is a file that gets a line of JSON about the data, about every epoch and about the rest when reading ends.
    """

    def __init__(
        self,
        source: RecordSource,
        transform: ImageTransform,
        order: BatchOrder,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        on_bad_sample: Callable[[BadSample], None] | None = None,
        bad_sample_list: str | os.PathLike | None = None,
        account: str | os.PathLike | None = None,
        bad_sample_share: float = BAD_SAMPLE_SHARE,
        passes: int = 1,
        finish: Finish | None = None,
    ):
        super().__init__(order, rank, world_size, passes, workers, prefetch)
        if order.num_different != len(source) or order.buckets.max() >= len(transform.shapes):
            raise ValueError(
                f"the order speaks of {order.num_different} samples and bucket {order.buckets.max()}, the source has "
                f"{len(source)} samples and the transform {len(transform.shapes)} shapes: build the order from "
                "source.buckets(transform)"
            )
        if seed < 0:
            raise ValueError(f"seed {seed} must be >= 0")
        self.source, self.transform, self.seed, self.finish = source, transform, int(seed), finish
        self._limit = BadSampleLimit(len(source), bad_sample_share)
        self.on_bad_sample, self.bad_sample_list = on_bad_sample, bad_sample_list
        self.report = LoadReport()
        self._bad_indices: set[int] = set()
        self._account = None if account is None else DataReport(account)

    def _reader(self) -> PictureReader:
        return PictureReader(self.source, self.transform, self.order, self.seed, self.finish)

    def _begin(self, step: int) -> None:
        self._ledger = _Ledger(self._account, self.order, step, rank=self._rank, world_size=self._world_size)
        if self._account is not None and self._rank == 0:
            for source in self.source.sources:
                self._account.data(source, rank=self._rank, world_size=self._world_size)

    def _end(self) -> None:
        self._ledger.close()

    def _accept(self, loaded: Loaded) -> Batch:
        """Book what a batch cost, in the order of steps, so that the report too is independent of the workers."""
        for index, problem in loaded.bad:
            self.report.read += 1
            self.report.skipped += 1
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                self._name(problem)
        if loaded.batch is None:
            first = "".join(f"\n  {problem}" for problem in self.report.bad[:10])
            raise TooManyBadSamples(f"no good sample was found in {STAND_INS} tries; the first bad ones:{first}")
        self._limit.check(len(self.report.bad), self.report.bad, self.bad_sample_list or "loader.report.bad")
        self.report.read += len(loaded.batch)
        self.report.used += len(loaded.batch)
        self._ledger.add(loaded.batch, loaded.bad)
        return loaded.batch

    def _name(self, problem: BadSample) -> None:
        self.report.bad.append(problem)
        if self.bad_sample_list is not None:
            fields = {"key": problem.key, "source": problem.source, "reason": problem.reason}
            with open(self.bad_sample_list, "a", encoding="utf-8") as file:
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        if self.on_bad_sample is not None:
            self.on_bad_sample(problem)


class _Ledger:
    """Counts samples and writes the line of an epoch when the next one begins."""

    def __init__(self, account: DataReport | None, order: BatchOrder, step: int, **fields):
        self.account, self.order, self.fields = account, order, fields
        if account is not None:
            self._begin(step)

    def _begin(self, step: int) -> None:
        self.first = self.next = step
        self.epoch = self.order.epoch_of(step)
        self.end = self.order.epoch_start(self.epoch + 1)
        self.read, self.used, self.skipped = 0, 0, Tally()

    def add(self, batch: Batch, bad: list[tuple[int, BadSample]]) -> None:
        if self.account is None:
            return
        if batch.step >= self.end:
            self._write("epoch")
            self._begin(batch.step)
        self.next = batch.step + 1
        self.used += len(batch)
        self.read += len(batch) + len(bad)
        for _, problem in bad:
            self.skipped.add(problem)

    def close(self) -> None:
        if self.account is not None and self.next > self.first:
            self._write("epoch" if self.next == self.end else "part of an epoch")

    def _write(self, what: str) -> None:
        self.account.samples(what, self.read, self.used, self.skipped, epoch=self.epoch, first_step=self.first,
                             next_step=self.next, **self.fields)  # fmt: skip
