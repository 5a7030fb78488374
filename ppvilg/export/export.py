"""A pipeline becomes an export bundle: graphs are written to a hidden folder, proven, and only then given its name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import paddle
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.utils import CONFIG_NAME
from tqdm import tqdm

from ppvilg.inference.backends import require_backend
from ppvilg.inference.manifest import GRAPH, WEIGHTS, Manifest, installed_versions, stored
from ppvilg.inference.paddle_engine import Predictor, program_version
from ppvilg.inference.runtime import exported_components, exported_unet
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.pipelines import ErnieViLG2Pipeline
from ppvilg.pipelines.loading import STABLE_DIFFUSION_SCHEDULE
from ppvilg.pipelines.zoo import forget_paths

from . import proof
from .graphs import Plan, autoencoder_plans, expert_plan, text_encoder_plan, write_part
from .proof import BFLOAT16_TOLERANCE, PART_TOLERANCE, PICTURE_TOLERANCE, ProofError

DEFAULT_PROMPTS = ("蓝色背景上的一辆出租车", "白色背景上的一只猫", "左边是一只兔子，右边是一棵松树", "三只企鹅，水彩")
_PIPELINE_KEYS = (
    "mark",
    "key_token_weight",
    "max_length",
    "default_num_inference_steps",
    "default_guidance_scale",
    "default_eta",
)


class Exporter:
    """Exports one model; see `export_pipeline` and `export_experts`."""

    def __init__(self, folder: Path, manifest: Manifest, backends: Sequence[str]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.backends = list(backends)
        manifest.proof = {backend: {"parts": {}} for backend in backends}

    def add(self, plan: Plan, cases: list, progress: tqdm) -> None:
        """Writes a part and proves it on every back end."""
        progress.set_postfix_str(f"writing {plan.name}")
        # Before the layer is traced: what runs after that might be the graph.
        references, rounding = proof.reference_outputs(plan, cases, self.manifest.weights)
        part = write_part(plan, self.folder, self.manifest.weights)
        self.manifest.parts[plan.name] = part
        self.manifest.program_version = program_version(self.folder / plan.name / GRAPH)
        progress.update()
        for backend in self.backends:
            progress.set_postfix_str(f"proving {plan.name} on {backend}")
            # No name for the predictor: one of a large part must be gone before the next back end's is made
            found = proof.outputs(Predictor(self.folder / plan.name, backend), cases)
            measured = {"max_error": proof.largest_error(found, references)}
            error, tolerance = measured["max_error"], PART_TOLERANCE
            if proof.in_bfloat16(backend):
                error = measured["rms_error"] = proof.largest_error(found, references, proof.root_mean_square)
                tolerance = BFLOAT16_TOLERANCE["part_rms"]
            if not error <= tolerance:
                raise ProofError(
                    f"{plan.name} on backend {backend!r} is off by {error:.3g} of its output's standard deviation "
                    f"(allowed: {tolerance:g}); nothing was written"
                )
            measured |= {"max_error_of_rounded_weights": rounding, "cases": len(cases)}
            self.manifest.proof[backend]["parts"][plan.name] = measured
            progress.update()

    def record(self, backend: str, name: str, worst: float, limit: float, **about) -> None:
        """Notes what a trajectory measured; ProofError if it is more than allowed."""
        if not worst <= limit:
            raise ProofError(
                f"the trajectory of {proof.STEPS} steps on backend {backend!r} ends {worst:.3g} off ({name}, allowed: "
                f"{limit:g}) although every part is within tolerance; nothing was written"
            )
        self.manifest.proof[backend]["trajectory"] = {"steps": proof.STEPS, name: worst, **about}


def export_model(
    model: str | os.PathLike,
    output: str | os.PathLike,
    backends: Sequence[str] = ("cpu", "onednn"),
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    size: tuple[int, int] | None = None,
    weights: str = "float32",
    from_diffusers: bool = False,
) -> Manifest:
    """Exports a zoo model, a pipeline folder, or a folder with experts or one stock UNet alone.

    from_diffusers: the stock UNet is in PyTorch diffusers' layout. Otherwise as `export_pipeline`, `export_experts`.
    """
    _check_output(Path(output), backends)
    config = Path(model) / CONFIG_NAME
    if not config.is_file():
        return export_pipeline(ErnieViLG2Pipeline.from_pretrained(model), output, backends, prompts, size, weights)
    kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if kind == MoDEUNet2DConditionModel.__name__:
        unet = MoDEUNet2DConditionModel.from_pretrained(model)
    elif kind == UNet2DConditionModel.__name__:
        unet = MoDEUNet2DConditionModel.from_stock(model, from_diffusers)
    else:
        raise ValueError(f"{config}: cannot export a {kind}: give a pipeline folder, experts, or a stock UNet")
    return export_experts(unet, output, backends, size, weights)


def export_pipeline(
    pipeline: ErnieViLG2Pipeline,
    output: str | os.PathLike,
    backends: Sequence[str] = ("cpu", "onednn"),
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    size: tuple[int, int] | None = None,
    weights: str = "float32",
) -> Manifest:
    """Writes the bundle `output` of a dygraph pipeline, proven on every back end.

    prompts: pictures of them are compared after 20 steps, at `size` (height, width in pixels; None: the model's own).
    The autoencoder's upsampling is turned into its tile form, in place.

    Raises:
        ProofError: a part or the trajectory is over tolerance; nothing was written.
        FileExistsError: `output` is there already. ValueError: a back end is missing here.
    """
    if not prompts:
        raise ValueError("prompts is empty: name at least one whose picture is compared")
    with _staged(output, backends) as folder:
        manifest = _describe(pipeline.unet, pipeline, weights)
        exporter = Exporter(folder, manifest, backends)
        pipeline.scheduler.save_pretrained(str(folder / "scheduler"))
        pipeline.tokenizer.save_pretrained(str(folder / "tokenizer"))
        forget_paths(folder)
        plans = _pipeline_plans(pipeline, prompts)
        with tqdm(total=len(plans) * (1 + len(backends)) + 1 + len(backends), desc="export", unit="step") as progress:
            for plan, cases in plans:
                exporter.add(plan, cases, progress)
            _check_smaller(manifest)
            _store_other_files(folder, manifest)
            manifest.write(folder)
            _prove_pictures(exporter, pipeline, prompts, size, progress)
        manifest.write(folder)
    return manifest


def export_experts(
    unet: MoDEUNet2DConditionModel,
    output: str | os.PathLike,
    backends: Sequence[str] = ("cpu", "onednn"),
    latent_size: tuple[int, int] | None = None,
    weights: str = "float32",
) -> Manifest:
    """As `export_pipeline` for experts alone: no text encoder and autoencoder; the trajectory is one of latents.

    latent_size: (h, w) of the latents of the trajectory (None: the model's own).
    """
    with _staged(output, backends) as folder:
        manifest = _describe(unet, None, weights)
        exporter = Exporter(folder, manifest, backends)
        steps = unet.num_experts * (1 + len(backends)) + 1 + len(backends)
        with tqdm(total=steps, desc="export", unit="step") as progress:
            for plan, cases in _expert_plans(unet, None):
                exporter.add(plan, cases, progress)
            _check_smaller(manifest)
            manifest.write(folder)
            _prove_latents(exporter, unet, latent_size, progress)
        manifest.write(folder)
    return manifest


@contextlib.contextmanager
def _staged(output: str | os.PathLike, backends: Sequence[str]) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its name when the block ends without an error, and else goes."""
    output = Path(output)
    _check_output(output, backends)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-unproven-", dir=output.absolute().parent))
    folder.chmod(0o755)
    try:
        yield folder
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_output(output: Path, backends: Sequence[str]) -> None:
    if not backends:
        raise ValueError("backends is empty: name at least one to prove the export on")
    for backend in backends:
        require_backend(backend)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already: give another output, or remove it")


def _describe(unet: MoDEUNet2DConditionModel, pipeline: ErnieViLG2Pipeline | None, weights: str) -> Manifest:
    """The manifest before anything is exported."""
    if weights not in PICTURE_TOLERANCE:
        raise ValueError(f"weights must be one of {', '.join(PICTURE_TOLERANCE)}, got {weights!r}")
    routing = {key: unet.config[key] for key in ("num_experts", "boundaries", "num_train_timesteps")}
    routing["boundaries"] = list(routing["boundaries"])
    components = {"unet": {**routing, "unet": dict(unet.config.unet)}}
    manifest = Manifest(installed_versions(), 0, weights, routing, components)
    if pipeline is not None:
        components["vae"] = {key: value for key, value in pipeline.vae.config.items() if not key.startswith("_")}
        components["text_encoder"] = pipeline.text_encoder.config.to_dict()
        components["text_encoder"].pop("_name_or_path", None)
        manifest.prediction_type = pipeline.scheduler.config.prediction_type
        manifest.pipeline = {key: pipeline.config[key] for key in _PIPELINE_KEYS}
    return manifest


def _pipeline_plans(pipeline: ErnieViLG2Pipeline, prompts: Sequence[str]) -> list[tuple[Plan, list]]:
    """Every part of a pipeline with the inputs it is proven on."""
    prompt_ids = pipeline.text_knowledge.encode(list(prompts)).input_ids
    text = proof.text_cases(pipeline.text_encoder.config.vocab_size, pipeline.config.max_length, prompt_ids)
    plans = [(text_encoder_plan(pipeline.text_encoder), text)]
    multiple = pipeline.size_multiple // pipeline.vae_scale_factor
    sizes = proof.proof_sizes(pipeline.unet.sample_size, multiple)
    for plan in autoencoder_plans(pipeline.vae):
        factor = pipeline.vae_scale_factor if plan.name == "vae_encoder" else 1
        plans.append((plan, proof.autoencoder_cases(plan, [(h * factor, w * factor) for h, w in sizes])))
    with paddle.no_grad():
        prompt_states = tuple(pipeline.encode_prompt(list(prompts)))
    return plans + _expert_plans(pipeline.unet, prompt_states)


def _expert_plans(unet: MoDEUNet2DConditionModel, prompts: tuple | None) -> list[tuple[Plan, list]]:
    multiple = 2 ** (len(unet.config.unet["block_out_channels"]) - 1)
    sizes = proof.proof_sizes(unet.sample_size, multiple)
    return [
        (expert_plan(expert, k), proof.expert_cases(expert, block, sizes, prompts))
        for k, (expert, block) in enumerate(zip(unet.experts, pairwise(unet.boundaries)))
    ]


def _check_smaller(manifest: Manifest) -> None:
    """ValueError unless narrower weights made the files at least a quarter smaller: they have no other use."""
    if manifest.weights == "float32":
        return
    whole = sum(part.weight_bytes for part in manifest.parts.values())
    found = sum(part.files[WEIGHTS].bytes for part in manifest.parts.values())
    if found > 0.75 * whole:
        raise ValueError(
            f"weights stored as {manifest.weights} take {found} bytes, {found / whole:.0%} of float32: this model has "
            "too few large matrices, export it with weights 'float32'; nothing was written"
        )


def _store_other_files(folder: Path, manifest: Manifest) -> None:
    """Hashes of tokenizer and scheduler."""
    for file in sorted(file for name in ("scheduler", "tokenizer") for file in (folder / name).rglob("*")):
        if file.is_file():
            manifest.files[file.relative_to(folder).as_posix()] = stored(file)


def _prove_pictures(exporter: Exporter, pipeline: ErnieViLG2Pipeline, prompts, size, progress: tqdm) -> None:
    """Pictures of the prompts by the dygraph pipeline and by the bundle on every back end."""
    progress.set_postfix_str(f"{len(prompts)} pictures, dygraph")
    expected = proof.draw(pipeline, prompts, size)
    progress.update()
    for backend in exporter.backends:
        progress.set_postfix_str(f"{len(prompts)} pictures, {backend}")
        exported = ErnieViLG2Pipeline(**exported_components(exporter.folder, backend))
        errors = proof.picture_errors(proof.draw(exported, prompts, size), expected)
        about = {"pictures": len(prompts), "size": list(expected.shape[1:3]), "mean": float(np.mean(errors))}
        limit = proof.picture_tolerance(exporter.manifest.weights, backend)
        exporter.record(backend, "max_mean_pixel_error", max(errors), limit, **about)
        progress.update()


def _prove_latents(exporter: Exporter, unet: MoDEUNet2DConditionModel, latent_size, progress: tqdm) -> None:
    """Latents after 20 steps by the dygraph experts and by the bundle on every back end."""
    size = latent_size or proof.proof_sizes(unet.sample_size, 1)[0]
    settings = STABLE_DIFFUSION_SCHEDULE | {"num_train_timesteps": unet.num_train_timesteps}
    arguments = settings, (1, unet.in_channels, *size), unet.config.unet["cross_attention_dim"]
    progress.set_postfix_str("trajectory, dygraph")
    expected = proof.denoise(unet, *arguments)
    progress.update()
    for backend in exporter.backends:
        progress.set_postfix_str(f"trajectory, {backend}")
        error = proof.relative_error(proof.denoise(exported_unet(exporter.folder, backend), *arguments), expected)
        limit = proof.latent_tolerance(exporter.manifest.weights, backend)
        exporter.record(backend, "max_latent_error", error, limit, latent_size=list(size))
        progress.update()
