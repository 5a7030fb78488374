"""Components of a tiny pipeline, real ones: 16 pixels, 4 experts, random weights."""

from __future__ import annotations

import pytest

CAPTIONS = [
    "蓝色背景上的一辆红色出租车",
    "左边是一只猫，右边是一棵松树",
    "三只企鹅，水彩",
    "a red car 42",
    "像素风格、探索无限、油画",
]
TIMESTEPS = 100


@pytest.fixture(scope="session")
def components(tmp_path_factory) -> dict:
    """Arguments of ErnieViLG2Pipeline."""
    return make_components(tmp_path_factory.mktemp("tokenizer"))


def make_components(folder) -> dict:
    """The same; the tokenizer's files are written to `folder`."""
    import paddle
    from paddlenlp.transformers import ErnieConfig, ErnieModel
    from ppdiffusers import AutoencoderKL, DDIMScheduler

    from ppvilg.knowledge import build_tokenizer
    from ppvilg.models import MoDEUNet2DConditionModel

    paddle.seed(0)
    tokenizer = build_tokenizer(CAPTIONS, folder)
    config = ErnieConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        type_vocab_size=2,
        initializer_range=0.5,  # far enough apart that prompts matter to random weights
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    unet = MoDEUNet2DConditionModel(
        num_experts=4,
        num_train_timesteps=TIMESTEPS,
        unet={
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
        },
    )
    text_encoder = ErnieModel(config)
    for layer in (vae, text_encoder, unet):
        layer.eval()
    return {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=False),
    }
