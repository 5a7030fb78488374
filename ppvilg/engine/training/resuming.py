"""Whether a checkpoint may be gone on with: what decides a step, and what of it has changed since.

A checkpoint fits a stage whose networks have the same parameters and mean the same by them. Everything else may change
(more data, another batch size, more ranks), is said in the log and noted in `<output>/logs/changes.jsonl`; with
`resume.strict` nothing may that would change a bit of what is learnt.
"""
from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import OmegaConf

from ppvilg.config import Recipe

logger = logging.getLogger(__name__)

# Settings of a stage that only watch it, or say where it ends and begins.
_WATCHING = ("log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "validate_every", "sample_every",
             "validation_timesteps", "only", "start", "base")
_WATCHING_DATA = ("train", "sets", "buckets", "max_buckets", "validation", "annotations", "workers", "cache_tags",
                  "bad_sample_share", "max_validation_samples")
# What the numbers in a checkpoint mean: a network that predicts noise is none that predicts velocity.
_MEANING = ("model.scheduler", "model.boundaries", "model.num_experts", "base", "train.lora.alpha")


def settings_of(recipe: Recipe, stage: str, **others) -> dict[str, object]:
    """What decides the steps of a stage, flat: {"train.base.beta2": 0.999, ...}; `others` are added as they are."""
    content = OmegaConf.to_container(recipe, resolve=True)
    parts = {"seed": content["seed"], "data": _without(content["data"], _WATCHING_DATA),
             f"train.{stage}": _without(content["train"][stage], _WATCHING),
             "precision.level": content["precision"]["level"]}
    if content["precision"]["level"] != "O0":
        parts["precision.dtype"] = content["precision"]["dtype"]
    if stage == "vae":
        parts["model.vae"] = content["model"]["vae"]
    else:
        parts |= {"model": content["model"], "knowledge": content["knowledge"]}
    return _flat(parts) | others


def _without(part: dict, keys: tuple[str, ...]) -> dict:
    return {key: value for key, value in part.items() if key not in keys}


def _flat(part: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in part.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def changes(before: dict, now: dict) -> dict[str, tuple]:
    """{key: (before, now)} of settings that differ; None where one side has none."""
    before = json.loads(json.dumps(before))  # as what was written reads: tuples are lists
    now = json.loads(json.dumps(now))
    return {key: (before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)}


def refusal(found: dict[str, tuple], strict: bool) -> str | None:
    """Why changed settings forbid to go on with a checkpoint, None where they do not."""
    listed = {key: values for key, values in found.items() if strict or key.startswith(_MEANING)}
    if not listed:
        return None
    told = sentence(listed)
    if strict:
        return (f"resume.strict=true, and these settings are others than those it was made with: {told}. Set them "
                "back, or resume.strict=false to go on with the change")
    return (f"it is the checkpoint of another model: {told}. Set it back, choose another output, or move the folder "
            "away to begin anew")


def sentence(found: dict[str, tuple]) -> str:
    """Changes as one line."""
    return "; ".join(f"{key}: {_short(before)} -> {_short(now)}" for key, (before, now) in found.items())


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def note_changes(path: Path, stage: str, checkpoint: str, found: dict[str, tuple]) -> None:
    """Say what has changed, and add it to the run's list of changes."""
    if not found:
        return
    logger.warning("stage %s goes on from %s with other settings than it was made with: %s", stage, checkpoint,
                   sentence(found))
    row = {"stage": stage, "checkpoint": checkpoint, "changes": {key: list(values) for key, values in found.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
