"""The Paddle sides of bench_deploy.py: dygraph, and an exported bundle; writes the weights for the PyTorch side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
from paddlenlp.utils.log import logger
from ppdiffusers.utils import CONFIG_NAME
from safetensors.numpy import save_file

from ppvilg._runtime import prepare_cpu
from ppvilg.inference import exported_unet
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.pipelines import ErnieViLG2Pipeline

PROMPT = "蓝色背景上的一辆红色出租车和两只企鹅"
TEXT_LENGTH = 77  # for a UNet alone


class PaddleSide:
    """Every part and the whole picture with the pipeline's own components, dygraph or exported."""

    def __init__(self, unet: MoDEUNet2DConditionModel, pipeline: ErnieViLG2Pipeline | None, folder: Path) -> None:
        self.unet, self.pipeline = unet, pipeline
        if pipeline is not None:
            pipeline.set_progress_bar_config(disable=True)
        self.request = {name: paddle.to_tensor(value) for name, value in np.load(folder / "request.npz").items()}

    def step(self, batch: int) -> paddle.Tensor:
        """One call of the expert that owns timestep 500, batch pictures."""
        r = self.request
        return self.unet(r["sample"][:batch], 500, r["states"][:batch], r["weights"][:batch]).sample

    def text(self) -> paddle.Tensor:
        """Text states (2, L, D) of the request's two prompts."""
        return self.pipeline.text_encoder(self.request["ids"])[0]

    def decode(self) -> paddle.Tensor:
        """Pixels (1, 3, H, W) of the request's latents."""
        return self.pipeline.vae.decode(self.request["noise"]).sample

    def picture(self) -> paddle.Tensor:
        """Pixels (1, 3, H, W) in [0, 1]: words to tokens, text, 25 DDIM steps with guidance, decoding.

        eta=0: fresh noise would be another in PyTorch.
        """
        steps = int(self.request["steps"])
        arguments = {"num_inference_steps": steps, "latents": self.request["noise"], "output_type": "pd", "eta": 0.0}
        return self.pipeline(PROMPT, **arguments).images


def write_peer(unet: MoDEUNet2DConditionModel, pipeline: ErnieViLG2Pipeline | None, folder: Path, options) -> None:
    """config.json, request.npz and the weights under PyTorch's layout, for deploy_torch.py and for the sides here."""
    config = {"boundaries": unet.boundaries, "unet": dict(unet.config.unet)}
    rng = np.random.default_rng(0)
    size, channels = options.latent_size or unet.sample_size, unet.in_channels
    length, request = TEXT_LENGTH, {}
    if pipeline is not None:
        ernie = pipeline.text_encoder.config.to_dict()
        config |= {
            "vae": dict(pipeline.vae.config),
            "text_encoder": {key: value for key, value in ernie.items() if isinstance(value, (int, float, str))},
            "scheduler": dict(pipeline.scheduler.config),
            "guidance_scales": pipeline.resolve_guidance(None),
        }
        for name in ("vae", "text_encoder"):
            save_file(for_torch(getattr(pipeline, name)), str(folder / f"{name}.safetensors"))
        request = prompt_inputs(pipeline)
        request |= {
            "noise": rng.standard_normal((1, channels, size, size), np.float32),
            "steps": np.array(options.steps),
        }
        length = request["ids"].shape[1]
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    for k, expert in enumerate(unet.experts):
        save_file(for_torch(expert), str(folder / f"expert_{k:02d}.safetensors"))
    request |= step_inputs(rng, channels, size, length, unet.config.unet["cross_attention_dim"])
    np.savez(folder / "request.npz", **request)


def prompt_inputs(pipeline: ErnieViLG2Pipeline) -> dict[str, np.ndarray]:
    """Token ids and key-token weights (2, L) of no prompt and PROMPT."""
    both = pipeline.text_knowledge.encode([""], apply=False), pipeline.text_knowledge.encode([PROMPT])
    return {
        "ids": np.concatenate([encoded.input_ids for encoded in both]),
        "token_weights": np.concatenate([encoded.key_token_weights for encoded in both]).astype(np.float32),
    }


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


def prepare(options) -> PaddleSide:
    """The side options.serve: dygraph, which also writes the folder, or a back end of the exported bundle."""
    prepare_cpu()
    logger.set_level("WARNING")
    paddle.set_grad_enabled(False)
    side, folder = options.serve, Path(options.folder)
    alone = (Path(options.model) / CONFIG_NAME).is_file()  # a folder of experts or of a stock UNet
    if side != "dygraph":
        pipeline = None if alone else ErnieViLG2Pipeline.from_exported(options.bundle, backend=side)
        unet = exported_unet(options.bundle, side) if alone else pipeline.unet
        return PaddleSide(unet, pipeline, folder)
    pipeline = None if alone else ErnieViLG2Pipeline.from_pretrained(options.model)
    unet = load_unet(Path(options.model)) if alone else pipeline.unet
    unet.eval()
    write_peer(unet, pipeline, folder, options)
    return PaddleSide(unet, pipeline, folder)


def load_unet(folder: Path) -> MoDEUNet2DConditionModel:
    """The experts of a folder without the rest of a pipeline, or its stock UNet as the only one."""
    kind = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["_class_name"]
    if kind == MoDEUNet2DConditionModel.__name__:
        return MoDEUNet2DConditionModel.from_pretrained(folder)
    return MoDEUNet2DConditionModel.from_stock(folder)
