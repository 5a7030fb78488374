"""Bias gradients as matrix products: the same outputs bit for bit, the same gradients up to rounding."""

import numpy as np
import paddle
from paddle import nn
from ppdiffusers import UNet2DConditionModel

from ppvilg.models import use_matmul_bias_gradients


def tiny_unet() -> UNet2DConditionModel:
    paddle.seed(3)
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
    )


def output_and_gradients(unet, inputs):
    output = unet(*inputs).sample
    output.square().mean().backward()
    gradients = {name: p.grad.numpy() for name, p in unet.named_parameters()}
    unet.clear_gradients()
    return output.numpy(), gradients


def test_unet_outputs_are_bit_equal_and_gradients_agree():
    unet, rng = tiny_unet(), np.random.default_rng(0)
    inputs = [paddle.to_tensor(rng.standard_normal((2, 4, 4, 8)).astype("float32")), paddle.to_tensor([3, 700]),
              paddle.to_tensor(rng.standard_normal((2, 5, 8)).astype("float32"))]
    stock, stock_gradients = output_and_gradients(unet, inputs)
    assert use_matmul_bias_gradients(unet) > 20
    switched, gradients = output_and_gradients(unet, inputs)
    np.testing.assert_array_equal(switched, stock)
    for name, expected in stock_gradients.items():
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-4, atol=1e-7, err_msg=name)


def test_layers_it_cannot_treat_are_left_alone():
    network = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1, padding_mode="circular"), nn.Linear(4, 4, bias_attr=False),
                            nn.LayerNorm(4))
    assert use_matmul_bias_gradients(network) == 0
