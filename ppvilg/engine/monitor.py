"""What a run tells the person who watches it: a progress bar, one VisualDL log per run, a JSONL for scripts.

Every rank measures itself; the main rank gathers and writes. Ranks wait for each other in every step, so all of them
look equally slow: what tells a straggler is the time it spends outside of communication.
"""
from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import struct
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from visualdl import LogWriter

from ppvilg.data import BadSample
from ppvilg.engine.parallel import distributed

logger = logging.getLogger(__name__)

KINDS = ("gradients", "weights", "agreement", "log", "start", "other")  # of traffic, see traffic.py
IN_STEP = ("gradients", "weights", "agreement")  # what a step waits for
STRAGGLER = 1.3  # times the usual time per step outside of communication
_CURVES = 16  # up to so many ranks have curves of their own in VisualDL
_HALF = 2.0**20  # bytes travel as two numbers, so that float32 holds them exactly


def resident_memory_mib() -> float:
    """Resident memory of this process in MiB (Linux; from /proc)."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def log_bad_sample(problem: BadSample) -> None:
    """Say which sample is left out, and why."""
    logger.warning("bad sample left out: %s", problem)


@dataclass
class RankRow:
    """One rank's window between two logs. `own_seconds` are those of its steps outside of reading and communication.

    communication_bytes are those of the tensors handed over, by kind (see traffic.py).
    """

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    reader_seconds: float = 0.0
    communication_seconds: float = 0.0
    memory_mib: float = 0.0
    device_memory_mib: float = 0.0
    communication_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def pack(self) -> list[float]:
        """Numbers that float32 holds."""
        halves = [half for kind in KINDS for half in divmod(self.communication_bytes[kind], _HALF)]
        return [self.steps, self.samples, self.seconds, self.own_seconds, self.reader_seconds,
                self.communication_seconds, self.memory_mib, self.device_memory_mib, *halves]

    @classmethod
    def unpack(cls, numbers: np.ndarray) -> RankRow:
        """The row that `pack` made of one."""
        values = [float(number) for number in numbers]
        sent = {kind: int(round(high) * _HALF + round(low))
                for kind, high, low in zip(KINDS, values[8::2], values[9::2])}
        return cls(round(values[0]), round(values[1]), *values[2:8], sent)


def gather(row: RankRow) -> list[RankRow]:
    """Every rank's row, in order, on every rank."""
    rank, world = distributed.rank(), distributed.world_size()
    mine = np.array(row.pack())
    table = np.zeros((world, len(mine)))
    table[rank] = mine
    summed = distributed.mean_over_ranks(table.reshape(-1)).reshape(table.shape) * world
    return [RankRow.unpack(numbers) for numbers in summed]


def find_stragglers(rows: list[RankRow]) -> list[tuple[int, float]]:
    """(rank, times slower) of ranks whose steps take over 1.3 times the usual outside of communication.

    The usual is the lower median over ranks that took steps, so that of two ranks the slower one is found.
    """
    own = {rank: (row.own_seconds + row.reader_seconds) / row.steps for rank, row in enumerate(rows) if row.steps}
    if len(own) < 2:
        return []
    usual = max(sorted(own.values())[(len(own) - 1) // 2], 1e-9)
    return [(rank, seconds / usual) for rank, seconds in own.items() if seconds > STRAGGLER * usual]


def address_of(rank: int) -> str:
    """Where a rank runs, as the launcher says."""
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return endpoints[rank] if rank < len(endpoints) and endpoints[rank] else "this machine"


def device_memory_mib() -> float:
    """Most memory that was in use on this rank's GPU, MiB; 0 on a CPU."""
    import paddle

    if not paddle.device.is_compiled_with_cuda() or paddle.get_device() == "cpu":
        return 0.0
    return paddle.device.cuda.max_memory_allocated() / 2**20


class Monitor:
    """Progress of one stage; silent on every rank but the main one.

    Writes `<folder>/<stage>.jsonl` (one object per log, with a list `ranks` where there are several) and adds to the
    one VisualDL log of the run in `<folder>/visualdl`.
    """

    def __init__(self, folder: Path, stage: str, total_steps: int, first_step: int, batch_size: int, enabled: bool):
        self.enabled, self.stage, self.batch_size, self.folder = enabled, stage, batch_size, folder
        self.window_start, self.row = time.perf_counter(), RankRow()
        self.sent_before = self._sent()
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = open_visualdl(folder / "visualdl")
        self.log_file = open(folder / f"{stage}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.bar = tqdm(total=total_steps, initial=first_step, desc=stage, unit="step", dynamic_ncols=True)

    def step(self, reader_seconds: float = 0.0, samples: int = 0, seconds: float = 0.0) -> None:
        """One step is done: it took `seconds`, `reader_seconds` of them waiting for data; 0 samples: not this rank."""
        self.row.steps += samples > 0
        self.row.samples += samples
        self.row.reader_seconds += reader_seconds
        self.row.own_seconds += max(0.0, seconds - reader_seconds)
        if self.enabled:
            self.bar.update(1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write scalars of the window since the last call, with speed, waiting and memory of every rank.

        Every rank calls it, for the main one gathers what the others measured.
        """
        rows = gather(self._close_window())
        if not self.enabled:
            return
        mine, seconds = rows[0], max(rows[0].seconds, 1e-9)
        scalars = dict(scalars, samples_per_second=sum(row.samples for row in rows) / seconds,
                       reader_seconds_per_step=mine.reader_seconds / max(mine.steps, 1), memory_mib=mine.memory_mib)
        stragglers = find_stragglers(rows)
        self.record(step, scalars | self._curves(rows, stragglers), self._details(rows, stragglers))
        self.bar.set_postfix_str(f"loss {scalars.get('loss', float('nan')):.4f}, "
                                 f"{scalars['samples_per_second']:.0f} samples/s")
        for rank, factor in stragglers:
            logger.warning("step %d: rank %d (%s) needs %.1f times as long as usual outside of communication; %.0f %% "
                           "of it waiting for data", step, rank, address_of(rank), factor, 100 * rows[rank].
                           reader_seconds / max(rows[rank].own_seconds + rows[rank].reader_seconds, 1e-9))

    def _close_window(self) -> RankRow:
        """This rank's row, and a new window."""
        now, sent, row = time.perf_counter(), self._sent(), self.row
        row.seconds = now - self.window_start
        before = self.sent_before
        row.communication_bytes = {kind: sent[kind][0] - before[kind][0] for kind in KINDS}
        row.communication_seconds = sum(sent[kind][1] - before[kind][1] for kind in KINDS)
        row.own_seconds = max(0.0, row.own_seconds - sum(sent[kind][1] - before[kind][1] for kind in IN_STEP))
        row.memory_mib, row.device_memory_mib = resident_memory_mib(), device_memory_mib()
        self.window_start, self.sent_before, self.row = now, sent, RankRow()
        return row

    @staticmethod
    def _sent() -> dict[str, tuple[int, float]]:
        """(bytes, seconds) of this rank's communication so far, by kind."""
        amounts = {kind: distributed.traffic.total(kind) for kind in KINDS}
        return {kind: (amount.bytes, amount.seconds) for kind, amount in amounts.items()}

    @staticmethod
    def _curves(rows: list[RankRow], stragglers: list) -> dict[str, float]:
        """Scalars about ranks: of each one where they are few, else least, middle and most."""
        if len(rows) == 1:
            return {}
        curves = {"ranks/stragglers": float(len(stragglers))}
        for name in ("own_seconds", "reader_seconds", "communication_seconds", "memory_mib"):
            values = [getattr(row, name) for row in rows]
            named = {"least": min(values), "middle": float(np.median(values)), "most": max(values)}
            if len(rows) <= _CURVES:
                named = {f"{rank:03d}": value for rank, value in enumerate(values)}
            curves.update({f"ranks/{name}/{key}": value for key, value in named.items()})
        return curves

    @staticmethod
    def _details(rows: list[RankRow], stragglers: list) -> dict:
        """What the JSONL has beyond scalars."""
        if len(rows) == 1:
            return {}
        ranks = [{"rank": rank, "samples_per_second": row.samples / max(row.seconds, 1e-9), **asdict(row)}
                 for rank, row in enumerate(rows)]
        slow = [{"rank": rank, "address": address_of(rank), "times_slower": factor} for rank, factor in stragglers]
        return {"ranks": ranks, "stragglers": slow}

    def record(self, step: int, scalars: dict[str, float], details: dict | None = None) -> None:
        """Write scalars as they are; `details` go to the JSONL alone."""
        if not self.enabled:
            return
        for name, value in scalars.items():
            self.writer.add_scalar(f"{self.stage}/{name}", value, step)
        row = {"step": step, **{name: float(value) for name, value in scalars.items()}, **(details or {})}
        self.log_file.write(json.dumps(row) + "\n")
        self.log_file.flush()

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture, uint8 (H, W, 3), in VisualDL and as `<folder>/<name>/<stage>_<step>.png`."""
        if self.enabled:
            self.writer.add_image(f"{self.stage}/{name}", picture, step)
            file = self.folder / name / f"{self.stage}_{step:08d}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(file)

    def close(self) -> None:
        """Finish the bar and the files."""
        if self.enabled:
            self.bar.close()
            self.writer.close()
            self.log_file.close()


def open_visualdl(folder: Path) -> LogWriter:
    """The run's one log file, to be added to: of several files in a folder VisualDL shows the newest alone."""
    path = folder / "vdlrecords.run.log"
    if path.exists():
        _cut_torn_end(path)
    with contextlib.redirect_stdout(io.StringIO()):  # it says that the file exists
        return LogWriter(logdir=str(folder), file_name=path.name)


def _cut_torn_end(path: Path) -> None:
    """A killed process may leave half a record (length, then so many bytes), which would hide all that follow."""
    with open(path, "r+b") as file:
        end, size = 0, path.stat().st_size
        while len(header := file.read(8)) == 8:
            length = struct.unpack("<Q", header)[0]
            if end + 8 + length > size:
                break
            end += 8 + length
            file.seek(end)
        file.truncate(end)
