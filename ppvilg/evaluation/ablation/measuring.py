"""Pictures of the arms, and what is measured on them and on real scenes of the same prompts."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ppvilg.emoji.captions import held_out_prompts
from ppvilg.emoji.detector import Detector
from ppvilg.emoji.judging import CRITERIA, judge
from ppvilg.emoji.render import render
from ppvilg.files import write_whole

from ..drawing.folder import PictureFolder, read_json
from ..drawing.painter import Painter, picture_seed
from ..drawing.sampling import Sampling
from ..metrics.distribution import Moments, frechet_distance
from ..metrics.features import DetectorFeatures, features_of
from ..suites.objects import scene_of
from .loss import denoising_losses
from .recipe import AblationRecipe, Arm


class Measurements:
    """Pictures, alignment, FID and losses; what is on disk is not made again."""

    def __init__(self, recipe: AblationRecipe, output: Path) -> None:
        self.recipe, self.output = recipe, output
        kinds = ((kind, recipe.prompts.get(kind, 0)) for kind in CRITERIA)
        self.prompts = [prompt for kind, count in kinds if count for prompt in held_out_prompts(kind, count)]

    def folder(self, arm: Arm, seed: int, scale: float) -> Path:
        """Of the pictures of an arm at one guidance scale."""
        return self.output / "pictures" / arm.name / f"seed_{seed}" / f"scale_{scale:g}"

    def is_drawn(self, arm: Arm, seed: int) -> bool:
        """Whether every picture is there."""
        places = [self.folder(arm, seed, scale) for scale in self.recipe.guidance_scales]
        return all(len(list(place.glob("*/samples/[0-9]*.png"))) == len(self.prompts) for place in places)

    def draw(self, pipeline: Path, arm: Arm, seed: int) -> dict[float, PictureFolder]:
        """Folder of pictures per guidance scale, drawn by an arm's pipeline where they are missing."""
        recipe, folders = self.recipe, {}
        sampling = Sampling(
            model=str(pipeline),
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=1.0,
            scheduler=recipe.scheduler,
            seed=recipe.picture_seed,
            batch_size=recipe.batch_size,
        )
        painter = Painter(sampling)
        for scale in recipe.guidance_scales:
            place, name = self.folder(arm, seed, scale), f"{arm.name} seed {seed} scale {scale:g}"
            folders[scale] = painter.at_guidance(scale).draw(place, self.prompts, description=name)
        return folders

    def measure(self, pipelines: dict[tuple[Arm, int], Path]) -> list[dict]:
        """One line per arm, seed and scale: FID to real scenes, and both alignments, in percent."""
        detector, network = Detector.load(self.recipe.detector), DetectorFeatures(self.recipe.detector)
        scenes = self.real_scenes(self.recipe.reference_pictures, 1)
        reference = Moments.of(features_of(network, map(np.asarray, scenes)))
        lines = []
        for (arm, seed), pipeline in tqdm(pipelines.items(), desc="measure", unit="arm"):
            for scale, folder in self.draw(pipeline, arm, seed).items():
                pictures = [folder.read(*key) for key in folder.all()]
                verdicts = [judge(prompt, found) for prompt, found in zip(self.prompts, detector.detect(pictures))]
                single = [np.mean([v for k, v in verdict.criteria.items() if k != "all"]) for verdict in verdicts]
                features = features_of(network, map(np.asarray, pictures))
                lines.append(
                    {
                        **asdict(arm),
                        "seed": seed,
                        "guidance_scale": scale,
                        "fid": frechet_distance(Moments.of(features), reference),
                        "all": 100 * float(np.mean([verdict.right for verdict in verdicts])),
                        "right": [int(verdict.right) for verdict in verdicts],
                        "criteria": 100 * float(np.mean(single)),
                    }
                )
        return lines

    def losses(self, pipeline: Path, note: Path) -> list[float]:
        """Mean loss of a model in every block of timesteps, measured once and kept in `note`."""
        recipe, painter = self.recipe, Painter(Sampling(model=str(pipeline)))
        made = {"model": painter.sha256, "scenes": recipe.loss_scenes, "blocks": recipe.loss_blocks}
        made |= {"seed": recipe.picture_seed, "prompts": [prompt["prompt"] for prompt in self.prompts]}
        kept = _kept_losses(note, made)
        if kept is not None:
            return kept
        scenes = self.real_scenes(recipe.loss_scenes, 2)
        prompts = [self.prompts[i % len(self.prompts)]["prompt"] for i in range(len(scenes))]
        losses = denoising_losses(painter.pipeline, scenes, prompts, recipe.loss_blocks, recipe.picture_seed)
        write_whole(note, json.dumps({"made": made, "losses": losses.mean(axis=0).tolist()}, ensure_ascii=False) + "\n")
        return losses.mean(axis=0).tolist()

    def real_scenes(self, count: int, offset: int) -> list[Any]:
        """Renders of scenes that the prompts describe, each prompt as often as the others; offset: which scenes."""
        rngs = [np.random.default_rng(picture_seed(self.recipe.picture_seed + offset, i, 0)) for i in range(count)]
        return [render(scene_of(self.prompts[i % len(self.prompts)], rng))[0] for i, rng in enumerate(rngs)]


def _kept_losses(note: Path, made: dict) -> list[float] | None:
    """What an earlier run measured in the same way; None where it must be measured again."""
    if not note.is_file():
        return None
    try:
        found = read_json(note, "made", "losses")
    except ValueError as error:
        warnings.warn(f"{error}: measured again", stacklevel=3)
        return None
    return found["losses"] if found["made"] == made else None
