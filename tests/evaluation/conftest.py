"""One tiny untrained pipeline that draws pictures of the data's shapes."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Folder of a pipeline: f = 8, two experts, random weights."""
    import paddle
    from paddlenlp.transformers import ErnieConfig, ErnieModel
    from ppdiffusers import DDIMScheduler

    from ppvilg.knowledge import build_tokenizer
    from ppvilg.models import MoDEUNet2DConditionModel
    from ppvilg.models.autoencoder import PatchAutoencoderKL
    from ppvilg.pipelines import ErnieViLG2Pipeline

    paddle.seed(0)
    tokenizer = build_tokenizer(["蓝色背景上的一辆红色出租车", "左边是一只猫"], tmp_path_factory.mktemp("tokenizer"))
    text_encoder = ErnieModel(
        ErnieConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = MoDEUNet2DConditionModel(
        num_experts=2,
        num_train_timesteps=100,
        unet={
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D"],
            "block_out_channels": [8],
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
            "norm_num_groups": 4,
        },
    )
    pipeline = ErnieViLG2Pipeline(
        vae=PatchAutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(num_train_timesteps=100),
    )
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return str(folder)
