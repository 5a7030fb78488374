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

from ppvilg.inference.engines import engine_module, require_backend
from ppvilg.inference.engines.paddle_inference import program_version
from ppvilg.inference.manifest import GRAPH, ONNX, PROOF, TRAJECTORY, WEIGHTS, Manifest, installed_versions, stored
from ppvilg.inference.options import BackendOptions, as_options
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.pipelines import ErnieViLG2Pipeline, open_pipeline
from ppvilg.pipelines.folders import STABLE_DIFFUSION_SCHEDULE, forget_paths

from .graphs import Plan, autoencoder_plans, expert_plan, text_encoder_plan, write_part
from .onnx_graph import require_converter
from .proof_cases import (
    Case,
    autoencoder_cases,
    denoise,
    expert_cases,
    latent_case,
    outputs_of,
    proof_sizes,
    save_cases,
    save_tensors,
    text_cases,
)
from .prove import draw, prove_bundle
from .tolerances import PICTURE_TOLERANCE, largest_error
from .weights import stored_weights

DEFAULT_PROMPTS = ("蓝色背景上的一辆出租车", "白色背景上的一只猫", "左边是一只兔子，右边是一棵松树", "三只企鹅，水彩")
DEFAULT_BACKENDS = ("cpu", "onednn")
Backends = Sequence[str | BackendOptions]
_PIPELINE_KEYS = (
    "mark",
    "key_token_weight",
    "max_length",
    "default_num_inference_steps",
    "default_guidance_scale",
    "default_eta",
)


def export_model(
    model: str | os.PathLike,
    output: str | os.PathLike,
    backends: Backends = DEFAULT_BACKENDS,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    size: tuple[int, int] | None = None,
    weights: str = "float32",
    from_diffusers: bool = False,
    adapters: Sequence[tuple[str | os.PathLike, float | list[float]]] = (),
) -> Manifest:
    """Exports a zoo model, a pipeline folder, or a folder with experts or one stock UNet alone.

    from_diffusers: the stock UNet is in PyTorch diffusers' layout. adapters: (file, scale) of LoRAs that become part of
    the graphs. Otherwise as `export_pipeline`, `export_experts`.
    """
    _check_request(Path(output), backends, weights)
    config = Path(model) / CONFIG_NAME
    if not config.is_file():
        pipeline = open_pipeline(model, adapters=adapters)
        return export_pipeline(pipeline, output, backends, prompts, size, weights)
    if adapters:
        raise ValueError(f"{model} holds experts alone: adapters are for a whole pipeline")
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
    backends: Backends = DEFAULT_BACKENDS,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    size: tuple[int, int] | None = None,
    weights: str = "float32",
) -> Manifest:
    """Writes the bundle `output` of a dygraph pipeline, proven on every back end.

    prompts: pictures of them are compared after 20 steps, at `size` (height, width in pixels; None: the model's own).
    The autoencoder's upsampling is turned into its tile form, in place.

    Raises:
        ProofError: a part or the trajectory is over tolerance; nothing was written.
        FileExistsError: `output` is there already. ValueError: a back end is missing here, or a part has an operator
            that ONNX lacks.
    """
    if not prompts:
        raise ValueError("prompts is empty: name at least one whose picture is compared")
    with _staged(output, backends, weights) as folder:
        manifest = _describe(pipeline.unet, pipeline, weights)
        pipeline.scheduler.save_pretrained(str(folder / "scheduler"))
        pipeline.tokenizer.save_pretrained(str(folder / "tokenizer"))
        forget_paths(folder)
        _write_parts(folder, manifest, _pipeline_plans(pipeline, prompts), backends)
        pictures = draw(pipeline, prompts, size)  # (N, H, W, 3)
        manifest.trajectory = {"prompts": list(prompts), "size": size and list(size)}
        _finish(folder, manifest, backends, {"pictures": pictures})
    return manifest


def export_experts(
    unet: MoDEUNet2DConditionModel,
    output: str | os.PathLike,
    backends: Backends = DEFAULT_BACKENDS,
    latent_size: tuple[int, int] | None = None,
    weights: str = "float32",
) -> Manifest:
    """As `export_pipeline` for experts alone: no text encoder and autoencoder; the trajectory is one of latents.

    latent_size: (h, w) of the latents of the trajectory (None: the model's own).
    """
    with _staged(output, backends, weights) as folder:
        manifest = _describe(unet, None, weights)
        _write_parts(folder, manifest, _expert_plans(unet, None), backends)
        size = latent_size or proof_sizes(unet.sample_size, 1)[0]
        schedule = STABLE_DIFFUSION_SCHEDULE | {"num_train_timesteps": unet.num_train_timesteps}
        noise, text = latent_case((1, unet.in_channels, *size), unet.config.unet["cross_attention_dim"])
        latents = denoise(unet, schedule, noise, text)
        manifest.trajectory = {"scheduler": schedule}
        _finish(folder, manifest, backends, {"noise": noise.numpy(), "text": text.numpy(), "latents": latents})
    return manifest


def _write_parts(folder: Path, manifest: Manifest, plans: list[tuple[Plan, list[Case]]], backends: Backends) -> None:
    """Graphs of every part in the formats that the back ends run, and what they are to give."""
    formats = _formats(backends)
    with tqdm(plans, desc="export", unit="part") as progress:
        for plan, cases in progress:
            progress.set_postfix_str(plan.name)
            # Before the layer is traced: what runs after that might be the graph.
            with stored_weights(plan.layer, manifest.weights):
                expected = outputs_of(plan.layer, cases)
            save_cases(folder / PROOF / f"{plan.name}.safetensors", cases, expected)
            part = write_part(plan, folder, manifest.weights, formats)
            if manifest.weights != "float32":
                part.rounding_error = largest_error(expected, outputs_of(plan.layer, cases))
            manifest.parts[plan.name] = part
            if GRAPH in formats:
                manifest.program_version = program_version(folder / plan.name / GRAPH)
    _check_smaller(manifest)


def _finish(folder: Path, manifest: Manifest, backends: Backends, trajectory: dict[str, np.ndarray]) -> None:
    """What the whole is to give, the manifest, and the proof on this machine."""
    save_tensors(folder / PROOF / f"{TRAJECTORY}.safetensors", trajectory)
    for file in sorted(file for name in ("scheduler", "tokenizer", PROOF) for file in (folder / name).rglob("*")):
        if file.is_file():
            manifest.files[file.relative_to(folder).as_posix()] = stored(file)
    manifest.write(folder)
    prove_bundle(folder, backends)


def _formats(backends: Backends) -> list[str]:
    """Which graphs these back ends run, of GRAPH and ONNX."""
    files = {file for backend in backends for file in engine_module(as_options(backend)).FILES}
    return [each for each in (GRAPH, ONNX) if each in files]


@contextlib.contextmanager
def _staged(output: str | os.PathLike, backends: Backends, weights: str) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its name when the block ends without an error, and else goes."""
    output = Path(output)
    _check_request(output, backends, weights)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-unproven-", dir=output.absolute().parent))
    folder.chmod(0o755)
    try:
        yield folder
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_request(output: Path, backends: Backends, weights: str) -> None:
    if not backends:
        raise ValueError("backends is empty: name at least one to prove the export on")
    if weights not in PICTURE_TOLERANCE:
        raise ValueError(f"weights must be one of {', '.join(PICTURE_TOLERANCE)}, got {weights!r}")
    for backend in backends:
        require_backend(as_options(backend))
    if ONNX in _formats(backends):
        require_converter()
        if weights != "float32":
            raise ValueError(f"weights stored as {weights} are for Paddle Inference alone, whose graphs widen them")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already: give another output, or remove it")


def _describe(unet: MoDEUNet2DConditionModel, pipeline: ErnieViLG2Pipeline | None, weights: str) -> Manifest:
    """The manifest before anything is exported."""
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
    text = text_cases(pipeline.text_encoder.config.vocab_size, pipeline.config.max_length, prompt_ids)
    plans = [(text_encoder_plan(pipeline.text_encoder), text)]
    multiple = pipeline.size_multiple // pipeline.vae_scale_factor
    sizes = proof_sizes(pipeline.unet.sample_size, multiple)
    for plan in autoencoder_plans(pipeline.vae):
        factor = pipeline.vae_scale_factor if plan.name == "vae_encoder" else 1
        plans.append((plan, autoencoder_cases(plan.inputs[0].shape[1], [(h * factor, w * factor) for h, w in sizes])))
    with paddle.no_grad():
        prompt_states = tuple(pipeline.encode_prompt(list(prompts)))
    return plans + _expert_plans(pipeline.unet, prompt_states)


def _expert_plans(unet: MoDEUNet2DConditionModel, prompts: tuple | None) -> list[tuple[Plan, list]]:
    multiple = 2 ** (len(unet.config.unet["block_out_channels"]) - 1)
    sizes = proof_sizes(unet.sample_size, multiple)
    return [
        (expert_plan(expert, k), expert_cases(expert, block, sizes, prompts))
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
