"""Near duplicates by perceptual hashes.

Two steps, so that ranks need not talk: a stage notes the hash of every picture in its sidecar; when all sidecars are
there, one process marks the pictures that are like an earlier one, in the order of the shards. The result depends on
the pictures alone, not on who made which sidecar, and marking again begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from ppvilg.files import write_whole

from ..sidecar import encode, read_header, read_lines_of
from ..stage import Rejection, Sample
from ..units import Unit
from .libraries import library_identity, open_library

STAGE = "duplicates"  # of rejections
BITS = 64
_LEAST_BITS = 24  # that are 1: of pictures with any structure half of them, the median being the threshold
MOST_DISTANCE = 15  # pairs are looked for among those with 64 / (distance + 1) bits in common


class HashStage:
    """Notes the perceptual hash of every picture (pHash: signs of the low frequencies of its cosine transform)."""

    name = "hash"

    def __init__(self):
        self._library = open_library("imagehash", "imagehash", "finding near duplicates")
        self.identity = {"hash": "phash", "bits": BITS, **library_identity("imagehash")}

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """It holds nothing open."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """{"phash": 16 hexadecimal digits}; none where a picture is too flat to tell from other flat ones."""
        hashes = [self._library.phash(sample.picture) for sample in batch]
        return [{"phash": str(each)} if each.hash.sum() >= _LEAST_BITS else {} for each in hashes]


def mark_duplicates(units: Sequence[Unit], distance: int = 4) -> int:
    """Reject each sample whose picture differs in at most `distance` of 64 bits from that of an earlier one.

    "Earlier" is by the order of `units` and of their lines; samples left out for another reason do not count. Sidecars
    are replaced one by one, each whole; what an earlier marking rejected is looked at again. Gives how many are marked.

    Raises:
        ValueError: a distance that cannot be; a sidecar is missing, or was made without hashes.
    """
    if not 0 <= distance <= MOST_DISTANCE:
        raise ValueError(f"the distance of near duplicates is from 0 to {MOST_DISTANCE} bits, got {distance}")
    _check(units)
    hashes, names = [], []
    for unit in tqdm(units, desc="reading hashes", unit="sidecar", delay=2):
        for line in read_lines_of(unit.output):
            if _hash_of(line) is not None:
                hashes.append(_hash_of(line))
                names.append((unit.output.name.removesuffix(".annotations.jsonl"), line["key"]))
    originals = originals_of(np.array(hashes, np.uint64), distance)
    numbers = iter(range(len(hashes)))
    for unit in tqdm(units, desc="marking duplicates", unit="sidecar", delay=2):
        lines = [_marked(line, numbers, originals, hashes, names) for line in read_lines_of(unit.output)]
        text = "".join(map(encode, [read_header(unit.output), *lines]))
        if text != unit.output.read_text(encoding="utf-8", errors="surrogatepass"):
            write_whole(unit.output, text.encode("utf-8", "surrogatepass"))
    return int((originals >= 0).sum())


def originals_of(hashes: np.ndarray, distance: int) -> np.ndarray:
    """For each of hashes (n,) uint64 the number of the first kept one within `distance` bits before it, else -1.

    A picture that is like a duplicate alone is kept: what is left out always has a likeness that stays.
    """
    values, first, members = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # unique hashes as they come in the data
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept = np.full(len(order), -1, np.int64)  # by place: the place of its original
    for later, earlier in _pairs(values[order], distance):
        if kept[earlier] < 0 and kept[later] < 0:
            kept[later] = earlier
    original = first[order]
    found = np.full(len(hashes), -1, np.int64)
    for number, member in enumerate(place[members]):
        like = original[kept[member]] if kept[member] >= 0 else original[member]
        found[number] = like if like != number else -1
    return found


def _pairs(values: np.ndarray, distance: int) -> np.ndarray:
    """(n, 2) places (later, earlier) of different values within `distance` bits, in order.

    Of distance + 1 pieces of such a pair one is the same in both (Norouzi et al. 2012, multi-index hashing).
    """
    found = [np.empty((0, 2), np.int64)]
    bands = np.array_split(np.arange(BITS), distance + 1) if distance else []
    for bits in bands:
        keys = (values >> np.uint64(bits[0])) & np.uint64((1 << len(bits)) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        left, shift = np.arange(len(keys)), 0
        while len(left):  # every one with its next neighbour of the same piece, the one after that, and so on
            shift += 1
            left = left[left + shift < len(keys)]
            left = left[keys[left] == keys[left + shift]]
            one, two = order[left], order[left + shift]
            near = _bits_set(values[one] ^ values[two]) <= distance
            found.append(np.stack([np.maximum(one, two)[near], np.minimum(one, two)[near]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


_BITS_SET = np.array([number.bit_count() for number in range(2**16)], np.uint8)


def _bits_set(values: np.ndarray) -> np.ndarray:
    """How many bits of each (n,) uint64 are 1 (NumPy 2 has it, NumPy 1 has not)."""
    return _BITS_SET[np.ascontiguousarray(values).view(np.uint16)].reshape(-1, 4).sum(axis=1)


def _check(units: Sequence[Unit]) -> None:
    missing = [unit.output for unit in units if not unit.output.exists()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(units)} sidecars are missing, the first {missing[0]}: near "
                         "duplicates are marked when all are there")  # fmt: skip
    for unit in units:
        if all(stage["name"] != HashStage.name for stage in read_header(unit.output)["stages"]):
            raise ValueError(f"{unit.output} was made without hashes: annotate with --hashes into another --output")


def _hash_of(line: dict) -> int | None:
    """The hash of a sample that is used, or that only an earlier marking left out."""
    if "phash" not in line or line.get("rejected", {}).get("stage", STAGE) != STAGE:
        return None
    return int(line["phash"], 16)


def _marked(line: dict, numbers: Iterator[int], originals: np.ndarray, hashes: list[int], names: list) -> dict:
    if _hash_of(line) is None:
        return line
    line = {name: value for name, value in line.items() if name != "rejected"}
    number = next(numbers)
    original = int(originals[number])
    if original >= 0:
        bits = (hashes[number] ^ hashes[original]).bit_count()
        shard, key = names[original]
        line["rejected"] = {"stage": STAGE, "reason": f"like {shard}:{key} but for {bits} of {BITS} bits"}
    return line
