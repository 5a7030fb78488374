from types import SimpleNamespace

import paddle
import paddle.nn.functional as F
import pytest
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.models.attention_processor import Attention, AttnProcessor

from ppvilg.models import KeyWeightedAttnProcessor, MoDEUNet2DConditionModel
from ppvilg.models.attention import QueryBlockAttnProcessor, _ScaledValues, query_blocks


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


# ---- queries in blocks ----


@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_queries_in_blocks_give_the_same(blocks):
    paddle.seed(5)
    layer = Attention(query_dim=16, heads=2, dim_head=8)
    hidden_states, weights = paddle.randn([2, 24, 16]), 1 + paddle.rand([2, 24])
    whole = layer(hidden_states)
    assert QueryBlockAttnProcessor.fits(layer)
    layer.set_processor(QueryBlockAttnProcessor(KeyWeightedAttnProcessor(layer.processor), blocks))
    assert float((layer(hidden_states, key_token_weights=weights) - whole).abs().max()) < 1e-6


def test_attention_over_text_stays_in_one_piece_and_keeps_its_weights():
    paddle.seed(6)
    layer = Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8)
    hidden_states, text, weights = paddle.randn([2, 6, 16]), paddle.randn([2, 5, 12]), 1 + paddle.rand([2, 5])
    layer.set_processor(KeyWeightedAttnProcessor(layer.processor))
    expected = layer(hidden_states, text, key_token_weights=weights)
    layer.set_processor(QueryBlockAttnProcessor(layer.processor, 4))  # which does not divide 6
    assert (layer(hidden_states, text, key_token_weights=weights) == expected).all()


def test_blocks_keep_maps_small_and_divide_every_size():
    assert query_blocks(64, 4, 4) == 1  # the zoo's
    assert query_blocks(4096, 8, 64) == 64  # 512 MiB of maps, and no more than what divides all sizes
    assert query_blocks(1024, 8, 16) == 8  # 32 MiB
    assert query_blocks(1024, 8, 2) == 2
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        QueryBlockAttnProcessor(AttnProcessor(), 0)


def test_a_layer_with_a_norm_of_its_own_is_not_cut():
    assert not QueryBlockAttnProcessor.fits(Attention(query_dim=16, heads=2, dim_head=8, norm_num_groups=4))


def test_small_weights_are_not_rounded_away_in_bfloat16():
    """1 + w_a = 1.003 would be 1.0 there: many values move to the next number, none if it is rounded first."""
    values = paddle.uniform([1, 64, 64], min=1.0, max=2.0).cast("bfloat16")
    attention = SimpleNamespace(to_v=lambda hidden_states: values)
    scaled = _ScaledValues(attention, paddle.full([1, 64], 1.003)).to_v(values)
    assert scaled.dtype == paddle.bfloat16
    assert float((scaled.cast("float32") / values.cast("float32")).mean()) == pytest.approx(1.003, abs=5e-4)
