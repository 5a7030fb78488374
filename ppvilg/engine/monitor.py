"""What a run tells the person who watches it: a progress bar, VisualDL scalars and pictures, a JSONL for scripts."""
from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from visualdl import LogWriter

from ppvilg.data import BadSample

logger = logging.getLogger(__name__)


def resident_memory_mib() -> float:
    """Resident memory of this process in MiB (Linux; from /proc)."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def log_bad_sample(problem: BadSample) -> None:
    """Say which sample is left out, and why."""
    logger.warning("bad sample left out: %s", problem)


class Monitor:
    """Progress of one stage; silent on every rank but the main one."""

    def __init__(self, folder: Path, stage: str, total_steps: int, first_step: int, batch_size: int, enabled: bool):
        self.enabled, self.stage, self.batch_size, self.folder = enabled, stage, batch_size, folder
        self.reader_seconds, self.window_start, self.window_step = 0.0, time.perf_counter(), first_step
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = LogWriter(logdir=str(folder / "visualdl" / stage))
        self.log_file = open(folder / f"{stage}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.bar = tqdm(total=total_steps, initial=first_step, desc=stage, unit="step", dynamic_ncols=True)

    def step(self, reader_seconds: float) -> None:
        """One optimizer step is done; `reader_seconds` of it were spent waiting for data."""
        self.reader_seconds += reader_seconds
        if self.enabled:
            self.bar.update(1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write scalars of the window since the last call, with speed, reader cost and memory added."""
        now = time.perf_counter()
        seconds, steps = max(now - self.window_start, 1e-9), max(step - self.window_step, 1)
        scalars = dict(scalars, samples_per_second=steps * self.batch_size / seconds,
                       reader_seconds_per_step=self.reader_seconds / steps, memory_mib=resident_memory_mib())
        self.window_start, self.window_step, self.reader_seconds = now, step, 0.0
        if not self.enabled:
            return
        self.record(step, scalars)
        self.bar.set_postfix_str(f"loss {scalars.get('loss', float('nan')):.4f}, "
                                 f"{scalars['samples_per_second']:.0f} samples/s")

    def record(self, step: int, scalars: dict[str, float]) -> None:
        """Write scalars as they are."""
        if not self.enabled:
            return
        for name, value in scalars.items():
            self.writer.add_scalar(f"{self.stage}/{name}", value, step)
        self.log_file.write(json.dumps({"step": step, **{k: float(v) for k, v in scalars.items()}}) + "\n")
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
