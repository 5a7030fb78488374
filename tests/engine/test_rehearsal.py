"""Values of a recipe that a later stage, or a picture of a prompt, would refuse: found before the first begins."""

from __future__ import annotations

import pytest

from ppvilg.config import ConfigError

PROMPT = "sample.prompts=[红色方块]"


@pytest.mark.parametrize(
    "overrides",
    [
        ["sample.num_inference_steps=0"],
        ["sample.num_inference_steps=1000", PROMPT],  # more than the recipe has timesteps
        ["sample.guidance_scale=.nan"],
        ["model.scheduler.timestep_spacing=foo"],
        ["model.scheduler.prediction_type=foo"],
        ["model.scheduler.beta_schedule=foo"],
        ["model.scheduler.beta_start=2"],
        ["model.scheduler.rescale_betas_zero_snr=true", "model.scheduler.prediction_type=epsilon"],
        ["train.base.optimizer=lion", "train.base.epsilon=1e-8"],
        ["train.base.optimizer=adafactor", "train.base.learning_rate=1e300"],
        ["train.experts.learning_rates={text_encoder: 1e-5}"],
        ["model.scheduler.num_train_timesteps=0"],
        ["model.unet.config.down_block_types=[Foo,DownBlock2D]"],
        ["model.unet.config.act_fn=foo"],
        ["model.unet.config.norm_num_groups=3"],
        ["model.unet.config.block_out_channels=[8]"],
        ["model.unet.config.cross_attention_dim=24"],
        ["model.vae.config.act_fn=foo"],
        ["model.vae.config.latent_channels=5"],
        ["model.vae.pretrained=nowhere/at/all"],
        ["model.text_encoder.config.hidden_act=foo"],
        ["train.base.beta1=1.0"],
        ["train.base.learning_rate=.nan"],
        ["train.base.learning_rate=1e300"],
        ["train.experts.weight_decay=1e300"],
        ["train.experts.start=nowhere"],
        ["knowledge.text.key_token_weight=.nan"],
        ["model.tokenizer.max_length=2"],
        ["model.tokenizer.max_length=1000"],  # the text encoder has 32 positions
        ["model.tokenizer.pretrained=/nope"],
        ["model.num_experts=91"],
        ["model.boundaries=[0,5,90]"],
        ["data.max_validation_samples=0"],
        ["data.shapes=[[16]]"],
        ["data.shapes=[]"],
        ["data.shapes=[[16,16],[16,16]]"],
        ["data.shapes=[[17,16]]"],
        ["data.caption=en"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_before_the_first_stage(make_run, tmp_path, overrides):
    with pytest.raises(ConfigError) as found:
        make_run(tmp_path / "out", *overrides).run()
    text = str(found.value)
    assert overrides[0].partition("=")[0].rpartition(".")[2] in text, text
    assert "\n" not in text and len(text) < 1000
    assert not list((tmp_path / "out").glob("checkpoints/*/*"))
