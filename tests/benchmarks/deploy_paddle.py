"""The Paddle sides of bench_deploy.py: dygraph, and an exported bundle; writes the weights for the PyTorch side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
from paddlenlp.utils.log import logger
from safetensors.numpy import save_file

from ppvilg._runtime import prepare_cpu
from ppvilg.pipelines import ErnieViLG2Pipeline

PROMPT = "蓝色背景上的一辆红色出租车和两只企鹅"


class PaddleSide:
    """Every part and the whole picture with the pipeline's own components, dygraph or exported."""

    def __init__(self, pipeline: ErnieViLG2Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)
        self.request = {name: paddle.to_tensor(value) for name, value in np.load(folder / "request.npz").items()}

    def step(self, batch: int) -> paddle.Tensor:
        """One call of the expert that owns timestep 500, batch pictures."""
        r = self.request
        return self.pipeline.unet(r["sample"][:batch], 500, r["states"][:batch], r["weights"][:batch]).sample

    def text(self) -> paddle.Tensor:
        """Text states (2, L, D) of the request's two prompts."""
        return self.pipeline.text_encoder(self.request["ids"])[0]

    def decode(self) -> paddle.Tensor:
        """Pixels (1, 3, H, W) of the request's latents."""
        return self.pipeline.vae.decode(self.request["noise"]).sample

    def picture(self) -> paddle.Tensor:
        """Pixels (1, 3, H, W) in [0, 1]: words to tokens, text, 25 DDIM steps with guidance, decoding."""
        steps = int(self.request["steps"])
        arguments = {"num_inference_steps": steps, "latents": self.request["noise"], "output_type": "pd"}
        return self.pipeline(PROMPT, **arguments).images


def write_peer(pipeline: ErnieViLG2Pipeline, folder: Path, steps: int) -> None:
    """config.json, request.npz and the weights under PyTorch's layout, for deploy_torch.py and for both sides here."""
    unet = pipeline.unet
    config = {
        "boundaries": unet.boundaries,
        "unet": dict(unet.config.unet),
        "vae": dict(pipeline.vae.config),
        "text_encoder": pipeline.text_encoder.config.to_dict(),
        "scheduler": dict(pipeline.scheduler.config),
        "guidance_scale": pipeline.config.default_guidance_scale,
    }
    config["text_encoder"] = {k: v for k, v in config["text_encoder"].items() if isinstance(v, (int, float, str))}
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    save_file(for_torch(pipeline.vae), str(folder / "vae.safetensors"))
    save_file(for_torch(pipeline.text_encoder), str(folder / "text_encoder.safetensors"))
    for k, expert in enumerate(unet.experts):
        save_file(for_torch(expert), str(folder / f"expert_{k:02d}.safetensors"))

    without = pipeline.text_knowledge.encode([""], apply=False)
    towards = pipeline.text_knowledge.encode([PROMPT])
    rng = np.random.default_rng(0)
    size, channels, length = unet.sample_size, unet.in_channels, towards.input_ids.shape[1]
    np.savez(
        folder / "request.npz",
        steps=np.array(steps),
        ids=np.concatenate([without.input_ids, towards.input_ids]),
        token_weights=np.concatenate([without.key_token_weights, towards.key_token_weights]).astype(np.float32),
        noise=rng.standard_normal((1, channels, size, size), np.float32),
        **step_inputs(rng, channels, size, length, unet.config.unet["cross_attention_dim"]),
    )


def step_inputs(rng: np.random.Generator, channels: int, size: int, length: int, features: int) -> dict:
    """Inputs of one denoising step, for batches up to 8."""
    return {
        "sample": rng.standard_normal((8, channels, size, size), np.float32),
        "states": rng.standard_normal((8, length, features), np.float32),
        "weights": (1 + rng.random((8, length))).astype(np.float32),
    }


def for_torch(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """Weights by name with matrices as torch.nn.Linear keeps them, (out, in)."""
    linear = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)}
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return {name: np.ascontiguousarray(value.T if name in linear else value) for name, value in weights.items()}


def prepare(side: str, model: str, bundle: str, folder: Path, steps: int, threads: int) -> PaddleSide:
    """`side` is dygraph, which also writes `folder` unless it is there, or a back end of the exported bundle."""
    prepare_cpu()
    logger.set_level("WARNING")
    paddle.set_grad_enabled(False)
    if side != "dygraph":
        return PaddleSide(ErnieViLG2Pipeline.from_exported(bundle, backend=side), folder)
    pipeline = ErnieViLG2Pipeline.from_pretrained(model)
    if not (folder / "request.npz").exists():
        write_peer(pipeline, folder, steps)
    return PaddleSide(pipeline, folder)
