"""Runs stages over units: pictures are decoded ahead by threads, go through the stages in batches, and become lines."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from PIL import Image
from tqdm import tqdm

from ppvilg._versions import VERSION
from ppvilg.data import BadSample, Listed, Listing

from .sidecar import TOOL, check_same, encode, new_sidecar, read_header
from .stage import READ, Rejection, Sample, Stage
from .units import Unit

logger = logging.getLogger(__name__)


class Runner:
    """Makes the sidecars of units with `stages`, in batches of `batch_size` pictures decoded by `workers` threads."""

    def __init__(self, stages: Sequence[Stage], batch_size: int = 8, workers: int = 2):
        self.stages, self.batch_size, self.workers = list(stages), batch_size, workers
        self.identities = [{"name": stage.name, **stage.identity} for stage in self.stages]

    def check(self, units: Sequence[Unit]) -> None:
        """ValueError when a sidecar that is there was made by anything else than these stages."""
        for unit in units:
            if unit.output.exists():
                check_same(unit.output, read_header(unit.output), self.identities)

    def run(self, units: Sequence[Unit]) -> None:
        """Makes the sidecars that are not there, or were made of another file; ValueError as `check`."""
        self.check(units)
        units[0].output.parent.mkdir(parents=True, exist_ok=True)
        left = [unit for unit in units if not is_done(unit)]
        logger.info("%d of %d sidecars in %s are there", len(units) - len(left), len(units), units[0].output.parent)
        progress = _Progress(left)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool, progress.bar:
            for unit in left:
                self._make(unit, pool, progress)

    def _make(self, unit: Unit, pool: ThreadPoolExecutor, progress: _Progress) -> None:
        listing = unit.list()
        progress.begin(unit, len(listing.samples))
        for stage in self.stages:
            stage.start()
        bad, others = _lines_of_problems(listing)
        header = {"tool": TOOL, "version": VERSION, "source": unit.source(listing), "stages": self.identities,
                  "problems": others}  # fmt: skip
        with new_sidecar(unit.output) as file:
            file.write(encode(header))
            file.writelines(map(encode, bad))
            for batch in self._batches(unit, listing, pool):
                file.writelines(map(encode, self._lines(unit, batch)))
                progress.bar.update(len(batch))

    def _batches(self, unit: Unit, listing: Listing, pool: ThreadPoolExecutor) -> Iterator[list]:
        """Lists of (Listed, picture or BadSample) in order, decoded one batch ahead."""
        with nullcontext() if unit.is_folder else open(unit.path, "rb", buffering=0) as file:
            waiting, samples = deque(), iter(listing.samples)
            ahead = self.batch_size + max(self.batch_size, 2 * self.workers)
            while True:
                for each in itertools.islice(samples, ahead - len(waiting)):
                    waiting.append((each, pool.submit(_read, each, file)))
                if not waiting:
                    return
                now = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                yield [(each, future.result()) for each, future in now]

    def _lines(self, unit: Unit, batch: list[tuple[Listed, Image.Image | BadSample]]) -> Iterator[dict]:
        """One line for each sample of a batch, in order."""
        lines, samples, numbers = [], [], []
        for listed, picture in batch:
            lines.append(_first_fields(unit, listed))
            if isinstance(picture, BadSample):
                lines[-1]["rejected"] = {"stage": READ, "reason": picture.reason}
                continue
            fields = {name: lines[-1][name] for name in ("objects", "captions") if name in lines[-1]}
            samples.append(Sample(listed.key, listed.source, picture, dict(listed.entry["captions"]), fields))
            numbers.append(len(lines) - 1)
        for stage in self.stages:
            kept = []
            for number, sample, answer in zip(numbers, samples, _answers(stage, samples)):
                if isinstance(answer, Rejection):
                    lines[number]["rejected"] = {"stage": stage.name, "reason": answer.reason}
                    continue
                _merge(sample.fields, answer)
                lines[number] |= sample.fields
                kept.append((number, sample))
            numbers, samples = [number for number, _ in kept], [sample for _, sample in kept]
        return iter(lines)


def is_done(unit: Unit) -> bool:
    """Whether a unit's sidecar is there and was made of the file that is there now."""
    if not unit.output.exists():
        return False
    source = read_header(unit.output)["source"]
    if unit.is_folder:
        return source == json.loads(json.dumps(unit.source()))
    if source.get("file") != os.path.basename(unit.path) or source.get("bytes") != unit.bytes():
        return False
    older = os.path.getmtime(unit.path) < os.path.getmtime(unit.output)
    return older or source == unit.source()


def _read(listed: Listed, file) -> Image.Image | BadSample:
    try:
        return listed.read(file)
    except BadSample as problem:
        return problem


def _answers(stage: Stage, samples: list[Sample]) -> list[dict | Rejection]:
    answers = stage.process(samples) if samples else []
    if len(answers) != len(samples):
        raise ValueError(f"stage {stage.name} gave {len(answers)} answers for {len(samples)} pictures")
    return answers


def _merge(fields: dict, answer: dict) -> None:
    """Adds what a stage found: of captions each kind for itself, all else as a whole."""
    for name, value in answer.items():
        fields[name] = fields.get(name, {}) | value if name == "captions" else value


def _first_fields(unit: Unit, listed: Listed) -> dict:
    """What a line begins with; of a folder, whose sidecar is its JSONL, all that was known."""
    width, height = listed.size
    line = {"key": listed.key, "width": width, "height": height}
    if unit.is_folder:
        entry = listed.entry
        objects = [{"label": label, "box": box, "score": score} for label, box, score in entry.get("objects") or ()]
        line = {"key": listed.key, "file_name": os.path.relpath(listed.path, unit.path), **line,
                "captions": entry["captions"], **({"tags": entry["tags"]} if entry.get("tags") else {}),
                **({"objects": objects} if objects else {}), **entry["extra"]}  # fmt: skip
    return line


def _lines_of_problems(listing: Listing) -> tuple[list[dict], list[dict]]:
    """(lines about samples that cannot be used, other problems): a key has one line, that of the sample that can."""
    counts = Counter(problem.key for problem in listing.problems) + Counter(each.key for each in listing.samples)
    lines, others = [], []
    for problem in listing.problems:
        if problem.key and counts[problem.key] == 1:
            lines.append({"key": problem.key, "rejected": {"stage": READ, "reason": problem.reason}})
        else:
            others.append({"key": problem.key, "source": problem.source, "reason": problem.reason})
    lines += [{"key": each.key, "rejected": {"stage": "before", "reason": each.reason}} for each in listing.left_out]
    return lines, others


class _Progress:
    """A bar over pictures; how many are in the shards that were not opened yet is guessed from their bytes."""

    def __init__(self, units: Sequence[Unit]):
        self.bytes_left = sum(unit.bytes() for unit in units)
        self.bytes_seen = self.pictures = 0
        place = units[0].output.parent if units else ""
        self.bar = tqdm(total=0, desc=f"annotating into {place}", unit="picture", disable=not units)

    def begin(self, unit: Unit, pictures: int) -> None:
        """A unit with so many pictures is next."""
        self.bytes_left -= unit.bytes()
        self.bytes_seen += unit.bytes()
        self.pictures += pictures
        guessed = self.bytes_left * self.pictures / self.bytes_seen if self.bytes_seen else 0
        self.bar.total = self.pictures + round(guessed)
        self.bar.refresh()

