"""What a rank computes on in one pass, and who reads it: pictures of a source, or latents of a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..latents import LatentStore
from ..order import BatchOrder
from ..records import BadSample, Record
from ..source import RecordSource
from ..transforms import ImageTransform

STAND_INS = 64  # for one bad sample; of a set half of which is bad, none is good once in 10^19 times
_SAMPLE_STREAM = 2**31 + 1  # last word of the seed sequence: other purposes have other ones

# finish(step, indices (N,), records, (width, height)) -> named arrays (N, ...): tokens, weights and the like.
Finish = Callable[[int, np.ndarray, list[Record], tuple[int, int]], dict[str, np.ndarray]]


def sample_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator for everything random about one sample at one step; the same on every rank and worker."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, index, _SAMPLE_STREAM])))


@dataclass
class Batch:
    """One pass of a rank's share of a step (all of it, unless the loader was asked for several passes).

    pixels: uint8 (N, H, W, 3), or latents: (N, C, h, w) as they are stored; the other is None. `size` is (width,
    height) of the pictures. `records` are without image; where the loader finishes batches they are none, and
    `finished` holds the arrays that were made of them.
    """

    step: int
    number: int  # of the pass in its step
    bucket: int
    size: tuple[int, int]
    indices: np.ndarray
    records: list[Record]
    pixels: np.ndarray | None = None
    latents: np.ndarray | None = None
    finished: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def pixel_values(self) -> np.ndarray:
        """float32 (N, 3, H, W) in [-1, 1]."""
        values = np.empty(np.array(self.pixels.shape)[[0, 3, 1, 2]], dtype=np.float32)
        np.divide(self.pixels.transpose(0, 3, 1, 2), 127.5, out=values, dtype=np.float32)
        values -= 1.0
        return values

    def finish(self, finish: Finish | None) -> Batch:
        """With `finished` in the place of the records."""
        if finish is None:
            return self
        made = finish(self.step, self.indices, self.records, self.size)
        return replace(self, records=[], finished={name: array for name, array in made.items() if array is not None})


@dataclass
class Loaded:
    """What a reader found: a batch, or None when stand-ins ran out, and the bad samples on the way."""

    batch: Batch | None
    bad: list[tuple[int, BadSample]] = field(default_factory=list)


@dataclass
class PictureReader:
    """Reads and transforms the slots of any pass; without state, so any process may do it for any step."""

    source: RecordSource
    transform: ImageTransform
    order: BatchOrder
    seed: int
    finish: Finish | None = None

    def __call__(self, step: int, number: int, slots: range) -> Loaded:
        """Slots of the global batch of a step, as its pass `number`."""
        bucket, indices = self.order.part(step, slots.start, slots.stop)
        width, height = self.transform.shapes[bucket]
        pixels = np.empty((len(slots), height, width, 3), dtype=np.uint8)
        records, used, bad = [], [], []
        for row, (slot, index) in enumerate(zip(slots, indices)):
            found = self._load_slot(step, bucket, int(index), slot, bad)
            if found is None:
                return Loaded(None, bad)
            index, pixels[row], record = found
            records.append(record)
            used.append(index)
        batch = Batch(step, number, bucket, (width, height), np.array(used, dtype=np.int64), records, pixels)
        return Loaded(batch.finish(self.finish), bad)

    def _load_slot(
        self, step: int, bucket: int, index: int, slot: int, bad: list[tuple[int, BadSample]]
    ) -> tuple[int, np.ndarray, Record] | None:
        """The sample of a slot or its first good stand-in; bad ones are added to `bad`. None when stand-ins run out."""
        for attempt in range(STAND_INS + 1):
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


@dataclass
class LatentReader:
    """Reads the latents and records of the slots of any pass; all of them are good."""

    store: LatentStore
    order: BatchOrder
    finish: Finish | None = None

    def __call__(self, step: int, number: int, slots: range) -> Loaded:
        """Slots of the global batch of a step, as its pass `number`."""
        bucket, indices = self.order.part(step, slots.start, slots.stop)
        records = [self.store.records[int(index)] for index in indices]
        batch = Batch(step, number, bucket, self.store.shapes[bucket], indices, records,
                      latents=self.store.latents(bucket, indices))  # fmt: skip
        return Loaded(batch.finish(self.finish))
