"""Checkpoints of a stage: named stateful objects in one folder that is renamed into place when it is whole.

`<root>/step_00001200/` holds one safetensors file per object and `manifest.json` with every file's SHA-256. A folder
without a manifest or with a wrong hash is named and skipped; the newest whole one is used.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
from safetensors.numpy import load_file, save_file

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or does not belong to this recipe; the message names the folder."""


class CheckpointStore:
    """The checkpoints of one stage under `root`, all made by the recipe with this `recipe_hash`."""

    def __init__(self, root: Path, recipe_hash: str, keep: int = 2):
        self.root, self.recipe_hash, self.keep = Path(root), recipe_hash, keep

    def save(self, step: int, objects: Dict[str, Dict[str, np.ndarray]], progress: dict) -> Path:
        """Write `objects` (name -> arrays by key) as the checkpoint of `step`; older ones beyond `keep` go afterwards.

        Raises:
            CheckpointError: the disk is full or not writable. Earlier checkpoints stay as they were.
        """
        final = self.root / f"step_{step:08d}"
        partial = self.root / f".{final.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            files = {}
            for name, arrays in objects.items():
                save_file(arrays, partial / f"{name}.safetensors")
                files[f"{name}.safetensors"] = _seal(partial / f"{name}.safetensors")
            manifest = {"step": step, "recipe": self.recipe_hash, "progress": progress, "files": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            _seal(partial / MANIFEST)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            _sync_folder(self.root)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"could not write checkpoint {final}: {error}. Earlier checkpoints are untouched; make "
                                  f"room or choose another output, then run the same command again") from error
        self._drop_old()
        return final

    def load_newest(self) -> Optional[Tuple[dict, Dict[str, Dict[str, np.ndarray]]]]:
        """(manifest, objects) of the newest whole checkpoint, None where there is none.

        Raises:
            CheckpointError: the newest whole checkpoint was made by another recipe.
        """
        for folder in reversed(self.folders()):
            problem, manifest = _inspect(folder)
            if problem:
                logger.warning("checkpoint %s is skipped: %s", folder, problem)
                continue
            if manifest["recipe"] != self.recipe_hash:
                raise CheckpointError(f"{folder} was made by another recipe (its data, knowledge, model or stage settings "
                                      f"differ); choose another output, or move that folder away to start afresh")
            names = [file.removesuffix(".safetensors") for file in manifest["files"]]
            return manifest, {name: load_file(folder / f"{name}.safetensors") for name in names}
        return None

    def folders(self) -> List[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(folder for folder in self.root.glob("step_*") if folder.is_dir())

    def _drop_old(self) -> None:
        for folder in self.folders()[: -self.keep]:
            shutil.rmtree(folder)


def _inspect(folder: Path) -> Tuple[Optional[str], dict]:
    """(what is wrong or None, manifest) of a checkpoint folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if _hash(folder / name) != expected:
                return f"{name} does not match its hash", manifest
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}", {}
    return None, manifest


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {_hash(path)}\n".encode())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _seal(path: Path) -> str:
    """Force a file to disk and give its hash."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
