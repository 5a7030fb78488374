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

import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from ppvilg.emoji.detector import detector_sha256
from ppvilg.emoji.objects import font_sha256
from ppvilg.files import write_whole

from ..drawing.folder import read_json
from ..reporting.protocol import about, open_output, write_results
from .measuring import Measurements
from .processes import run_process
from .recipe import AblationRecipe, Arm
from .report import markdown, write_report
from .tables import losses_of, table_of
from .training import Trainings

LOSSES, BASE_LOSSES = "losses.json", "base_losses.json"


class AblationSuite:
    """Trains base and arms, draws, measures, reports; run again to go on after a stop."""

    def __init__(self, recipe: AblationRecipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        self.jobs = {f"{arm.name}/seed_{seed}": (arm, seed) for seed in recipe.seeds for arm in recipe.arms}
        if recipe.only not in (None, "base", *self.jobs):
            raise ValueError(f"only={recipe.only!r} is not one of base, {', '.join(self.jobs)}")
        self.hashes = {"detector": detector_sha256(recipe.detector), "font": font_sha256()}
        self.trainings = Trainings(recipe, self.output)
        self.measurements = Measurements(recipe, self.output)
        open_output(recipe.output, recipe.suite)

    def run(self) -> dict:
        """Everything that is missing, then results.json and report.html; with `only`, one arm and seed."""
        if self.recipe.only:
            return self._run_job(self.recipe.only)
        self._run_jobs()
        report = {
            **about("ablation", self.recipe, {"base": self.trainings.base_hash(), **self.hashes}),
            "steps_per_arm": self.recipe.steps,
            "prompts": len(self.measurements.prompts),
            "num_train_timesteps": self._num_train_timesteps(),
            **self._tables(),
        }
        write_results(self.output, report)
        write_report(self.output, report)
        return report

    def summary(self, report: dict) -> str:
        """The tables of both families."""
        return markdown(report) if "results" in report else f"trained and drawn: {report['job']}"

    def _tables(self) -> dict:
        """What was measured of every arm, seed and scale, and the tables of both families."""
        families = self.recipe.families
        cells = self.measurements.measure({pair: self._pipeline(*pair) for pair in self.jobs.values()})
        losses = [{**asdict(arm), "seed": seed, "blocks": self._losses(arm, seed)} for arm, seed in self.jobs.values()]
        return {
            "cells": cells,
            "results": {name: table_of(arms, cells, self.recipe) for name, arms in families.items()},
            "losses": {name: losses_of(arms, losses) for name, arms in families.items()},
            "losses_of_base": self.measurements.losses(self.trainings.base_pipeline, self.output / BASE_LOSSES),
        }

    # ---- jobs: base, then every arm and seed in a process of its own ----

    def _run_jobs(self) -> None:
        if not self.trainings.base_is_trained:
            self._start("base")
        self.trainings.note_base()
        jobs = [job for job, pair in self.jobs.items() if not self._is_complete(*pair)]
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
        log, command = recipe.with_suffix(".log"), [sys.executable, "-m", "ppvilg", "evaluate", "-c", str(recipe)]
        code = run_process(command, log, self.recipe.parallel > 1)
        if code:
            raise ValueError(f"{job} ended with code {code}: {log} says why; the other arms are kept, run this again")

    def _run_job(self, job: str) -> dict:
        if job == "base":
            self.trainings.train_base()
        else:
            arm, seed = self.jobs[job]
            self.trainings.train_arm(arm, seed)
            self.measurements.draw(self._pipeline(arm, seed), arm, seed)
            self._losses(arm, seed)
        return {"job": job}

    def _is_complete(self, arm: Arm, seed: int) -> bool:
        """Trained, and every picture drawn."""
        return self.trainings.is_trained(arm, seed) and self.measurements.is_drawn(arm, seed)

    def _pipeline(self, arm: Arm, seed: int) -> Path:
        return self.trainings.folder(arm, seed) / "experts"

    def _losses(self, arm: Arm, seed: int) -> list[float]:
        return self.measurements.losses(self._pipeline(arm, seed), self.trainings.folder(arm, seed) / LOSSES)

    def _num_train_timesteps(self) -> int:
        """Of the base, and so of every arm."""
        file = self.trainings.base_pipeline / "scheduler" / "scheduler_config.json"
        return read_json(file, "num_train_timesteps")["num_train_timesteps"]
