"""Tiny UNets, built once for the whole folder."""

import paddle
import pytest
from ppdiffusers import UNet2DConditionModel

from ppvilg.models import MoDEUNet2DConditionModel

TINY = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=16,
    norm_num_groups=8,
    attention_head_dim=4,
)
BLOCK_STARTS = (0, 100, 600)


@pytest.fixture(scope="session")
def tiny_config():
    return dict(TINY)


@pytest.fixture(scope="session")
def stock():
    """A stock UNet as ppdiffusers builds it."""
    paddle.seed(0)
    unet = UNet2DConditionModel(**TINY)
    unet.eval()
    return unet


@pytest.fixture(scope="session")
def mode(stock):
    """Three different experts on uneven blocks; tests must not change its weights."""
    model = MoDEUNet2DConditionModel.from_base(stock, 3, boundaries=[*BLOCK_STARTS, 1000])
    paddle.seed(1)
    for expert in model.experts:
        for parameter in expert.parameters():
            parameter.set_value(parameter + 0.02 * paddle.randn(parameter.shape))
    return model


@pytest.fixture(scope="session")
def batch():
    """Six samples: latents (6, 4, 8, 8), text states (6, 5, 16), key-token weights (6, 5)."""
    paddle.seed(2)
    return {
        "sample": paddle.randn([6, 4, 8, 8]),
        "encoder_hidden_states": paddle.randn([6, 5, 16]),
        "key_token_weights": 1 + paddle.rand([6, 5]),
    }


@pytest.fixture(scope="session")
def same_weights():
    """same_weights(a, b): whether two layers hold equal values under equal names."""

    def compare(a, b):
        a, b = ({name: value.numpy() for name, value in layer.state_dict().items()} for layer in (a, b))
        return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)

    return compare
