"""The training runs of an ablation on disk: the base, and every arm and seed from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ppvilg.config import load_config, read_with_bases
from ppvilg.files import file_sha256, write_whole

from ..drawing.folder import read_json
from .processes import copy_whole, link_caches, run_process
from .recipe import AblationRecipe, Arm

TRAINED, LOG = "trained.json", "log.txt"
SHARED = ("base", "tokenizer", "vae")  # of the base's run, copied into each arm's
NEEDED = SHARED[:2]  # a published autoencoder is no part of the run
PIPELINE = ("unet", "text_encoder", "tokenizer", "vae", "scheduler")  # of a base that is a pipeline folder


class Trainings:
    """Base and arms below `output`, each trained once.

    Raises:
        ValueError: the training recipe cannot be used, or a given base lacks something.
    """

    def __init__(self, recipe: AblationRecipe, output: Path) -> None:
        self.recipe, self.output = recipe, output
        self.base = Path(recipe.base) if recipe.base else output / "base"
        self.base_is_pipeline = (self.base / "model_index.json").is_file()
        self.texts = [Path(path).read_text(encoding="utf-8") for path, _ in read_with_bases(Path(recipe.training))]
        if recipe.base:
            self._check_base()
        for own in (self._base_stages(), *(self._arm_stages(arm, recipe.seeds[0]) for arm in recipe.arms)):
            load_config(recipe.training, [*self._settings(own)["overrides"], f"output={output}"])

    # ---- base ----

    def _check_base(self) -> None:
        needed = PIPELINE if self.base_is_pipeline else NEEDED
        missing = [name for name in needed if not (self.base / name).is_dir()]
        if missing:
            advice = "give the output of a finished training run, or a pipeline folder"
            raise ValueError(f"base={self.base} lacks {', '.join(missing)}: {advice}")

    @property
    def base_pipeline(self) -> Path:
        """The base as a pipeline folder."""
        return self.base if self.base_is_pipeline else self.base / "base"

    @property
    def base_is_trained(self) -> bool:
        """Whether nothing is left to do for it; ValueError when another one was trained here."""
        return bool(self.recipe.base) or _is_trained(self.base, self._settings(self._base_stages()))

    def train_base(self) -> None:
        """The base, unless it is there."""
        if not self.base_is_trained:
            self._train(self.base, self._settings(self._base_stages()))

    def base_hash(self) -> str:
        """Of the base that the arms start from, as `note_base` wrote it down."""
        return read_json(self.output / "base.json", "hash")["hash"]

    def note_base(self) -> None:
        """Write down which base the arms start from; ValueError when earlier ones started from another."""
        note, found = self.output / "base.json", folder_hash(self.base, PIPELINE if self.base_is_pipeline else SHARED)
        if note.is_file() and self.base_hash() != found:
            raise ValueError(f"{self.output} holds arms of another base; choose another output")
        write_whole(note, json.dumps({"hash": found}) + "\n")

    # ---- arms ----

    def folder(self, arm: Arm, seed: int) -> Path:
        """Training run of an arm; the trained pipeline is `experts` in it."""
        return self.output / "arms" / arm.name / f"seed_{seed}"

    def is_trained(self, arm: Arm, seed: int) -> bool:
        """Whether a run is finished; ValueError when it was another one."""
        return _is_trained(self.folder(arm, seed), self._arm_settings(arm, seed))

    def train_arm(self, arm: Arm, seed: int) -> None:
        """One arm, unless it is there."""
        folder, settings = self.folder(arm, seed), self._arm_settings(arm, seed)
        if _is_trained(folder, settings):
            return
        for name in () if self.base_is_pipeline else SHARED:
            if (self.base / name).is_dir() and not (folder / name).is_dir():
                copy_whole(self.base / name, folder / name)
        for cache in (self.base / "cache", self.output / "cache"):
            link_caches(cache, folder / "cache")
        self._train(folder, settings)
        link_caches(folder / "cache", self.output / "cache")
        for finished in (folder / "checkpoints", folder / "cache"):  # large, and the pipeline is there
            shutil.rmtree(finished, ignore_errors=True)

    # ---- settings ----

    def _base_stages(self) -> list[str]:
        return [*Arm("none", 1).overrides(), f"train.base.steps={self.recipe.base_steps}", "train.experts.steps=0"]

    def _arm_stages(self, arm: Arm, seed: int) -> list[str]:
        stages = ["train.vae.steps=0", "train.base.steps=0", f"train.experts.steps={self.recipe.steps}"]
        encoder = f"train.experts.train_text_encoder={str(self.recipe.train_text_encoder).lower()}"
        return [*arm.overrides(), *stages, encoder, f"seed={seed}"]

    def _arm_settings(self, arm: Arm, seed: int) -> dict:
        return {"base": self.base_hash(), **self._settings(self._arm_stages(arm, seed))}

    def _settings(self, own: Sequence[str]) -> dict:
        """What a training run depends on: the text of its recipe, and overrides, of which the last wins."""
        places = {"data.train": self.recipe.train_data, "data.validation": self.recipe.validation_data}
        data = [f"{key}={value}" for key, value in places.items() if value is not None]
        overrides = [*self._start_overrides(), *self.recipe.overrides, *data, *own]
        return {"overrides": overrides, "training": "".join(self.texts)}

    def _start_overrides(self) -> list[str]:
        """Overrides by which an arm begins as a base that is a pipeline folder."""
        if not self.base_is_pipeline:
            return []
        parts = [f"model.{name}.pretrained={self.base / name}" for name in ("tokenizer", "text_encoder", "vae")]
        return [*parts, f"train.experts.start={self.base}", "train.base.warmup_steps=0"]

    def _train(self, folder: Path, settings: dict) -> None:
        options = [part for each in (*settings["overrides"], f"output={folder}") for part in ("-o", each)]
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ppvilg", "train", "-c", self.recipe.training, *options]
        code = run_process(command, folder / LOG, False)
        if code:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(f"training ended with code {code}, see {folder / LOG}: {lines[-1] if lines else ''}")
        write_whole(folder / TRAINED, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")


def _is_trained(folder: Path, settings: dict) -> bool:
    note = folder / TRAINED
    if not note.is_file():
        return False
    found = read_json(note)
    different = [key for key, value in settings.items() if found.get(key) != value]
    if different:
        raise ValueError(f"{folder} was trained with another {' and '.join(different)}; choose another output")
    return True


def folder_hash(base: Path, names: Sequence[str]) -> str:
    """SHA-256 over the files that arms take from a base."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted(path for path in (base / name).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(base).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()
