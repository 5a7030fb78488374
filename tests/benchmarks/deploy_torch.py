"""The PyTorch side of bench_deploy.py: the same weights in diffusers and transformers. Never imports Paddle.

`load_peer(folder)` reads what deploy_paddle.py wrote: config.json, request.npz and one safetensors file per part.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import torch

# diffusers imports torchvision where it is installed, and PyPI's does not fit every CPU build of PyTorch; nothing here
# needs it, so that it is kept out.
sys.modules["torchvision"] = None

import torch.nn.functional as F  # noqa: E402
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import ErnieConfig, ErnieModel  # noqa: E402

# paddlenlp's names of ERNIE's weights, and transformers'
ERNIE_NAMES = {
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "encoder.layers.": "encoder.layer.",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
}


class KeyWeightedProcessor:
    """diffusers' AttnProcessor2_0 whose cross-attention scales the value rows by (N, L) key-token weights."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, key_token_weights=None, **unused):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.to_v(text)  # (N, L, D)
        if encoder_hidden_states is not None and key_token_weights is not None:
            value = value * key_token_weights.unsqueeze(-1)
        heads = [
            each.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q(hidden_states), attn.to_k(text), value)
        ]  # (N, H, S or L, D / H) each
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (N, S, D)
        return attn.to_out[1](attn.to_out[0](attended))


class PatchDecoder(nn.Module):
    """What `PatchAutoencoderKL.decode` does, from the stock AutoencoderKL: decoder, linear shortcut, pixel shuffle."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.stock = AutoencoderKL(**known(AutoencoderKL, config))
        self.patch_size = config.get("patch_size", 1)
        self.shortcut_decode = None
        if config.get("linear_shortcut"):
            self.shortcut_decode = nn.Conv2d(config["latent_channels"], config["out_channels"], 1)

    def load(self, weights: dict) -> PatchDecoder:
        """Takes the weights of the Paddle class; those of the linear shortcut to latents are not needed here."""
        shortcuts = {name: weights.pop(name) for name in list(weights) if name.startswith("shortcut_")}
        self.stock.load_state_dict(weights)
        if self.shortcut_decode is not None:
            prefix = "shortcut_decode."
            own = {name.removeprefix(prefix): value for name, value in shortcuts.items() if name.startswith(prefix)}
            self.shortcut_decode.load_state_dict(own)
        return self

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w), unscaled, to pixels (N, 3, H, W)."""
        folded = self.stock.decode(latents).sample  # (N, 3 p^2, H/p, W/p)
        if self.shortcut_decode is not None:
            folded = folded + self.shortcut_decode(latents)
        return F.pixel_shuffle(folded, self.patch_size)  # (N, 3, H, W)


def known(cls: type, config: dict) -> dict:
    """The settings of a Paddle config that the PyTorch class takes too."""
    accepted = inspect.signature(cls.__init__).parameters
    return {key: value for key, value in config.items() if key in accepted}


class TorchSide:
    """Every part and the whole picture in PyTorch, eager or compiled; the calls of deploy_paddle.PaddleSide."""

    def __init__(self, folder: Path, compiled: bool) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.boundaries, self.scales = config["boundaries"], config.get("guidance_scales")
        self.request = {name: torch.from_numpy(value) for name, value in np.load(folder / "request.npz").items()}
        self.experts = [self._expert(config["unet"], path) for path in sorted(folder.glob("expert_*.safetensors"))]
        self.text_encoder = self.vae = None
        if "vae" in config:
            self.latent_scale = config["vae"]["scaling_factor"]
            self.vae = PatchDecoder(config["vae"]).load(load_file(folder / "vae.safetensors")).eval()
            self.text_encoder = self._ernie(config["text_encoder"], folder)
            self.scheduler = DDIMScheduler(**known(DDIMScheduler, config["scheduler"]))
            self.pad = config["text_encoder"]["pad_token_id"]
        if compiled:
            self.experts = [torch.compile(expert) for expert in self.experts]
            if self.vae is not None:
                self.vae, self.text_encoder = torch.compile(self.vae), torch.compile(self.text_encoder)

    @staticmethod
    def _expert(config: dict, path: Path) -> UNet2DConditionModel:
        unet = UNet2DConditionModel(**known(UNet2DConditionModel, config)).eval()
        unet.load_state_dict(load_file(path))
        unet.set_attn_processor(KeyWeightedProcessor())
        return unet

    @staticmethod
    def _ernie(config: dict, folder: Path) -> ErnieModel:
        model = ErnieModel(ErnieConfig(**config), add_pooling_layer=False).eval()
        weights = {}
        for name, value in load_file(folder / "text_encoder.safetensors").items():
            for theirs, ours in ERNIE_NAMES.items():
                name = name.replace(theirs, ours)
            weights[name] = value
        # Paddle's embedding gives zeros for the padding token, whatever its row holds
        weights["embeddings.word_embeddings.weight"][config["pad_token_id"]] = 0
        wanted = model.state_dict().keys()
        model.load_state_dict({name: value for name, value in weights.items() if name in wanted}, strict=True)
        return model

    def step(self, batch: int) -> torch.Tensor:
        """One call of the expert that owns timestep 500, batch pictures."""
        r = self.request
        return self._denoise(r["sample"][:batch], 500, r["states"][:batch], r["weights"][:batch])

    def _denoise(self, sample, timestep, states, weights) -> torch.Tensor:
        expert = self.experts[self._expert_at(timestep)]
        extra = {"key_token_weights": weights}
        timestep = torch.tensor(timestep)  # a compiler would make a program for every number
        return expert(sample, timestep, states, cross_attention_kwargs=extra, return_dict=False)[0]  # (N, C, h, w)

    def _expert_at(self, timestep: int) -> int:
        return int(np.searchsorted(self.boundaries, timestep, side="right")) - 1

    def text(self) -> torch.Tensor:
        """Text states (2, L, D) of the request's two prompts."""
        return self._encode(self.request["ids"])

    def _encode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(input_ids=ids, attention_mask=(ids != self.pad).long())[0]

    def decode(self) -> torch.Tensor:
        """Pixels (1, 3, H, W) of the request's latents."""
        return self.vae(self.request["noise"])

    def picture(self) -> torch.Tensor:
        """Pixels (1, 3, H, W) in [0, 1]: text, 25 DDIM steps with guidance, decoding."""
        r = self.request
        states = torch.cat([self._encode(ids[None]) for ids in r["ids"]])  # (2, L, D), without and with the prompt
        self.scheduler.set_timesteps(int(r["steps"]))
        latents = r["noise"] * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            both = self._denoise(torch.cat([latents, latents]), int(timestep), states, r["token_weights"])
            without, towards = both.chunk(2)
            prediction = without + self.scales[self._expert_at(int(timestep))] * (towards - without)
            latents = self.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return (self.vae(latents / self.latent_scale) / 2 + 0.5).clamp(0, 1)


def prepare(folder: Path, threads: int, compiled: bool) -> TorchSide:
    """The side, ready to be called without gradients; compiled: by torch.compile, in its first calls."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return TorchSide(folder, compiled)
