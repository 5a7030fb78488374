import paddle
import paddle.nn.functional as F
import pytest
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.models.attention_processor import Attention, AttnProcessor

from ppvilg.models import KeyWeightedAttnProcessor, MoDEUNet2DConditionModel


class ScaledMapProcessor:
    """The paper's form: the attention map itself is multiplied by W_j after the softmax, not renormalised."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, key_token_weights=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))  # (N, heads, S or L, d)
        attention_map = F.softmax(paddle.matmul(query, key, transpose_y=True) * attn.scale, axis=-1)  # (N, heads, S, L)
        if encoder_hidden_states is not None and key_token_weights is not None:
            attention_map = attention_map * key_token_weights.unsqueeze([1, 2])
        return attn.to_out[0](attn.batch_to_head_dim(paddle.matmul(attention_map, value)))


def run(layer, processor, inputs, weights):
    """Output and the gradients of inputs and parameters."""
    layer.set_processor(processor)
    layer.clear_gradients(set_to_zero=False)
    inputs = [x.clone().detach() for x in inputs]
    for x in inputs:
        x.stop_gradient = False
    output = layer(*inputs, key_token_weights=weights)
    (output * paddle.linspace(-1, 1, output.size, dtype=output.dtype).reshape(output.shape)).sum().backward()
    return [output.numpy(), *(x.grad.numpy() for x in inputs), *(p.grad.numpy() for p in layer.parameters())]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])
def test_scaled_values_equal_the_scaled_map_in_forward_and_gradient(dtype, tolerance):
    paddle.seed(3)
    layer = Attention(query_dim=32, cross_attention_dim=16, heads=4, dim_head=8)
    layer.to(dtype=dtype)
    inputs = [paddle.randn([3, 24, 32]).cast(dtype), paddle.randn([3, 7, 16]).cast(dtype)]
    weights = (1 + paddle.rand([3, 7])).cast(dtype)
    ours = run(layer, KeyWeightedAttnProcessor(AttnProcessor()), inputs, weights)
    reference = run(layer, ScaledMapProcessor(), inputs, weights)
    plain = run(layer, AttnProcessor(), inputs, None)
    assert abs(ours[0] - plain[0]).max() > 1e-2  # the weights do something
    for a, b in zip(ours, reference, strict=True):
        assert abs(a - b).max() <= tolerance * max(1.0, abs(b).max())


def test_scaled_values_equal_the_scaled_map_in_a_whole_unet(stock, batch):
    model = MoDEUNet2DConditionModel.from_base(stock, 1)
    ours = model(timestep=30, **batch).sample
    without = model(batch["sample"], 30, batch["encoder_hidden_states"]).sample
    model.experts[0].set_attn_processor(ScaledMapProcessor())
    reference = model(timestep=30, **batch).sample
    assert float((ours - without).abs().max()) > 1e-2
    assert float((ours - reference).abs().max()) <= 1e-6 * max(1.0, float(reference.abs().max()))


def test_self_attention_ignores_the_weights():
    paddle.seed(4)
    layer = Attention(query_dim=16, heads=2, dim_head=8)
    hidden_states = paddle.randn([2, 5, 16])
    plain = layer(hidden_states)
    layer.set_processor(KeyWeightedAttnProcessor(layer.processor))
    assert (layer(hidden_states, key_token_weights=paddle.full([2, 5], 2.0)) == plain).all()


def test_every_attention_of_an_expert_is_key_weighted_and_wraps_the_stock_processor(tiny_config):
    stock = UNet2DConditionModel(**tiny_config)
    expert = MoDEUNet2DConditionModel(unet=tiny_config).experts[0]
    assert expert.attn_processors.keys() == stock.attn_processors.keys()
    for name, processor in expert.attn_processors.items():
        assert isinstance(processor, KeyWeightedAttnProcessor)
        assert type(processor.stock) is type(stock.attn_processors[name])
