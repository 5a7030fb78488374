import numpy as np
import paddle
import pytest
from ppdiffusers import UNet2DConditionModel

from ppvilg.models import MoDEUNet2DConditionModel, TileUpsample2D, use_tile_upsampling

MIXED = [10, 900, 300, 20, 650, 99]  # experts 0, 2, 1, 0, 2, 0


def run(call, layer, loss_scale=1.0):
    """Output and gradients by name."""
    layer.clear_gradients(set_to_zero=False)
    output = call()
    (output.square().mean() * loss_scale).backward()
    return output.numpy(), {n: p.grad.numpy() for n, p in layer.named_parameters() if p.grad is not None}


def test_knowledge_off_equals_the_stock_unet_bit_for_bit(stock, tiny_config, batch):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    timesteps = paddle.to_tensor([10, 20, 30, 40, 50, 999])
    model = MoDEUNet2DConditionModel.from_base(stock, 1)
    ours, our_gradients = run(lambda: model(x, timesteps, text).sample, model.experts[0])
    theirs, their_gradients = run(lambda: stock(x, timesteps, text).sample, stock)
    assert (ours == theirs).all()
    for name, gradient in their_gradients.items():  # interpolate adds four gradients in another order than tile
        np.testing.assert_allclose(our_gradients[name], gradient, rtol=0, atol=1e-6 * max(1, abs(gradient).max()))
    tiled = UNet2DConditionModel(**tiny_config)
    tiled.set_state_dict(stock.state_dict())
    use_tile_upsampling(tiled)
    _, tiled_gradients = run(lambda: tiled(x, timesteps, text).sample, tiled)
    assert our_gradients.keys() == tiled_gradients.keys()
    assert all((our_gradients[name] == tiled_gradients[name]).all() for name in tiled_gradients)
    ones = paddle.ones([6, 5])
    weighted, weighted_gradients = run(lambda: model(x, timesteps, text, ones).sample, model.experts[0])
    assert (weighted == ours).all()
    assert all((weighted_gradients[name] == our_gradients[name]).all() for name in our_gradients)


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (7, 9)])
def test_tile_upsampling_gives_the_stock_values_on_every_size(stock, batch, size):
    model = MoDEUNet2DConditionModel.from_base(stock, 1)
    assert any(isinstance(layer, TileUpsample2D) for layer in model.sublayers())
    x, text = paddle.randn([2, 4, *size]), batch["encoder_hidden_states"][:2]
    assert (model(x, 5, text).sample == stock(x, 5, text).sample).all()


def test_from_base_makes_equal_experts_with_parameters_of_their_own(stock, same_weights):
    model = MoDEUNet2DConditionModel.from_base(stock, 4)
    assert model.num_experts == 4 and model.boundaries == [0, 250, 500, 750, 1000]
    assert (model.in_channels, model.sample_size, model.num_train_timesteps) == (4, 8, 1000)
    assert model.dtype == paddle.float32 and not model.training
    assert all(same_weights(expert, stock) for expert in model.experts)
    names = [parameter.name for parameter in model.parameters()]
    assert len(set(names)) == len(names) == 4 * len(stock.parameters())


def test_from_base_splits_the_blocks_of_several_experts(mode, same_weights):
    model = MoDEUNet2DConditionModel.from_base(mode, 4, boundaries=[0, 50, 100, 600, 1000])
    assert [same_weights(model.experts[k], mode.experts[source]) for k, source in enumerate((0, 0, 1, 2))] == [True] * 4


def test_a_mixed_batch_equals_per_sample_runs_in_output_and_gradient(mode, batch):
    x, text, weights = batch.values()
    together, gradients = run(lambda: mode(x, paddle.to_tensor(MIXED), text, weights).sample, mode)

    def one_by_one():
        rows = [mode(x[i : i + 1], t, text[i : i + 1], weights[i : i + 1]).sample for i, t in enumerate(MIXED)]
        return paddle.concat(rows)

    apart, gradients_apart = run(one_by_one, mode)
    np.testing.assert_allclose(together, apart, rtol=0, atol=2e-5)
    assert gradients.keys() == gradients_apart.keys() == dict(mode.named_parameters()).keys()
    for name in gradients:
        np.testing.assert_allclose(gradients[name], gradients_apart[name], rtol=0, atol=2e-5)


def test_a_mixed_batch_carries_gradients_back_to_the_text(mode, batch):
    x, text = batch["sample"], batch["encoder_hidden_states"].clone().detach()
    text.stop_gradient = False
    mode(x, paddle.to_tensor(MIXED), text).sample[1].sum().backward()
    changed = [bool((text.grad[i] != 0).any()) for i in range(6)]
    assert changed == [False, True, False, False, False, False]


def test_only_the_expert_that_owns_the_timesteps_runs(mode, batch):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    timesteps = [100, 200, 300, 400, 500, 599]
    expected = mode.experts[1](x, paddle.to_tensor(timesteps), text).sample
    for given in (paddle.to_tensor(timesteps), np.array(timesteps)):
        output, gradients = run(lambda given=given: mode(x, given, text).sample, mode)
        assert (output == expected.numpy()).all()
        assert {name.split(".")[1] for name in gradients} == {"1"}


@pytest.mark.parametrize(
    "timestep", [300, 300.0, np.int64(300), paddle.to_tensor(300), paddle.to_tensor([300]), np.array([300] * 6)]
)
def test_every_kind_of_timestep_gives_the_same_output(mode, batch, timestep):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    expected = mode.experts[1](x, paddle.to_tensor([300] * 6), text).sample
    assert (mode(x, timestep, text).sample == expected).all()
    assert (mode(x, timestep, text, return_dict=False)[0] == expected).all()


def test_fractional_timesteps_are_not_cut_off(mode, batch):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    half = mode(x, 300.5, text).sample
    assert (half == mode.experts[1](x, paddle.to_tensor([300.5] * 6), text).sample).all()
    assert (half != mode(x, 300, text).sample).any()


def test_a_timestep_per_sample_means_one_per_sample(mode, batch):
    with pytest.raises(ValueError, match=r"one per sample \(6\)"):
        mode(batch["sample"], paddle.to_tensor([1, 2]), batch["encoder_hidden_states"])


def test_unknown_unet_settings_are_named():
    with pytest.raises(ValueError, match="block_out_chanels"):
        MoDEUNet2DConditionModel(unet={"block_out_chanels": (32, 64)})


def test_boundaries_that_do_not_fit_are_refused(tiny_config):
    with pytest.raises(ValueError, match="gap: timesteps 900 to 999"):
        MoDEUNet2DConditionModel(2, boundaries=[0, 500, 900], unet=tiny_config)


def test_gradient_checkpointing_changes_nothing(stock, batch):
    model = MoDEUNet2DConditionModel.from_base(stock, 1)
    model.train()
    output, gradients = run(lambda: model(timestep=30, **batch).sample, model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    again, gradients_again = run(lambda: model(timestep=30, **batch).sample, model)
    assert (output == again).all()
    assert all((gradients[name] == gradients_again[name]).all() for name in gradients)


def test_matrices_decay_and_idle_experts_are_left_alone(stock, batch, same_weights):
    model = MoDEUNet2DConditionModel.from_base(stock, 2)
    decayed = model.decayed_parameter_names()
    assert all((p.name in decayed) == (p.ndim > 1) for p in model.parameters()) and decayed
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(),
                                       apply_decay_param_fun=decayed.__contains__)
    run(lambda: model(timestep=30, **batch).sample, model)
    optimizer.step()
    assert same_weights(model.experts[1], stock)
    assert not same_weights(model.experts[0], stock)
