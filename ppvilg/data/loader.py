"""Batches of decoded samples: which ones is a pure function of (seed, step); to resume is to start at another step."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from .order import BatchOrder
from .records import BAD_SAMPLE_SHARE, BadSample, BadSampleLimit, Record, TooManyBadSamples
from .report import DataReport, Tally
from .source import RecordSource
from .transforms import ImageTransform, to_pixel_values

_STAND_INS = 64  # for one bad sample; of a set half of which is bad, none is good once in 10^19 times
_SAMPLE_STREAM = 2**31 + 1  # last word of the seed sequence: other purposes have other ones


def sample_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator for everything random about one sample at one step; the same on every rank and worker."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, index, _SAMPLE_STREAM])))


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
class Loaded:
    """A rank's part of a step as a worker hands it over: uint8 (N, H, W, 3) or None when stand-ins ran out."""

    pixels: np.ndarray | None
    records: list[Record]
    bucket: int
    indices: np.ndarray
    bad: list[tuple[int, BadSample]]

    def batch(self) -> Batch:
        """Pixels as the networks take them."""
        return Batch(to_pixel_values(self.pixels), self.records, self.bucket, self.indices)


@dataclass
class Reader:
    """Reads and transforms a rank's slots of any step; without state, so any process may do it for any step."""

    source: RecordSource
    transform: ImageTransform
    order: BatchOrder
    seed: int
    slots: range

    def load(self, step: int) -> Loaded:
        """The part of a step."""
        bucket, indices = self.order.part(step, self.slots.start, self.slots.stop)
        width, height = self.transform.shapes[bucket]
        pixels = np.empty((len(self.slots), height, width, 3), dtype=np.uint8)
        records, used, bad = [], [], []
        for row, (slot, index) in enumerate(zip(self.slots, indices)):
            found = self._load_slot(step, bucket, int(index), slot, bad)
            if found is None:
                return Loaded(None, records, bucket, indices, bad)
            index, pixels[row], record = found
            records.append(record)
            used.append(index)
        return Loaded(pixels, records, bucket, np.array(used, dtype=np.int64), bad)

    def _load_slot(
        self, step: int, bucket: int, index: int, slot: int, bad: list[tuple[int, BadSample]]
    ) -> tuple[int, np.ndarray, Record] | None:
        """The sample of a slot or its first good stand-in; bad ones are added to `bad`. None when stand-ins run out."""
        for attempt in range(_STAND_INS + 1):
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


def serve(connection: Connection) -> None:
    """What a worker process does: takes a Reader, then steps, and gives back Loaded or (exception, its text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when work ends
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        reader = connection.recv()
        while True:
            step = connection.recv()
            try:
                answer = reader.load(step)
            except Exception as error:  # to be raised where somebody can see it
                answer = (error, traceback.format_exc())
            connection.send(answer)


class WorkerPool:
    """Processes that read steps in turn; they import neither Paddle nor the caller's main module.

    They end when their pool is closed, and by themselves when the process that made them is gone.
    """

    def __init__(self, reader: Reader, workers: int, ahead: int, steps: Iterator[int]):
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._processes, self._connections = [], []
        for _ in range(workers):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", "ppvilg.data.worker", str(theirs.fileno())]
            self._processes.append(
                subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
            )
            theirs.close()
            self._connections.append(ours)
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._collect, args=(reader, steps), name="ppvilg-data", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Loaded]:
        """Steps in their order, from the first on. RuntimeError when a worker ended; what a worker raised."""
        while True:
            answer = self._queue.get()
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, tuple):
                raise answer[0] from RuntimeError(f"in a data worker:\n{answer[1]}")
            yield answer

    def _collect(self, reader: Reader, steps: Iterator[int]) -> None:
        """Keep every worker busy with the step after the one it hands over."""
        try:
            for connection in self._connections:
                connection.send(reader)
                connection.send(next(steps))
            for connection in itertools.cycle(self._connections):
                answer = connection.recv()
                connection.send(next(steps))
                if not self._put(answer):
                    return
        except (EOFError, OSError) as error:
            if not self._stopped.is_set():
                codes = [process.poll() for process in self._processes]
                self._put(RuntimeError(f"a data worker ended by itself ({error!r}; exit codes, None: alive: {codes})"))

    def _put(self, answer) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(answer, timeout=0.5)
                return True
        return False

    def close(self) -> None:
        """End the workers."""
        self._stopped.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._thread.join()
        for connection in self._connections:
            connection.close()


class SampleLoader:
    """Decoded, transformed batches of one rank, from any step on; the result does not depend on the number of workers.

    A bad sample is counted, named in `report.bad`, in `bad_sample_list` (a JSONL to append to) and to `on_bad_sample`,
    and replaced by `BatchOrder.replacement`. TooManyBadSamples once more than `bad_sample_share` of them are bad
    (`bad_sample_limit` is what callers gave before there was a share: a number of samples).
    `workers` processes prepare whole batches ahead, `prefetch` each; 0 prepares each when it is asked for. `account` is
    a file that gets a line of JSON about the data, about every epoch and about the rest when reading ends.
    """

    def __init__(
        self,
        source: RecordSource,
        transform: ImageTransform,
        order: BatchOrder,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bad_sample_limit: int | None = None,
        workers: int = 0,
        prefetch: int = 2,
        on_bad_sample: Callable[[BadSample], None] | None = None,
        bad_sample_list: str | os.PathLike | None = None,
        account: str | os.PathLike | None = None,
        bad_sample_share: float = BAD_SAMPLE_SHARE,
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
                "source.buckets(transform)"
            )
        if workers < 0 or prefetch < 1 or seed < 0:
            raise ValueError(f"workers {workers} and seed {seed} must be >= 0, prefetch {prefetch} >= 1")
        self.source = source
        self.transform = transform
        self.order = order
        self.seed = int(seed)
        share = bad_sample_share if bad_sample_limit is None else min(1.0, bad_sample_limit / len(source))
        self._limit = BadSampleLimit(len(source), share)
        self.workers = workers
        self.prefetch = prefetch
        self.on_bad_sample = on_bad_sample
        self.bad_sample_list = bad_sample_list
        self.report = LoadReport()
        share = order.batch_size // world_size
        self._rank, self._world_size = rank, world_size
        self._slots = range(rank * share, (rank + 1) * share)
        self._bad_indices: set[int] = set()
        self._account = None if account is None else DataReport(account)

    def iterate_from(self, step: int, takes: Callable[[int], bool] | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield (step, Batch) for this step and all that follow, without end; only those that takes(step) wants."""
        reader = Reader(self.source, self.transform, self.order, self.seed, self._slots)
        ledger = _Ledger(self._account, self.order, step, rank=self._rank, world_size=self._world_size)
        if self._account is not None and self._rank == 0:
            self._account.data(self.source, rank=self._rank, world_size=self._world_size)
        steps, wanted = (filter(takes or (lambda step: True), itertools.count(step)) for _ in range(2))
        pool = WorkerPool(reader, self.workers, self.workers * self.prefetch, wanted) if self.workers else None
        try:
            ready = pool if pool is not None else map(reader.load, wanted)
            for current, loaded in zip(steps, ready):
                ledger.add(current, loaded)
                yield current, self._accept(loaded)
        finally:
            if pool is not None:
                pool.close()
            ledger.close()

    def _accept(self, loaded: Loaded) -> Batch:
        """Book what a batch cost, in the order of steps, so that the report too is independent of the workers."""
        for index, problem in loaded.bad:
            self.report.read += 1
            self.report.skipped += 1
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                self._name(problem)
        if loaded.pixels is None:
            first = "".join(f"\n  {problem}" for problem in self.report.bad[:10])
            raise TooManyBadSamples(f"no good sample was found in {_STAND_INS} tries; the first bad ones:{first}")
        self._limit.check(len(self.report.bad), self.report.bad, self.bad_sample_list or "loader.report.bad")
        self.report.read += len(loaded.records)
        self.report.used += len(loaded.records)
        return loaded.batch()

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

    def add(self, step: int, loaded: Loaded) -> None:
        if self.account is None:
            return
        if step >= self.end:
            self._write("epoch")
            self._begin(step)
        self.next = step + 1
        self.used += len(loaded.records)
        self.read += len(loaded.records) + len(loaded.bad)
        for _, problem in loaded.bad:
            self.skipped.add(problem)

    def close(self) -> None:
        if self.account is not None and self.next > self.first:
            self._write("epoch" if self.next == self.end else "part of an epoch")

    def _write(self, what: str) -> None:
        self.account.samples(what, self.read, self.used, self.skipped, epoch=self.epoch, first_step=self.first,
                             next_step=self.next, **self.fields)  # fmt: skip
