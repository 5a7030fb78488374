"""The autoencoder of patches: the stock one on folded pixels, with or without a linear shortcut."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from ppdiffusers import AutoencoderKL

from ppvilg.models import PatchAutoencoderKL
from ppvilg.models.autoencoder import vae_scale_factor

SMALL = dict(
    patch_size=4,
    in_channels=48,
    out_channels=48,
    block_out_channels=(8, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=16,
)
ONE_LEVEL = dict(
    SMALL,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(8,),
    latent_channels=6,
    linear_shortcut=True,
)


@pytest.fixture(scope="module")
def vae():
    paddle.seed(0)
    built = PatchAutoencoderKL(**SMALL)
    built.eval()
    return built


@pytest.fixture(scope="module")
def pictures():
    """Pictures whose patches lie close to a plane of four dimensions, float32 (32, 3, 16, 24) in [-1, 1]."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((4, 3, 4, 4)).astype(np.float32)
    codes = rng.standard_normal((32, 4, 4, 6)).astype(np.float32)
    patches = np.einsum("nkhw,kcij->nchiwj", codes, basis).reshape(32, 3, 16, 24)
    return np.clip(0.1 + 0.05 * patches + 0.001 * rng.standard_normal(patches.shape), -1, 1).astype(np.float32)


@paddle.no_grad()
def test_it_is_the_stock_one_on_folded_pixels(vae, pictures):
    settings = {key: value for key, value in SMALL.items() if key != "patch_size"}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stock = AutoencoderKL(**settings, **blocks)
    stock.set_state_dict(vae.state_dict())
    stock.eval()
    values = paddle.to_tensor(pictures[:2])
    folded = values.reshape([2, 3, 4, 4, 6, 4]).transpose([0, 1, 3, 5, 2, 4]).reshape([2, 48, 4, 6])
    mean = vae.encode(values).latent_dist.mean  # (2, 4, 2, 3)
    assert mean.shape == [2, 4, 2, 3]
    assert (mean == stock.encode(folded).latent_dist.mean).all()
    decoded = stock.decode(mean).sample.reshape([2, 3, 4, 4, 4, 6]).transpose([0, 1, 4, 2, 5, 3])
    assert (vae.decode(mean).sample == decoded.reshape([2, 3, 16, 24])).all()


@paddle.no_grad()
def test_tuples_hold_what_the_outputs_hold(vae, pictures):
    values = paddle.to_tensor(pictures[:1])
    (posterior,) = vae.encode(values, return_dict=False)
    assert (posterior.mean == vae.encode(values).latent_dist.mean).all()
    (decoded,) = vae.decode(posterior.mean, return_dict=False)
    assert (decoded == vae.decode(posterior.mean).sample).all()
    assert decoded.shape == values.shape


@pytest.mark.parametrize("key", ["in_channels", "out_channels"])
def test_channels_must_be_those_of_a_patch(key):
    with pytest.raises(ValueError, match="patch_size=4 needs both 48"):
        PatchAutoencoderKL(**{**SMALL, key: 3})


def test_pixels_per_latent_cell(vae):
    assert vae_scale_factor(vae) == 8
    assert vae_scale_factor(AutoencoderKL(block_out_channels=(32,))) == 1


@pytest.mark.parametrize("settings", [SMALL, ONE_LEVEL], ids=["networks", "shortcut"])
@paddle.no_grad()
def test_it_saves_and_loads_to_the_same_pixels(settings, pictures, tmp_path, caplog):
    paddle.seed(1)
    saved = PatchAutoencoderKL(**settings, scaling_factor=0.7)
    saved.eval()
    saved.save_pretrained(str(tmp_path), safe_serialization=True)
    loaded = PatchAutoencoderKL.from_pretrained(str(tmp_path))
    values = paddle.to_tensor(pictures[:2])
    latents = saved.encode(values).latent_dist.mean
    assert (loaded.encode(values).latent_dist.mean == latents).all()
    assert (loaded.decode(latents).sample == saved.decode(latents).sample).all()
    assert loaded.config.scaling_factor == 0.7 and loaded.config.patch_size == 4
    assert "not expected" not in caplog.text


# ---- the linear shortcut


@pytest.fixture(scope="module")
def linear(pictures):
    paddle.seed(0)
    built = PatchAutoencoderKL(**ONE_LEVEL)
    built.initialize_shortcut(pictures)
    return built


@paddle.no_grad()
def test_the_shortcut_starts_as_a_linear_code_of_the_pictures(linear, pictures):
    """What six components miss of the patches; the decoder's network adds nothing, the encoder's mean nothing."""
    values = paddle.to_tensor(pictures)
    posterior = linear.encode(values).latent_dist
    error = float((linear.decode(posterior.mean).sample - values).square().mean())
    patches = F.pixel_unshuffle(values, 4).numpy().transpose(0, 2, 3, 1).reshape(-1, 48).astype(np.float64)
    centred = patches - patches.mean(axis=0)
    missed = (np.linalg.svd(centred, compute_uv=False)[6:] ** 2).sum() / patches.size
    assert error == pytest.approx(missed, rel=1e-2)
    assert error < 0.01 * float(values.var())
    assert float(posterior.std.max()) < 0.1


@paddle.no_grad()
def test_latents_of_the_shortcut_are_centred_and_uncorrelated(linear, pictures):
    latents = linear.encode(paddle.to_tensor(pictures)).latent_dist.mean.numpy().astype(np.float64)
    rows = latents.transpose(1, 0, 2, 3).reshape(6, -1)
    covariance = np.cov(rows)
    assert abs(rows.mean(axis=1)).max() < 1e-3
    assert abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3 * covariance.max()
    assert (np.diff(np.diag(covariance)) < 1e-9).all()  # largest first


def test_networks_beside_the_shortcut_learn(linear, pictures):
    values = paddle.to_tensor(pictures[:2])
    posterior = linear.encode(values).latent_dist
    (linear.decode(posterior.sample()).sample - values).square().mean().backward()
    for name in ("shortcut_encode.weight", "shortcut_decode.weight", "decoder.conv_out.weight"):
        gradient = dict(linear.named_parameters())[name].grad
        assert gradient is not None and float(gradient.abs().max()) > 0, name
    linear.clear_gradients()


def test_the_shortcut_needs_one_level():
    with pytest.raises(ValueError, match="linear_shortcut needs one level"):
        PatchAutoencoderKL(**{**SMALL, "linear_shortcut": True})
