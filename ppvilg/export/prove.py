"""Is a bundle, on the machine it stands on, what the model is? Measured against what the model gave, and timed."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
from safetensors.numpy import load_file
from tqdm import tqdm

from ppvilg.inference.engines import require_backend
from ppvilg.inference.manifest import PROOF, TRAJECTORY, Manifest, read_manifest, verify
from ppvilg.inference.options import BACKENDS, BackendOptions, as_options
from ppvilg.inference.proofs import Proof, installed_version, write_proof
from ppvilg.inference.residency import assemble_resident_unet
from ppvilg.inference.runtime import assemble_components, check_graphs, open_part
from ppvilg.models.unet import expert_folder_name
from ppvilg.pipelines import ErnieViLG2Pipeline

from .proof_cases import STEPS, Case, denoise, load_cases, outputs_of
from .tolerances import ProofError, latent_tolerance, measure_part, picture_errors, picture_tolerance, relative_error

TIMED_STEPS, TIMED_SECONDS = 7, 20.0  # a step is called so often, or for so long


def prove_bundle(
    folder: str | os.PathLike,
    backends: Sequence[str | BackendOptions] | None = None,
    output: str | os.PathLike | None = None,
) -> dict[str, Proof]:
    """Proves a bundle on this machine and notes it in proofs/<machine>.json of the bundle; returns the proofs.

    backends: names or options (None: all that are here and have graphs in the bundle). output: another file for the
    proofs; a bundle that cannot be written to has them in the user's cache folder.

    Raises:
        FileNotFoundError: the folder is no bundle or lacks a file.
        ValueError: a file was changed, a back end is missing here or cannot read the graphs; ProofError: it computes
            something else. What was proven before that stays.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    wanted = available_backends(folder, manifest) if backends is None else [as_options(each) for each in backends]
    for options in wanted:
        require_backend(options)
        check_graphs(folder, manifest, options)
    verify(folder, {name: entry for name, entry in manifest.files.items() if name.startswith(f"{PROOF}/")})
    proofs = {}
    steps = len(wanted) * (len(manifest.parts) + 2)
    with tqdm(total=steps, desc="prove", unit="step") as progress:
        for options in wanted:
            proof = _prove(folder, manifest, options, progress)
            place = write_proof(folder, options.backend, proof, output)
            proofs[options.backend] = proof
            # an export proves in a hidden folder, which is gone when this is read
            where = f"{place.relative_to(folder)} of the bundle" if place.is_relative_to(folder) else place
            tqdm.write(f"{options.backend} is proven: {where}")
    return proofs


def available_backends(folder: Path, manifest: Manifest) -> list[BackendOptions]:
    """Back ends of this machine that the bundle has graphs for; ValueError: there is none."""
    found, faults = [], []
    for options in map(BackendOptions, BACKENDS):
        try:
            require_backend(options)
            check_graphs(folder, manifest, options)
            found.append(options)
        except ValueError as fault:
            faults.append(str(fault))
    if not found:
        raise ValueError(f"no back end of this machine can run {folder}: {faults[0]}")
    return found


def report(manifest: Manifest, proofs: dict[str, Proof]) -> str:
    """What was measured, for people: one line per part, one column per back end."""
    lines = [f"{'max error / std':20}" + "".join(f"{backend:>18}" for backend in proofs)]
    for name in manifest.parts:
        errors = [proof.parts[name]["max_error"] for proof in proofs.values()]
        lines.append(f"{name:20}" + "".join(f"{error:18.2e}" for error in errors))
    lines.append(f"{'ms per step':20}" + "".join(f"{1e3 * proof.step_seconds:18.1f}" for proof in proofs.values()))
    for backend, proof in proofs.items():
        about = ", ".join(f"{key} {_short(value)}" for key, value in proof.trajectory.items())
        lines.append(f"trajectory, {backend}: {about}")
    size = sum(entry.bytes for part in manifest.parts.values() for entry in part.files.values())
    lines.append(f"weights stored as {manifest.weights}, {size / 2**20:.1f} MiB in {len(manifest.parts)} parts")
    return "\n".join(lines)


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _prove(folder: Path, manifest: Manifest, options: BackendOptions, progress: tqdm) -> Proof:
    """One back end: every part, then the whole, then the clock."""
    parts = {}
    for name in manifest.parts:
        progress.set_postfix_str(f"{name} on {options.backend}")
        cases, expected = load_cases(folder / PROOF / f"{name}.safetensors")
        # No name for the graph: one of a large part must be gone before the next is loaded
        found = outputs_of(open_part(folder, manifest, name, options), cases)
        try:
            parts[name] = measure_part(found, expected, options.precision)
        except ProofError as error:
            raise ProofError(f"{name} on backend {options.backend!r} {error}") from None
        progress.update()
    progress.set_postfix_str(f"trajectory on {options.backend}")
    trajectory = _prove_trajectory(folder, manifest, options)
    progress.update()
    progress.set_postfix_str(f"time of {options.backend}")
    seconds = _step_seconds(folder, manifest, options)
    progress.update()
    threads = options.num_threads if options.device == "cpu" else None
    return Proof(str(installed_version(options)), threads, parts, trajectory, seconds)


def _prove_trajectory(folder: Path, manifest: Manifest, options: BackendOptions) -> dict:
    """Pictures, or latents of experts alone, after 20 steps: their error; ProofError if it is too large."""
    expected = load_file(str(folder / PROOF / f"{TRAJECTORY}.safetensors"))
    unet = assemble_resident_unet(folder, manifest, options, min(2, manifest.routing["num_experts"]))
    if manifest.pipeline is None:
        given = (paddle.to_tensor(expected[name]) for name in ("noise", "text"))
        error = relative_error(denoise(unet, manifest.trajectory["scheduler"], *given), expected["latents"])
        return _checked("max_latent_error", error, latent_tolerance(manifest.weights, options.precision), options)
    exported = ErnieViLG2Pipeline(**assemble_components(folder, manifest, options, unet))
    found = draw(exported, manifest.trajectory["prompts"], manifest.trajectory["size"])
    errors = picture_errors(found, expected["pictures"])
    limit = picture_tolerance(manifest.weights, options.precision)
    about = {"pictures": len(errors), "size": list(found.shape[1:3]), "mean": float(np.mean(errors))}
    return _checked("max_mean_pixel_error", max(errors), limit, options) | about


def _checked(name: str, worst: float, limit: float, options: BackendOptions) -> dict:
    if not worst <= limit:
        raise ProofError(
            f"the trajectory of {STEPS} steps on backend {options.backend!r} ends {worst:.3g} off ({name}, allowed: "
            f"{limit:g}) although every part is within tolerance"
        )
    return {"steps": STEPS, name: worst}


def draw(pipeline: ErnieViLG2Pipeline, prompts: Sequence[str], size: tuple[int, int] | None) -> np.ndarray:
    """Pictures (N, H, W, 3) in [0, 1] of the prompts after 20 steps, with the pipeline's guidance and seeds from 0.

    No fresh noise in the steps: with it a rounding error can decide what stands where, and pictures tell nothing.
    """
    height, width = size or (None, None)
    quiet = copy.copy(pipeline)
    quiet.set_progress_bar_config(disable=True)
    return quiet(
        list(prompts), num_inference_steps=STEPS, generator=0, output_type="np", height=height, width=width, eta=0.0
    ).images


def _step_seconds(folder: Path, manifest: Manifest, options: BackendOptions) -> float:
    """Median time of a step of two pictures at the model's own size, after one that is not counted."""
    name = expert_folder_name(0)
    own_size, _ = load_cases(folder / PROOF / f"{name}.safetensors")
    case: Case = [paddle.concat([value, value]) for value in own_size[0]]
    graph = open_part(folder, manifest, name, options, verified=True)
    outputs_of(graph, [case])
    taken: list[float] = []
    while len(taken) < TIMED_STEPS and sum(taken) < TIMED_SECONDS:
        started = time.perf_counter()
        outputs_of(graph, [case])
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
