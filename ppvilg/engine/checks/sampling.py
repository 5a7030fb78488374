"""The pictures of a recipe's prompts, drawn once by networks of its shapes that are a few channels wide."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler

from ppvilg.config import ConfigError, Recipe
from ppvilg.engine import builder
from ppvilg.engine.checks.settings import try_settings
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.samples import draw_prompts
from ppvilg.files import digest_of, read_json
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.models.expert_files import stock_config

_WIDTH = 8  # channels of the stand-ins
_USUAL = {"prompts": ["猫"], "num_inference_steps": 1, "guidance_scale": 1.0, "eta": 0.0, "seed": 0}
_passed: set[str] = set()  # digests of what this process has drawn already


def rehearse_samples(recipe: Recipe, tokenizer: ErnieTokenizer, start: Path | None = None) -> None:
    """Draw the prompts as the stages will, from the tokenizer to the picture. ConfigError names what is at fault.

    start: the pipeline folder that experts begin from, whose denoiser says the sizes.
    """
    given = {**builder.plain(recipe.sample), "prompts": list(recipe.sample.prompts) or _USUAL["prompts"]}
    digest = digest_of([given, builder.plain(recipe.model), str(start)])
    if digest in _passed or not distributed.is_main():
        return
    unet = _unet_config(recipe, start)
    if unet["sample_size"] is None and recipe.sample.prompts:
        raise ConfigError("model.unet.config.sample_size=None: sample.prompts are drawn at this size in latent cells; "
                          "set it, or leave sample.prompts empty")
    components = _stand_ins(recipe, tokenizer, unet)

    def draw(schedule: dict, settings: dict) -> None:
        scheduler = DDIMScheduler(**schedule)
        draw_prompts(components | {"scheduler": scheduler, "default_eta": settings["eta"]}, SimpleNamespace(**settings))

    schedule = builder.plain(recipe.model.scheduler)
    try_settings("model.scheduler", schedule, lambda changed: draw(changed, _USUAL))
    try_settings("sample", given, lambda changed: draw(schedule, changed), _USUAL)
    _passed.add(digest)


def _unet_config(recipe: Recipe, start: Path | None) -> dict:
    """The stock config of the denoiser that will be drawn with."""
    if start is not None:
        return MoDEUNet2DConditionModel.without_experts(start / "unet").config.unet
    part = recipe.model.unet
    folder = Path(part.pretrained or "") / "config.json"
    return stock_config(read_json(folder) if part.pretrained and folder.is_file() else builder.plain(part.config))


def _stand_ins(recipe: Recipe, tokenizer: ErnieTokenizer, unet: dict) -> dict:
    """Components of a pipeline with the recipe's channels, blocks, timesteps and tokens, and hardly any weights."""
    levels, channels = len(unet["block_out_channels"]), unet["in_channels"]
    timesteps = recipe.model.scheduler.get("num_train_timesteps", 1000)
    config = {"sample_size": 2 ** (levels - 1), "in_channels": channels, "out_channels": channels,
              "down_block_types": ["DownBlock2D"] * levels, "up_block_types": ["UpBlock2D"] * levels,
              "block_out_channels": [_WIDTH] * levels, "layers_per_block": 1, "cross_attention_dim": _WIDTH,
              "attention_head_dim": _WIDTH, "norm_num_groups": _WIDTH}
    length = recipe.model.tokenizer.max_length
    text_encoder = ErnieModel(ErnieConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, hidden_size=_WIDTH, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=_WIDTH, max_position_embeddings=length))
    vae = AutoencoderKL(latent_channels=channels, block_out_channels=[_WIDTH], norm_num_groups=_WIDTH)
    networks = {"unet": MoDEUNet2DConditionModel(1, None, timesteps, config), "vae": vae, "text_encoder": text_encoder}
    for network in networks.values():
        network.eval()
    text = builder.build_text_knowledge(recipe, tokenizer)
    return {**networks, "tokenizer": tokenizer, "mark": text.mark, "key_token_weight": text.key_token_weight,
            "max_length": length, "default_num_inference_steps": recipe.sample.num_inference_steps,
            "default_guidance_scale": recipe.sample.guidance_scale}
