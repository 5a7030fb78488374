"""Prior preservation (DreamBooth, arXiv 2208.12242): pictures that the base draws keep it what it was.

They are drawn once, into the run's folder, in the shapes of the pictures that are taught, and come among these with
`weight` to 1. In expectation that is the loss of the lesson plus `weight` times that of the prior.
"""
from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.config import ConfigError, Recipe
from ppvilg.data import ImageTransform, MixedSource, RecordSource, in_batches, open_source, repeats_of
from ppvilg.engine.checkpoint import replaced_folder
from ppvilg.engine.parallel import distributed
from ppvilg.files import digest_of, find_shipped, read_json, read_lines
from ppvilg.pipelines import ErnieViLG2Pipeline

logger = logging.getLogger(__name__)
_NOTE, _LISTING, _BATCH = "made_of.json", "captions.jsonl", 8


def prior_prompts(recipe: Recipe) -> list[str]:
    """The prompts of `train.lora.prior`; none: there is no prior. ConfigError: their file cannot be read."""
    prior = recipe.train.lora.prior
    prompts = list(prior.prompts)
    if prior.prompt_file:
        try:
            prompts += read_lines(find_shipped(prior.prompt_file))
        except (OSError, ValueError) as error:
            raise ConfigError(f"train.lora.prior.prompt_file={prior.prompt_file}: {error}") from error
    return prompts


def with_prior(recipe: Recipe, base: Path, base_sha256: str, training: RecordSource, transform: ImageTransform
               ) -> RecordSource | MixedSource:
    """The pictures that are taught, mixed with those of the prior where the recipe has prompts for one."""
    prompts = prior_prompts(recipe)
    if not prompts:
        return training
    folder = Path(recipe.output) / "prior"
    if distributed.is_main():
        _draw(recipe, base, base_sha256, prompts, _shapes(training, transform), folder)
    distributed.barrier()
    prior = open_source(folder)
    weights = [1.0, recipe.train.lora.prior.weight]
    return MixedSource([training, prior], repeats_of([len(training), len(prior)], weights))


def _shapes(training: RecordSource, transform: ImageTransform) -> list[tuple[int, int]]:
    """(width, height) of every picture that is taught, as it is trained on."""
    return [transform.shapes[transform.bucket_of(*map(int, size))] for size in np.asarray(training.sizes)]


def _draw(recipe: Recipe, base: Path, base_sha256: str, prompts: list[str], shapes: list, folder: Path) -> None:
    """Draw the pictures of the prompts, in turns, unless they are there."""
    count = recipe.train.lora.prior.pictures
    jobs = [(prompts[i % len(prompts)], shapes[i % len(shapes)]) for i in range(count)]
    made_of = digest_of([base_sha256, recipe.seed, jobs])
    if (folder / _NOTE).is_file() and read_json(folder / _NOTE).get("made_of") == made_of:
        return
    pipeline = ErnieViLG2Pipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    lines: list[dict] = [{}] * count
    progress = tqdm(total=count, desc=f"prior: pictures of the base in {folder}", unit="picture")
    with replaced_folder(folder) as partial, progress:
        for batch in in_batches(range(count), lambda i: jobs[i][1], _BATCH):
            width, height = jobs[batch[0]][1]
            seeds = [recipe.seed + i for i in batch]
            drawn = pipeline([jobs[i][0] for i in batch], width=width, height=height, generator=seeds).images
            for i, picture in zip(batch, drawn):
                picture.save(partial / f"{i:05d}.png")
                lines[i] = {"file_name": f"{i:05d}.png", "caption": jobs[i][0]}
            progress.update(len(batch))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / _LISTING).write_text(text, encoding="utf-8")
        (partial / _NOTE).write_text(json.dumps({"made_of": made_of}), encoding="utf-8")
