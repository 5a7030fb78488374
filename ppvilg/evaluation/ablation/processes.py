"""Processes that end with the run that started them, and folders that several of them copy."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def run_process(command: Sequence[str], log: Path, one_thread: bool) -> int:
    """Exit code of a process whose words go to `log`; it knows this package, installed or not, and ends with this one.

    one_thread: let it compute with one thread.
    """
    environment = dict(os.environ)
    package = str(Path(__file__).resolve().parents[3])
    if package not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    if one_thread:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        output = {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **output, env=environment, preexec_fn=_ending_with_parent())
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _ending_with_parent() -> Callable[[], None] | None:
    """What a new process does first so that SIGTERM reaches it when this one is killed; None where Linux is missing.

    Otherwise a job of a killed run would go on, and the same command, run again, would find its folder in use.
    """
    if not sys.platform.startswith("linux"):
        return None
    control, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: control(set_parent_death_signal, signal.SIGTERM)


def link_caches(source: Path, target: Path) -> None:
    """Link every whole cache of latents below `source` into `target`, unless it is there."""
    for cached in sorted(source.glob("*")):
        if cached.is_dir() and not cached.name.startswith(".") and not (target / cached.name).is_dir():
            copy_whole(cached, target / cached.name, link=True)


def copy_whole(source: Path, target: Path, link: bool = False) -> None:
    """Copy a folder, or link its files, so that it appears under its name only when it is whole.

    Another process may do the same at the same time: the first one's stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    link = link and source.stat().st_dev == target.parent.stat().st_dev
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        shutil.copytree(source, partial, copy_function=os.link if link else shutil.copy2)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
