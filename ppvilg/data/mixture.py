"""Several data sets as one source, each coming as often as it is asked for.

Indices of the sets follow each other. What a recipe asks for is not copied: an epoch of the mixture holds a set's
samples `repeats` times, through `MixedBuckets`, which tells `BatchOrder` of more places than there are samples.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from .buckets import shape_buckets
from .index import KeyView, home_of
from .order import Buckets
from .records import BAD_SAMPLE_SHARE, BadSample, BadSampleLimit, Record
from .source import RecordSource
from .transforms import ImageTransform


def repeats_of(sizes: Sequence[int], weights: Sequence[float]) -> list[float]:
    """How often each set's samples come in an epoch, so that sets have shares of `weights`; the rarest come once."""
    if len(sizes) != len(weights) or min(sizes) < 1 or min(weights) <= 0:
        raise ValueError(f"sets of {list(sizes)} samples need as many weights above 0, got {list(weights)}")
    wanted = [weight / size for weight, size in zip(weights, sizes)]
    return [each / min(wanted) for each in wanted]


class MixedSource:
    """Data sets end to end, as a `RecordSource`; `repeats`, 1 or more: how often samples of each come in an epoch."""

    def __init__(self, sources: Sequence[RecordSource], repeats: Sequence[float]):
        if not sources or len(sources) != len(repeats) or not min(repeats) >= 1:
            raise ValueError(f"{len(sources)} data sets need as many repeats of 1 or more, got {list(repeats)}")
        self.sources, self.repeats = list(sources), [float(each) for each in repeats]
        self.starts = [0, *itertools.accumulate(map(len, self.sources))]
        self.sizes = _JoinedRows([source.sizes for source in self.sources], self.starts)

    def __len__(self) -> int:
        return self.starts[-1]

    def __reduce__(self):
        return MixedSource, (self.sources, self.repeats)

    @property
    def keys(self) -> KeyView:
        return KeyView(lambda i: self._at(i, lambda source, place: source.keys[place]), len(self))

    @property
    def bad(self) -> list[BadSample]:
        return [problem for source in self.sources for problem in source.bad]

    def read_text(self, i: int) -> Record:
        """Sample i without its picture. Raises as its own source."""
        return self._at(i, RecordSource.read_text)

    def read(self, i: int) -> Record:
        """Sample i with its picture. Raises as its own source."""
        return self._at(i, RecordSource.read)

    def _at(self, i: int, what):
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect.bisect_right(self.starts, i) - 1
        return what(self.sources[number], i - self.starts[number])

    def captions(self) -> Iterator[str]:
        """Every caption, set by set."""
        return itertools.chain.from_iterable(source.captions() for source in self.sources)

    def check_share(self, share: float = BAD_SAMPLE_SHARE) -> None:
        """Raise TooManyBadSamples when more than `share` of the samples of all sets could not be indexed."""
        counts = [source.index.manifest for source in self.sources]
        limit = BadSampleLimit(sum(each["samples"] + each["problems"] for each in counts), share)
        problems = itertools.chain.from_iterable(source.index.problems() for source in self.sources)
        listings = ", ".join(str(source.index.folder / "problems.jsonl") for source in self.sources)
        limit.check(sum(each["problems"] for each in counts), problems, listings)

    def buckets(self, transform: ImageTransform, count: int | None = None) -> Buckets:
        """Which samples (the first `count`) fall into which of the transform's shapes, each once."""
        folder = self.sources[0].index.folder
        if len(transform.shapes) > 1 and not os.access(folder, os.W_OK):
            folder = home_of(self.sources[0].index.base)
        return shape_buckets(folder, self.sizes[:count], transform, of=self.fingerprint())

    def mixed(self, buckets: Buckets, kept: np.ndarray | None = None) -> Buckets:
        """Buckets of samples in which each comes as often as it should; `kept`: their indices here, ascending."""
        cuts = self.starts if kept is None else np.searchsorted(kept, self.starts).tolist()
        return MixedBuckets(buckets, cuts, self.repeats)

    def fingerprint(self) -> str:
        """sha256 of what the data is; independent of how often what comes."""
        return hashlib.sha256(" ".join(source.fingerprint() for source in self.sources).encode()).hexdigest()

    def summary(self, names: int = 10) -> str:
        """Those of the sets, with their shares of the samples that are trained on."""
        parts = [len(source) * often for source, often in zip(self.sources, self.repeats)]
        return "\n".join([f"{len(self)} usable samples in {len(self.sources)} data sets", *(
            f"{source.index.base}: {part / sum(parts):.1%} of what is trained on, {often:g} times an epoch; "
            f"{source.summary(names)}" for source, part, often in zip(self.sources, parts, self.repeats))])


class MixedBuckets:
    """Buckets whose samples come several times in an epoch, each set of them as often as it should.

    `held`: each sample once, in ascending order; `cuts` [0, ...]: first sample of every set, and their number. Where
    a set has 2.5 repeats, an epoch holds its samples two or three times; which ones it is goes round with the epochs.
    """

    def __init__(self, held: Buckets, cuts: Sequence[int], repeats: Sequence[float]):
        self.held, self.cuts, self.repeats = held, list(cuts), list(repeats)
        self.numbers, self.samples = list(held.numbers), int(sum(held.counts))
        self._places = {}  # of every set in a bucket's list: the first ones, and the first ones of its repetitions
        for bucket, count in zip(held.numbers, held.counts):
            first = [_first_at(held, bucket, count, cut) for cut in self.cuts]
            often = [round(n * each) for n, each in zip(np.diff(first).tolist(), self.repeats)]
            self._places[bucket] = np.array(first), np.array([0, *itertools.accumulate(often)])
        self.counts = [int(self._places[bucket][1][-1]) for bucket in self.numbers]

    def __reduce__(self):
        return MixedBuckets, (self.held, self.cuts, self.repeats)

    def members(self, bucket: int, places: np.ndarray, epoch: int = 0) -> np.ndarray:
        """The samples at places (k,) of an epoch of a bucket, int64 (k,)."""
        first, starts = self._places[bucket]
        places = np.asarray(places, np.int64)
        number = np.searchsorted(starts, places, side="right") - 1  # (k,) set of each place
        turn = epoch * (starts[number + 1] - starts[number]) + places - starts[number]
        return self.held.members(bucket, first[number] + turn % (first[number + 1] - first[number]))


def _first_at(held: Buckets, bucket: int, count: int, cut: int) -> int:
    """The first place of a bucket's list whose sample is `cut` or later."""
    return bisect.bisect_left(range(count), cut, key=lambda place: int(held.members(bucket, np.array([place]))[0]))


class _JoinedRows:
    """Arrays (n, ...) end to end without copying them: a row by its number, or some neighbours."""

    def __init__(self, parts: Sequence[np.ndarray], starts: Sequence[int]):
        self._parts, self._starts = parts, starts

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, place: int | slice):
        if not isinstance(place, slice):
            number = bisect.bisect_right(self._starts, place) - 1
            return self._parts[number][place - self._starts[number]]
        start, end, _ = place.indices(len(self))
        if start == 0 and end == len(self):
            return self
        parts = [part[max(start - first, 0) : max(end - first, 0)] for part, first in zip(self._parts, self._starts)]
        return np.concatenate(parts)
