import numpy as np
import paddle
import pytest
from ppdiffusers import DDIMScheduler, DDPMScheduler

from ppvilg.diffusion import DenoisingLoss, min_snr_weights

TIMESTEPS = paddle.to_tensor([0, 10, 500, 999])


@pytest.fixture(scope="module")
def tensors():
    paddle.seed(0)
    return paddle.randn([4, 3, 6, 5]), paddle.randn([4, 3, 6, 5])


class Recorder:
    """A denoiser that keeps what it was given and answers with a trainable constant."""

    def __init__(self, answer=0.0):
        self.answer = paddle.to_tensor(answer, stop_gradient=False)

    def __call__(self, noisy, timesteps, **conditioning):
        self.noisy, self.timesteps, self.conditioning = noisy, timesteps, conditioning
        return (paddle.zeros_like(noisy) + self.answer,)


def numpy_target(scheduler, latents, noise):
    a = np.asarray(scheduler.alphas_cumprod, np.float64)[TIMESTEPS.numpy()].reshape(-1, 1, 1, 1)
    latents, noise = latents.numpy().astype(np.float64), noise.numpy().astype(np.float64)
    return {
        "epsilon": noise,
        "v_prediction": np.sqrt(a) * noise - np.sqrt(1 - a) * latents,
        "sample": latents,
    }[scheduler.config.prediction_type]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_error_is_that_of_the_prediction_the_scheduler_names(tensors, prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    denoiser = Recorder()
    terms = DenoisingLoss(scheduler)(denoiser, *tensors, TIMESTEPS)
    expected = np.square(numpy_target(scheduler, *tensors)).mean(axis=(1, 2, 3))
    assert terms.keys() == {"denoising", "plain"} and terms["denoising"].shape == [4]
    np.testing.assert_allclose(terms["denoising"].numpy(), expected, rtol=1e-5)
    assert (terms["plain"] == terms["denoising"]).all()


def test_noised_latents_are_the_schedulers(tensors):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    denoiser = Recorder()
    DenoisingLoss(scheduler)(denoiser, *tensors, TIMESTEPS)
    expected = scheduler.add_noise(*tensors, TIMESTEPS).numpy()
    np.testing.assert_allclose(denoiser.noisy.numpy(), expected, atol=1e-6)
    assert (denoiser.timesteps == TIMESTEPS).all()


def test_conditioning_reaches_the_denoiser_untouched(tensors):
    denoiser, text = Recorder(), paddle.ones([4, 2, 8])
    DenoisingLoss(DDPMScheduler())(denoiser, *tensors, TIMESTEPS, encoder_hidden_states=text, key_token_weights=None)
    assert denoiser.conditioning == {"encoder_hidden_states": text, "key_token_weights": None}


def test_loss_weights_multiply_the_squared_error_and_not_the_plain_term(tensors):
    scheduler = DDPMScheduler()
    weights = 1 + paddle.rand([4, 1, 6, 5])
    terms = DenoisingLoss(scheduler)(Recorder(), *tensors, TIMESTEPS, loss_weights=weights)
    error = np.square(numpy_target(scheduler, *tensors))
    np.testing.assert_allclose(terms["denoising"].numpy(), (error * weights.numpy()).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(terms["plain"].numpy(), error.mean((1, 2, 3)), rtol=1e-5)


def test_only_the_denoising_term_carries_a_gradient(tensors):
    denoiser = Recorder(0.5)
    terms = DenoisingLoss(DDPMScheduler())(denoiser, *tensors, TIMESTEPS)
    assert terms["plain"].stop_gradient
    terms["denoising"].sum().backward()
    residual = 0.5 - tensors[1].numpy()
    assert float(denoiser.answer.grad) == pytest.approx(2 * float(residual.mean((1, 2, 3)).sum()), rel=1e-4)


def test_weights_of_one_change_no_bit(tensors):
    results = []
    for weights in (None, paddle.ones([4, 1, 6, 5])):
        denoiser = Recorder(0.5)
        terms = DenoisingLoss(DDPMScheduler())(denoiser, *tensors, TIMESTEPS, loss_weights=weights)
        terms["denoising"].mean().backward()
        results.append((terms["denoising"].tolist(), float(denoiser.answer.grad)))
    assert results[0] == results[1]


@pytest.mark.parametrize("prediction_type, added", [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_follows_the_paper(tensors, prediction_type, added):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    a = np.asarray(scheduler.alphas_cumprod, np.float64)
    snr = a / (1 - a)
    expected = np.minimum(snr, 5.0) / (snr + added)
    np.testing.assert_allclose(min_snr_weights(a, prediction_type, 5.0), expected, rtol=1e-10)
    weighted = DenoisingLoss(scheduler, min_snr_gamma=5.0)(Recorder(), *tensors, TIMESTEPS)
    scale = (weighted["denoising"] / weighted["plain"]).numpy()
    np.testing.assert_allclose(scale, expected[TIMESTEPS.numpy()], rtol=1e-5)


def test_min_snr_stays_finite_at_both_ends_of_a_schedule():
    ends = np.array([1.0, 0.5, 0.0])  # no noise at all, SNR 1, no signal at all
    assert min_snr_weights(ends, "epsilon", 5.0).tolist() == [0.0, 1.0, 1.0]
    assert min_snr_weights(ends, "v_prediction", 5.0).tolist() == [0.0, 0.5, 0.0]
    assert min_snr_weights(ends, "sample", 5.0).tolist() == [5.0, 1.0, 0.0]


def test_settings_that_make_no_sense_are_refused():
    class Config:
        prediction_type = "score"

    class Scheduler:
        config = Config

    with pytest.raises(ValueError, match="'score'"):
        DenoisingLoss(Scheduler())
    with pytest.raises(ValueError, match="min_snr_gamma must be positive or None, got 0"):
        DenoisingLoss(DDPMScheduler(), min_snr_gamma=0)
