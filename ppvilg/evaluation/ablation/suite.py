"""The "ablation" suite: what knowledge and experts each bring, at equal training compute (paper section 4.4).

One base denoiser is trained without either, or given. Every arm continues it for the same number of optimizer steps of
the same batch size, on the same samples in the same order for the same seed: one denoiser with knowledge (none, text,
vision, both), or n experts that share the steps. Then every arm draws the same held-out prompts from the same noise at
several guidance scales; the detector tells the alignment, and its features the FID to real scenes of the same prompts.
Every arm's loss on real scenes of these prompts, which no training scene equals, is measured per block of timesteps.

base/                      the training run of the base
arms/<arm>/seed_<k>/       the training run of an arm; trained.json when it is finished, losses.json when measured
pictures/<arm>/seed_<k>/scale_<g>/   in GenEval's layout
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf
from tqdm import tqdm

from ppvilg.config import Checked, ConfigError, bounded, choice
from ppvilg.emoji.captions import held_out_prompts
from ppvilg.emoji.detector import Detector, detector_sha256
from ppvilg.emoji.judging import CRITERIA, judge
from ppvilg.emoji.render import render

from ..drawing.folder import read_json, write_whole
from ..drawing.painter import Painter, picture_seed
from ..drawing.sampling import Sampling
from ..metrics.distribution import Moments, check_features, frechet_distance
from ..metrics.features import DetectorFeatures
from ..reporting.protocol import about, file_sha256, open_output, write_results
from ..suites.objects import scene_of
from .loss import denoising_losses
from .report import markdown, write_report
from .tables import losses_of, table_of

KNOWLEDGE = {"none": (False, False), "text": (True, False), "vision": (False, True), "both": (True, True)}
TRAINED, LOSSES, BASE_LOSSES, LOG = "trained.json", "losses.json", "base_losses.json", "log.txt"
SHARED = ("base", "tokenizer", "vae")  # of the base's run, copied into each arm's
NEEDED = SHARED[:2]  # a published autoencoder is no part of the run
PIPELINE = ("unet", "text_encoder", "tokenizer", "vae", "scheduler")  # of a base that is a pipeline folder
ALIGNMENTS = ("all", "criteria")


@dataclass(frozen=True)
class Arm:
    """One model: knowledge is "none", "text", "vision" or "both"."""

    knowledge: str
    experts: int

    @property
    def name(self) -> str:
        """Folder name."""
        return f"knowledge_{self.knowledge}_experts_{self.experts:02d}"

    def overrides(self) -> list[str]:
        """What it sets in a training recipe."""
        text, vision = ("true" if on else "false" for on in KNOWLEDGE[self.knowledge])
        parts = ("loss", "completion", "replacement")
        switches = [f"knowledge.text.enabled={text}", *(f"knowledge.vision.{part}.enabled={vision}" for part in parts)]
        return [*switches, f"model.num_experts={self.experts}"]


@dataclass(frozen=True)
class AblationRecipe(Checked):
    """Everything an ablation depends on."""

    suite: str = "ablation"
    output: str = MISSING
    training: str = "configs/emoji64.yml"  # recipe of the data, the networks and the stages
    train_tool: str = "tools/train.py"
    train_data: str | None = None  # None: the data of the training recipe
    validation_data: str | None = None
    overrides: list[str] = field(default_factory=list)  # of the training recipe, for the base and for every arm
    base: str | None = None  # a finished run, or a pipeline folder; None: one is trained
    base_steps: int = bounded(2000, least=1)
    steps: int = bounded(500, least=1)  # of every arm
    train_text_encoder: bool = True  # in every arm alike; marks are new words that must be learned
    seeds: list[int] = bounded([0, 1, 2], least=0)
    knowledge: list[str] = choice(list(KNOWLEDGE), tuple(KNOWLEDGE))  # with one denoiser
    experts: list[int] = bounded([1, 2, 5, 10], least=1)
    experts_knowledge: str = choice("none", tuple(KNOWLEDGE))  # of the arms with several experts
    guidance_scales: list[float] = bounded([1.0, 2.0, 3.0, 5.0], least=0)
    prompts: dict[str, int] = bounded({"single": 120, "pair": 100, "count": 100}, least=0, keys=tuple(CRITERIA))
    num_inference_steps: int = bounded(15, least=1)
    scheduler: str | None = None  # None: the model's own
    reference_pictures: int = bounded(3200, least=2)
    alignment: str = choice("all", ALIGNMENTS)  # all the prompt asks for, or criteria: mean over the single demands
    loss_scenes: int = bounded(400, least=1)  # real scenes of the prompts on which the loss is measured
    loss_blocks: int = bounded(5, least=1)  # equal blocks of timesteps it is reported for, whatever the experts are
    detector: str | None = None
    picture_seed: int = bounded(0, least=0)
    batch_size: int = bounded(32, least=1)
    parallel: int = bounded(1, least=1)  # arms that are trained and drawn at once, with one thread each
    only: str | None = None  # one job, <arm>/seed_<k>, without a report; how the jobs are started

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "guidance_scales", "knowledge", "experts"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}={values}: needs values, each once")
        if not any(self.prompts.values()):
            raise ConfigError(f"prompts={self.prompts}: needs how many of {', '.join(CRITERIA)}")

    @property
    def families(self) -> dict[str, list[Arm]]:
        """The arms of each question; the first of a family is what the others are compared with."""
        return {
            "knowledge": [Arm(name, 1) for name in self.knowledge],
            "experts": [Arm(self.experts_knowledge, count) for count in self.experts],
        }

    @property
    def arms(self) -> list[Arm]:
        """All arms, each once."""
        return list(dict.fromkeys(arm for arms in self.families.values() for arm in arms))


class AblationSuite:
    """Trains base and arms, draws, measures, reports; run again to go on after a stop."""

    def __init__(self, recipe: AblationRecipe):
        for name in ("training", "train_tool"):
            place = getattr(recipe, name)
            if not Path(place).is_file():
                raise FileNotFoundError(f"{name}: no file at {place}; run this from the project's folder")
        self.recipe = recipe
        self.output = open_output(recipe.output, recipe.suite)
        self.base = Path(recipe.base) if recipe.base else self.output / "base"
        self.base_is_pipeline = (self.base / "model_index.json").is_file()
        kinds = ((kind, recipe.prompts.get(kind, 0)) for kind in CRITERIA)
        self.prompts = [prompt for kind, count in kinds if count for prompt in held_out_prompts(kind, count)]

    def run(self) -> dict:
        """Everything that is missing, then results.json and report.html; with `only`, one arm and seed."""
        if self.recipe.only:
            return self._run_job(self.recipe.only)
        self._check_base()
        self._run_jobs()
        measured = self._measure()
        families = {name: table_of(arms, measured, self.recipe) for name, arms in self.recipe.families.items()}
        losses = [{**asdict(arm), "seed": k, "blocks": self._losses(arm, k)} for arm, k in self._pairs()]
        blocks = {name: losses_of(arms, losses) for name, arms in self.recipe.families.items()}
        before = self._losses_of(self._base_pipeline(), self.output / BASE_LOSSES)
        hashes = {"base": read_json(self._note_of_base())["hash"], "detector": detector_sha256(self.recipe.detector)}
        samples = {"steps_per_arm": self.recipe.steps, "prompts": len(self.prompts)}
        samples["num_train_timesteps"] = self._num_train_timesteps()
        tables = {"cells": measured, "results": families, "losses": blocks, "losses_of_base": before}
        report = {**about("ablation", self.recipe, hashes), **samples, **tables}
        write_results(self.output, report)
        write_report(self.output, report)
        return report

    def summary(self, report: dict) -> str:
        """The tables of both families."""
        return markdown(report) if "results" in report else f"trained and drawn: {report['job']}"

    # ---- jobs: base, then every arm and seed in a process of its own ----

    def _pairs(self) -> list[tuple[Arm, int]]:
        """Every arm and seed, whole seeds first."""
        return [(arm, seed) for seed in self.recipe.seeds for arm in self.recipe.arms]

    def _run_jobs(self) -> None:
        if not self.recipe.base and not self._is_trained(self.base, self._base_settings()):
            self._start("base")
        self._note_base()
        jobs = [f"{arm.name}/seed_{seed}" for arm, seed in self._pairs() if not self._is_complete(arm, seed)]
        with ThreadPoolExecutor(self.recipe.parallel) as pool:
            futures = [pool.submit(self._start, job) for job in jobs]
            try:
                for future in tqdm(as_completed(futures), "arms", len(jobs), unit="arm", postfix=str(self.output)):
                    future.result()
            finally:
                for future in futures:  # what has not begun, when one failed
                    future.cancel()

    def _start(self, job: str) -> None:
        """Run one job in a process; ValueError with the place of its log when it fails."""
        logs = self.output / "logs"
        logs.mkdir(exist_ok=True)
        recipe = logs / f"{job.replace('/', '_')}.yml"
        write_whole(recipe, OmegaConf.to_yaml(OmegaConf.create(asdict(replace(self.recipe, only=job)))))
        log, command = recipe.with_suffix(".log"), [sys.executable, "-m", "ppvilg.evaluation", "-c", str(recipe)]
        code = run_process(command, log, self.recipe.parallel > 1)
        if code:
            raise ValueError(f"{job} ended with code {code}: {log} says why; the other arms are kept, run this again")

    def _run_job(self, job: str) -> dict:
        if job == "base":
            self._train_base()
            return {"job": job}
        arms = {f"{arm.name}/seed_{seed}": (arm, seed) for arm in self.recipe.arms for seed in self.recipe.seeds}
        if job not in arms:
            raise ValueError(f"only={job!r} is not one of {', '.join(arms)}")
        self._train_arm(*arms[job])
        self._draw(*arms[job])
        self._losses(*arms[job])
        return {"job": job}

    def _is_trained(self, folder: Path, settings: dict) -> bool:
        """Whether a training run is finished; ValueError when it was another one."""
        note = folder / TRAINED
        if not note.is_file():
            return False
        different = [key for key, value in settings.items() if read_json(note).get(key) != value]
        if different:
            raise ValueError(f"{folder} was trained with another {' and '.join(different)}; choose another output")
        return True

    def _is_complete(self, arm: Arm, seed: int) -> bool:
        """Trained, and every picture drawn."""
        if not self._is_trained(self._arm_folder(arm, seed), self._arm_settings(arm, seed)):
            return False
        places = [self._pictures_folder(arm, seed, scale) for scale in self.recipe.guidance_scales]
        return all(len(list(place.glob("*/samples/*.png"))) == len(self.prompts) for place in places)

    # ---- training ----

    def _note_of_base(self) -> Path:
        return self.output / "base.json"

    def _check_base(self) -> None:
        """A given base must be whole."""
        needed = PIPELINE if self.base_is_pipeline else NEEDED
        missing = [name for name in needed if not (self.base / name).is_dir()]
        if self.recipe.base and missing:
            advice = "give the output of a finished training run, or a pipeline folder"
            raise ValueError(f"base={self.base} lacks {', '.join(missing)}: {advice}")

    def _note_base(self) -> None:
        """Write down which base the arms start from; ValueError when earlier ones started from another."""
        names = PIPELINE if self.base_is_pipeline else SHARED
        note, found = self._note_of_base(), {"hash": folder_hash(self.base, names)}
        if note.is_file() and read_json(note)["hash"] != found["hash"]:
            raise ValueError(f"{self.output} holds arms of another base; choose another output")
        write_whole(note, json.dumps(found) + "\n")

    def _base_settings(self) -> dict:
        stages = [f"train.base.steps={self.recipe.base_steps}", "train.experts.steps=0"]
        return self._settings([*Arm("none", 1).overrides(), *stages])

    def _arm_settings(self, arm: Arm, seed: int) -> dict:
        stages = ["train.vae.steps=0", "train.base.steps=0", f"train.experts.steps={self.recipe.steps}"]
        encoder = f"train.experts.train_text_encoder={str(self.recipe.train_text_encoder).lower()}"
        own = self._settings([*arm.overrides(), *stages, encoder, f"seed={seed}"])
        return {"base": read_json(self._note_of_base())["hash"], **own}

    def _settings(self, own: Sequence[str]) -> dict:
        """What a training run depends on: the text of its recipe, and overrides, of which the last wins."""
        content = Path(self.recipe.training).read_text(encoding="utf-8")
        places = {"data.train": self.recipe.train_data, "data.validation": self.recipe.validation_data}
        data = [f"{key}={value}" for key, value in places.items() if value is not None]
        return {"overrides": [*self._base_overrides(), *self.recipe.overrides, *data, *own], "training": content}

    def _base_overrides(self) -> list[str]:
        """Overrides by which an arm begins as a base that is a pipeline folder."""
        if not self.base_is_pipeline:
            return []
        parts = [f"model.{name}.pretrained={self.base / name}" for name in ("tokenizer", "text_encoder", "vae")]
        return [*parts, f"train.experts.start={self.base}", "train.base.warmup_steps=0"]

    def _train_base(self) -> None:
        settings = self._base_settings()
        if not self._is_trained(self.base, settings):
            self._train(self.base, settings)

    def _train_arm(self, arm: Arm, seed: int) -> None:
        folder, settings = self._arm_folder(arm, seed), self._arm_settings(arm, seed)
        if self._is_trained(folder, settings):
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

    def _arm_folder(self, arm: Arm, seed: int) -> Path:
        return self.output / "arms" / arm.name / f"seed_{seed}"

    def _train(self, folder: Path, settings: dict) -> None:
        options = [part for each in (*settings["overrides"], f"output={folder}") for part in ("-o", each)]
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, self.recipe.train_tool, "-c", self.recipe.training, *options]
        code = run_process(command, folder / LOG, False)
        if code:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(f"training ended with code {code}, see {folder / LOG}: {lines[-1] if lines else ''}")
        write_whole(folder / TRAINED, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")

    def _num_train_timesteps(self) -> int:
        """Of the base, and so of every arm."""
        return read_json(self._base_pipeline() / "scheduler" / "scheduler_config.json")["num_train_timesteps"]

    def _base_pipeline(self) -> Path:
        """The base as a pipeline folder."""
        return self.base if self.base_is_pipeline else self.base / "base"

    # ---- drawing and measuring ----

    def _painter(self, arm: Arm, seed: int) -> Painter:
        recipe = self.recipe
        sampling = Sampling(
            model=str(self._arm_folder(arm, seed) / "experts"),
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=1.0,
            scheduler=recipe.scheduler,
            seed=recipe.picture_seed,
            batch_size=recipe.batch_size,
        )
        return Painter(sampling)

    def _draw(self, arm: Arm, seed: int) -> dict[float, Any]:
        """Folder of pictures per guidance scale."""
        painter, folders = self._painter(arm, seed), {}
        for scale in self.recipe.guidance_scales:
            place, name = self._pictures_folder(arm, seed, scale), f"{arm.name} seed {seed} scale {scale:g}"
            folders[scale] = painter.at_guidance(scale).draw(place, self.prompts, description=name)
        return folders

    def _pictures_folder(self, arm: Arm, seed: int, scale: float) -> Path:
        return self.output / "pictures" / arm.name / f"seed_{seed}" / f"scale_{scale:g}"

    def _measure(self) -> list[dict]:
        """One line per arm, seed and scale: FID to real scenes, and both alignments, in percent."""
        detector, network = Detector.load(self.recipe.detector), DetectorFeatures(self.recipe.detector)
        reference = Moments.of(features_of(network, self._real_scenes(self.recipe.reference_pictures, 1)))
        lines = []
        for arm, seed in tqdm(self._pairs(), desc="measure", unit="arm"):
            for scale, folder in self._draw(arm, seed).items():
                pictures = [folder.read(*key) for key in folder.all()]
                verdicts = [judge(prompt, found) for prompt, found in zip(self.prompts, detector.detect(pictures))]
                single = [np.mean([v for k, v in verdict.criteria.items() if k != "all"]) for verdict in verdicts]
                lines.append(
                    {
                        **asdict(arm),
                        "seed": seed,
                        "guidance_scale": scale,
                        "fid": frechet_distance(Moments.of(features_of(network, pictures)), reference),
                        "all": 100 * float(np.mean([verdict.right for verdict in verdicts])),
                        "right": [int(verdict.right) for verdict in verdicts],
                        "criteria": 100 * float(np.mean(single)),
                    }
                )
        return lines

    def _losses(self, arm: Arm, seed: int) -> list[float]:
        """Those of an arm."""
        folder = self._arm_folder(arm, seed)
        return self._losses_of(folder / "experts", folder / LOSSES)

    def _losses_of(self, pipeline: Path, note: Path) -> list[float]:
        """Mean loss of a model in every block of timesteps, measured once and kept in `note`."""
        recipe, painter = self.recipe, Painter(Sampling(model=str(pipeline)))
        made = {"model": painter.sha256, "scenes": recipe.loss_scenes, "blocks": recipe.loss_blocks}
        made |= {"seed": recipe.picture_seed, "prompts": [prompt["prompt"] for prompt in self.prompts]}
        if note.is_file() and (found := read_json(note))["made"] == made:
            return found["losses"]
        scenes = self._real_scenes(recipe.loss_scenes, 2)
        prompts = [self.prompts[i % len(self.prompts)]["prompt"] for i in range(len(scenes))]
        losses = denoising_losses(painter.pipeline, scenes, prompts, recipe.loss_blocks, recipe.picture_seed)
        write_whole(note, json.dumps({"made": made, "losses": losses.mean(axis=0).tolist()}, ensure_ascii=False) + "\n")
        return losses.mean(axis=0).tolist()

    def _real_scenes(self, count: int, offset: int) -> list:
        """Renders of scenes that the prompts describe, each prompt as often as the others; offset: which scenes."""
        rngs = [np.random.default_rng(picture_seed(self.recipe.picture_seed + offset, i, 0)) for i in range(count)]
        return [render(scene_of(self.prompts[i % len(self.prompts)], rng))[0] for i, rng in enumerate(rngs)]


def features_of(network: Any, pictures: Sequence, batch_size: int = 64) -> np.ndarray:
    """Features (N, D) of pictures of any shapes, in their order."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(pictures):
        sizes.setdefault(picture.size, []).append(i)
    rows: list = [None] * len(pictures)
    for members in sizes.values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            for i, row in zip(part, network(np.stack([np.asarray(pictures[i]) for i in part]))):
                rows[i] = row
    return check_features(np.stack(rows))


def folder_hash(base: Path, names: Sequence[str]) -> str:
    """SHA-256 over the files that arms take from a base."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted(path for path in (base / name).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(base).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


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


def run_process(command: Sequence[str], log: Path, one_thread: bool) -> int:
    """Exit code of a process whose words go to `log`; it knows this package, installed or not, and ends with this one.

    one_thread: let it compute with one thread.
    """
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, known)))}
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
