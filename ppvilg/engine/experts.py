"""Experts as folders: split a denoiser, put experts of several jobs together, average them, judge a retrained one.

All but the last work on files: nothing is loaded whole, so that a model larger than the memory can be handled.
A job's folder is a pipeline folder whose `unet` holds only the experts that were trained there.
"""
from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from ppdiffusers.utils import PADDLE_SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from ppvilg.config import ConfigError
from ppvilg.engine.checkpoint import replaced_folder
from ppvilg.files import check_model_files, read_json
from ppvilg.models import block_origins, uniform_boundaries, validate_boundaries
from ppvilg.models.expert_files import expert_folder_name

CONFIG = "config.json"
SHARED = ("text_encoder", "tokenizer", "vae", "scheduler")


@dataclass(frozen=True)
class Job:
    """A pipeline folder: its routing table, the experts that are in it, and hashes of what experts must agree on."""

    folder: Path
    boundaries: tuple[int, ...]
    experts: dict[int, Path]
    shared: dict[str, str]
    schedule: dict[str, object]
    unet: dict[str, object]


def read_job(folder: str | Path) -> Job:
    """What a pipeline folder holds. Raises ConfigError where it is not one."""
    folder = Path(folder)
    config = _json(folder / "unet" / CONFIG)
    schedule = _json(folder / "scheduler" / "scheduler_config.json")
    try:
        check_model_files(folder)
        boundaries = tuple(map(int, config["boundaries"]))
        unet = dict(config["unet"])
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / 'unet' / CONFIG} is not that of a mixture of experts ({error!r})") from error
    experts = {}
    for path in sorted((folder / "unet").glob("expert_*")):
        if (path / CONFIG).is_file() and (path / PADDLE_SAFETENSORS_WEIGHTS_NAME).is_file():
            experts[int(path.name.removeprefix("expert_"))] = path
    shared = {name: hash_component(folder / name) for name in ("text_encoder", "tokenizer", "vae")}
    return Job(folder, boundaries, experts, shared,
               {key: value for key, value in schedule.items() if not key.startswith("_")}, unet)


def _json(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{error}; a pipeline folder has it: is {path.parents[1]} what you meant?") from error


def hash_component(folder: Path) -> str:
    """SHA-256 over what a component computes with: every tensor, and its settings without versions and paths."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is missing: a pipeline folder has it")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        if path.suffix == ".safetensors":
            _hash_tensors(path, digest)
        elif path.suffix == ".json":
            settings = read_json(path)
            if folder.name != "tokenizer":  # there a key may be a word of the vocabulary
                settings = {key: value for key, value in settings.items()
                            if not key.startswith("_") and "version" not in key}
            digest.update(json.dumps(settings, sort_keys=True).encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _hash_tensors(path: Path, digest) -> None:
    """Names, shapes and values in the order of names; float16 and the float32 it was widened to are the same."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name in sorted(header):
            begin, end = header[name]["data_offsets"]
            half = header[name]["dtype"] == "F16"
            digest.update(f"{name} {'F32' if half else header[name]['dtype']} {header[name]['shape']}\n".encode())
            file.seek(8 + length + begin)
            for start in range(begin, end, 1 << 20):
                content = file.read(min(1 << 20, end - start))
                digest.update(np.frombuffer(content, np.float16).astype(np.float32) if half else content)


def _check_new(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} is there already; choose a folder that is not, or move it away")


def _begin(source: Path, partial: Path, boundaries: Sequence[int]) -> None:
    """Everything of a pipeline folder but its experts, with another routing table."""
    for entry in source.iterdir():
        if entry.is_dir() and entry.name != "unet":
            shutil.copytree(entry, partial / entry.name)
        elif entry.is_file():
            shutil.copy2(entry, partial / entry.name)
    config = _json(source / "unet" / CONFIG)
    (partial / "unet").mkdir()
    config |= {"num_experts": len(boundaries) - 1, "boundaries": list(boundaries)}
    (partial / "unet" / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def split(source: Path, output: Path, experts: int, boundaries: Sequence[int] | None = None) -> list[int]:
    """A pipeline with `experts` experts, each a copy of the source's denoiser that owns the middle of its block.

    Twice as many experts halve each block; else blocks are uniform, or as `boundaries` say. Gives for every new expert
    the number of the one that it is a copy of.

    Raises:
        ConfigError: `output` exists, boundaries that do not fit, or a source that lacks an expert that is needed.
    """
    _check_new(output)
    job = read_job(source)
    old = list(job.boundaries)
    if boundaries is None:
        doubled = sorted({*old, *((low + high) // 2 for low, high in pairwise(old))})
        halved = experts == 2 * (len(old) - 1) and len(doubled) == experts + 1
        boundaries = doubled if halved else uniform_boundaries(experts, old[-1])
    try:
        boundaries = validate_boundaries(boundaries, experts, old[-1])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    origins = block_origins(boundaries, old)
    missing = sorted(set(origins) - set(job.experts))
    if missing:
        raise ConfigError(f"{source} lacks experts {missing}")
    with replaced_folder(output) as partial:
        _begin(source, partial, boundaries)
        for expert, origin in enumerate(tqdm(origins, desc=f"splitting into {output}", unit="expert")):
            shutil.copytree(job.experts[origin], partial / "unet" / expert_folder_name(expert))
    return origins


def check_same_model(jobs: Sequence[Job]) -> None:
    """Experts must have been trained beside the same text encoder, VAE and noise schedule. ConfigError names them."""
    first = jobs[0]
    for job in jobs[1:]:
        faults = [f"{name} differs (SHA-256 {job.shared[name][:12]} and {first.shared[name][:12]})"
                  for name in first.shared if job.shared[name] != first.shared[name]]
        for key in sorted(first.schedule.keys() | job.schedule.keys()):
            one, other = first.schedule.get(key), job.schedule.get(key)
            if one != other:
                what = "betas differ" if "beta" in key else "schedule differs"
                faults.append(f"{key} is {other!r} and {one!r}" + ("" if key == "prediction_type" else f": {what}"))
        if job.boundaries != first.boundaries:
            faults.append(f"boundaries are {list(job.boundaries)} and {list(first.boundaries)}")
        if job.unet != first.unet:
            keys = [key for key in first.unet.keys() | job.unet.keys() if first.unet.get(key) != job.unet.get(key)]
            faults.append(f"the denoiser's {', '.join(sorted(keys))} differ")
        if faults:
            raise ConfigError(f"{job.folder} and {first.folder} do not belong together: {'; '.join(faults)}")


def choose_experts(jobs: Sequence[Job], replace: Sequence[int] = ()) -> dict[int, Path]:
    """Which folder gives which expert; of those in `replace` the last one counts.

    Raises:
        ConfigError: a timestep that no expert owns, or an expert that several folders have.
    """
    boundaries, chosen, faults = jobs[0].boundaries, {}, []
    for index, (low, high) in enumerate(pairwise(boundaries)):
        holders = [job for job in jobs if index in job.experts]
        if not holders:
            faults.append(f"gap: no folder has expert {index}, which owns timesteps {low} to {high - 1}")
        elif len(holders) > 1 and index not in replace:
            places = " and in ".join(str(job.folder) for job in holders)
            faults.append(f"overlap: expert {index} is in {places}; take one away, or say --replace {index} to use the "
                          "last")
        else:
            chosen[index] = holders[-1].experts[index]
    if faults:
        raise ConfigError("; ".join(faults))
    return chosen


def assemble(folders: Sequence[Path], output: Path, replace: Sequence[int] = ()) -> dict[int, Path]:
    """One pipeline of the experts in several folders; gives which folder each one is from.

    Raises:
        ConfigError: gaps, overlaps, parts that do not belong together, or an `output` that exists.
    """
    _check_new(output)
    jobs = [read_job(folder) for folder in folders]
    check_same_model(jobs)
    chosen = choose_experts(jobs, replace)
    with replaced_folder(output) as partial:
        _begin(jobs[0].folder, partial, jobs[0].boundaries)
        for index, path in tqdm(chosen.items(), desc=f"assembling {output}", unit="expert"):
            shutil.copytree(path, partial / "unet" / expert_folder_name(index))
    return chosen


def merge(source: Path, output: Path) -> None:
    """A pipeline with one denoiser whose weights are the experts' mean, weighted by the timesteps that each owns.

    Raises:
        ConfigError: an expert is missing, or `output` exists.
    """
    _check_new(output)
    job = read_job(source)
    paths = choose_experts([job])
    shares = np.diff(job.boundaries) / job.boundaries[-1]
    with replaced_folder(output) as partial:
        _begin(source, partial, (0, job.boundaries[-1]))
        target = partial / "unet" / expert_folder_name(0)
        shutil.copytree(paths[0], target, ignore=shutil.ignore_patterns("*.safetensors"))
        files = [safe_open(str(path / PADDLE_SAFETENSORS_WEIGHTS_NAME), framework="np") for path in paths.values()]
        weights = {}
        for name in tqdm(files[0].keys(), desc=f"merging into {output}", unit="tensor"):
            first = files[0].get_tensor(name)
            mean = sum(share * file.get_tensor(name).astype(np.float64) for share, file in zip(shares, files))
            weights[name] = mean.astype(first.dtype)
        save_file(weights, target / PADDLE_SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pd"})


def status(folders: Sequence[Path]) -> str:
    """A table of experts, their timesteps and where they are; then what is wrong, if anything."""
    jobs = [read_job(folder) for folder in folders]
    lines = [f"{'expert':<8}{'timesteps':<14}{'size':>10}  {'SHA-256':<14}folder"]
    for index, (low, high) in enumerate(pairwise(jobs[0].boundaries)):
        holders, owned = [job for job in jobs if index in job.experts], f"{low}-{high - 1}"
        for job in holders:
            path = job.experts[index]
            size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
            lines.append(f"{index:<8}{owned:<14}{size:>6.1f} MiB  {hash_component(path)[:12]:<14}{job.folder}")
        if not holders:
            lines.append(f"{index:<8}{owned:<14}{'missing':>10}")
    for check in (lambda: check_same_model(jobs), lambda: choose_experts(jobs)):
        try:
            check()
        except ConfigError as error:
            lines.append(f"not one model yet: {error}")
    return "\n".join(lines)


def compare_replacement(recipe, pipeline: Path, replacements: dict[int, Path]) -> dict:
    """Validation loss per block with a pipeline's own experts and with some replaced, and pictures of the prompts.

    {"before", "after": losses by name, "pictures": two arrays (H, W, 3) uint8 or None}. `recipe` says which validation
    data, as `validation_recipe` makes it.

    Raises:
        ConfigError: an expert that was trained beside other parts, or is not in its folder.
    """
    from ppvilg.engine.run import Run
    from ppvilg.engine.stages.denoiser import DenoiserStage

    whole = read_job(pipeline)
    choose_experts([whole])
    for index, folder in replacements.items():
        job = read_job(folder)
        check_same_model([whole, job])
        if index not in job.experts:
            raise ConfigError(f"{folder} has no expert {index}, only {sorted(job.experts)}")
    run = Run(recipe)
    run.output.mkdir(parents=True, exist_ok=True)
    stage = DenoiserStage(recipe, run.prepare_denoising(), "experts", run.output / "experts", Path(pipeline))
    before, first = stage.validate(), stage.sample(0)
    for index, folder in replacements.items():
        stage.unet.load_expert(Path(folder) / "unet", index)
    return {"before": before, "after": stage.validate(), "pictures": (first, stage.sample(0))}


def validation_overrides(pipeline: Path, output: Path) -> list[str]:
    """Overrides that make a training recipe one for `compare_replacement`: all parts are the pipeline's own."""
    config = _json(Path(pipeline) / "unet" / CONFIG)
    bounds = ",".join(map(str, config["boundaries"]))
    quiet = [f"train.{stage}.{key}=0" for stage in ("vae", "base") for key in ("steps", "warmup_steps")]
    parts = [f"model.{part}.pretrained={Path(pipeline) / part}" for part in ("vae", "tokenizer")]
    return [f"output={output}", *quiet, *parts, f"train.experts.start={pipeline}", "train.experts.only=null",
            "data.cache_latents=false", f"model.num_experts={config['num_experts']}", f"model.boundaries=[{bounds}]"]
