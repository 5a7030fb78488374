"""Checkpoints of a stage: named stateful objects in one folder that is renamed into place when it is whole.

`<root>/step_00001200/` holds one safetensors file per object (net, optimizer, ema) and `manifest.json` with every
file's SHA-256. A folder without a manifest or with a wrong hash is named and skipped; the newest whole one is used.
When several ranks write, each writes its part (`net-001.safetensors`); keys are logical names, so that whoever reads
takes the keys it needs from whichever part has them, on any number of ranks and any axes.
"""
from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppvilg.config import ConfigError
from ppvilg.engine.training import resuming
from ppvilg.files import file_sha256, write_whole

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
EXPORTED = "exported.json"


class CheckpointError(RuntimeError):
    """A checkpoint or output that cannot be written, or belongs to another recipe; the message names the folder."""


class CheckpointStore:
    """The checkpoints of one stage under `root`; `settings` are what decides its steps (see resuming.py)."""

    def __init__(self, root: Path, settings: dict | None = None, keep: int = 2, keep_every: int = 0,
                 strict: bool = False):
        self.root, self.settings, self.strict = Path(root), settings or {}, strict
        self.keep, self.keep_every = keep, keep_every

    def save(self, step: int, objects: dict[str, dict[str, np.ndarray]], progress: dict, part: int = 0, parts: int = 1,
             cancelled: threading.Event | None = None) -> Path:
        """Write `objects` (name -> arrays by key) as the checkpoint of `step`; older ones beyond `keep` go afterwards.

        With several `parts`, each rank that writes calls this with its own objects; part 0 waits for the others until
        `cancelled`, then puts the checkpoint in its place.

        Raises:
            CheckpointError: the disk is full or not writable. Earlier checkpoints stay as they were.
        """
        final = self.root / f"step_{step:08d}"
        partial = self.root / f".{final.name}.partial"
        try:
            if parts == 1:
                self.clear_partial()
            partial.mkdir(parents=True, exist_ok=parts > 1)
            files = _write_objects(partial, objects, part, parts)
            if part:
                return final
            files = dict(sorted((files | _other_parts(partial, parts, cancelled or threading.Event())).items()))
            manifest = {"step": step, "settings": self.settings, "progress": progress, "files": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            _seal(partial / MANIFEST)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            _sync(self.root)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
            if parts == 1:  # else others may still be writing there; the next run clears it away
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"could not write checkpoint {final}: {error}. Earlier checkpoints are untouched; "
                                  f"make room or choose another output, then run the same command again") from error
        self._drop_older(final)
        return final

    def clear_partial(self) -> None:
        """Remove what a run that was killed while it wrote has left."""
        for left in self.root.glob(".step_*.partial"):
            shutil.rmtree(left, ignore_errors=True)

    def newest(self) -> str:
        """Name of the newest whole checkpoint, "" where there is none; torn ones are named in the log and skipped."""
        for folder in reversed(self.folders()):
            problem = _inspect(folder)
            if problem is None:
                return folder.name
            logger.warning("checkpoint %s is skipped: %s", folder, problem)
        return ""

    def changes(self, name: str) -> dict[str, tuple]:
        """{setting: (before, now)} of a checkpoint that `newest` named; none are known of one by an earlier version.

        Raises:
            CheckpointError: it cannot be gone on with.
        """
        manifest = json.loads((self.root / name / MANIFEST).read_text(encoding="utf-8"))
        changed = resuming.changes(manifest["settings"], self.settings) if "settings" in manifest else {}
        refusal = resuming.refusal(changed, self.strict)
        if refusal:
            raise CheckpointError(f"{self.root / name}: {refusal}")
        return changed

    def load(self, name: str, wanted: Callable[[str, str], bool] | None = None
             ) -> tuple[dict, dict[str, dict[str, np.ndarray]]]:
        """(manifest, objects) of a checkpoint that `newest` named; only keys with `wanted(object, key)` are read.

        Raises:
            CheckpointError: the checkpoint is not there (any more).
        """
        folder, objects = self.root / name, {}
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for file in manifest["files"]:
                kind = _FILE_NAME.fullmatch(file)[1]
                with safe_open(str(folder / file), framework="np") as arrays:
                    found = objects.setdefault(kind, {})
                    found.update((key, arrays.get_tensor(key)) for key in arrays.keys()
                                 if wanted is None or wanted(kind, key))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {error}. The output must be on storage "
                                  "that all ranks share") from error
        return manifest, objects

    def load_newest(self) -> tuple[dict, dict[str, dict[str, np.ndarray]]] | None:
        """(manifest, objects) of the newest whole checkpoint, None where there is none. Raises as `newest`."""
        name = self.newest()
        return self.load(name) if name else None

    def folders(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(folder for folder in self.root.glob("step_*") if folder.is_dir())

    def export_is_current(self, folder: Path) -> bool:
        """Whether `folder` is what `note_export` saw, and no checkpoint was made since."""
        try:
            noted = json.loads((self.root / EXPORTED).read_text(encoding="utf-8"))
            return noted == self._export_note(folder)
        except (OSError, ValueError):  # nothing noted, or nothing there any more
            return False

    def note_export(self, folder: Path) -> None:
        """Remember that `folder` was made from the newest checkpoint."""
        write_whole(self.root / EXPORTED, json.dumps(self._export_note(folder), indent=1))

    def _export_note(self, folder: Path) -> dict:
        checkpoint = self.folders()[-1]
        return {"checkpoint": checkpoint.name, "manifest": file_sha256(checkpoint / MANIFEST),
                "export": hash_folder(folder)}

    def _drop_older(self, newest: Path) -> None:
        """Keep the last ones up to `newest`: what lies beyond it was found unusable and must not count."""
        for folder in [folder for folder in self.folders() if folder.name <= newest.name][: -self.keep]:
            if not self.keep_every or int(folder.name.removeprefix("step_")) % self.keep_every:
                shutil.rmtree(folder, ignore_errors=True)


class BackgroundWriter:
    """One write at a time beside training; what goes wrong in it is raised by the next `check` or `wait`."""

    def __init__(self):
        self._thread, self._error, self.cancelled = None, None, threading.Event()

    def start(self, write: Callable[[], object]) -> None:
        """Begin `write`; the one before is waited for."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="ppvilg-checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:  # also KeyboardInterrupt: it belongs to whoever waits
            self._error = error

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until the write is done; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self, seconds: float = 60.0) -> None:
        """Let a write that is under way finish, but do not wait longer than this for parts of other ranks."""
        if self._thread is not None:
            self._thread.join(seconds)
            self.cancelled.set()
            self._thread.join()
            self._thread = None


_FILE_NAME = re.compile(r"(.+?)(-\d{3,})?\.safetensors")


def _write_objects(folder: Path, objects: dict[str, dict[str, np.ndarray]], part: int, parts: int) -> dict[str, str]:
    """One file per object; gives their hashes by name, and leaves them for part 0 to find."""
    suffix, files = "" if parts == 1 else f"-{part:03d}", {}
    for name, arrays in objects.items():
        file = f"{name}{suffix}.safetensors"
        save_file(arrays, folder / file)
        files[file] = _seal(folder / file)
    if part:
        write_whole(folder / f"part-{part:03d}.json", json.dumps(files))
    return files


def _other_parts(folder: Path, parts: int, cancelled: threading.Event) -> dict[str, str]:
    """Hashes of the files of all other parts, once they are written. Raises CheckpointError when cancelled."""
    files = {}
    for part in range(1, parts):
        note = folder / f"part-{part:03d}.json"
        while not note.exists():
            if cancelled.wait(0.02):
                raise CheckpointError(f"checkpoint {folder} is given up: part {part} of {parts} was not written")
        files |= json.loads(note.read_text(encoding="utf-8"))
        note.unlink()
    return files


def _inspect(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with ThreadPoolExecutor(4) as pool:
            hashes = pool.map(lambda name: file_sha256(folder / name), manifest["files"])
            for (name, expected), found in zip(manifest["files"].items(), hashes):
                if found != expected:
                    return f"{name} does not match its hash"
        if not isinstance(manifest["progress"]["next_step"], int):
            return f"{MANIFEST} does not say the step"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file that it names cannot be read ({type(error).__name__}: {error})"
    return None


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` to write into; it takes its place when the block ends without an error.

    Raises:
        CheckpointError: the disk is full or not writable; what was in `folder` before is still there.
    """
    folder = Path(folder)
    partial, old = (folder.parent / f".{folder.name}.{state}" for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {folder}: {error}. The checkpoints are whole: make room, then run the "
                              f"same command again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def make_output(folder: Path) -> None:
    """The folder of a run, made if need be, and tried. ConfigError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written to ({error.strerror or error}); choose another folder, "
                          "or mend its rights") from error


@contextmanager
def claimed(folder: Path, wait_seconds: float = 20.0) -> Iterator[None]:
    """Hold `folder` for this process, for two runs that write into one would spoil both; ends with the process.

    Raises:
        CheckpointError: another process still holds it after `wait_seconds` (a killed run takes a moment to end).
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as lock:
        deadline = time.monotonic() + wait_seconds
        while not _locked(lock):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "(unknown)"
                raise CheckpointError(f"{folder}: process {holder} is training into it; wait for it, stop it, or "
                                      "choose another output")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _locked(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems know no locks
        logger.warning("%s cannot be locked (%s): make sure that no other run writes there", lock.name, error)
    return True


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _seal(path: Path) -> str:
    """Force a file to disk and give its hash."""
    _sync(path)
    return file_sha256(path)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
