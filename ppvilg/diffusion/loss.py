"""The denoising objective as named, unreduced, per-sample terms.

| here                | paper                                                                          |
|---------------------|--------------------------------------------------------------------------------|
| latents             | x_0 (ERNIE-ViLG 2.0 eq. 1), an autoencoder latent already scaled               |
| noise               | epsilon ~ N(0, I)                                                              |
| timesteps           | t, 0 <= t < T                                                                  |
| alphas_cumprod      | \\bar alpha_t (Ho et al. 2020)                                                  |
| noisy latents       | x_t = sqrt(\\bar alpha_t) x_0 + sqrt(1 - \\bar alpha_t) epsilon                   |
| target              | epsilon | v = sqrt(\\bar alpha_t) epsilon - sqrt(1 - \\bar alpha_t) x_0 | x_0      |
| loss_weights        | W_ij = 1 + w_l inside the boxes of key objects (ERNIE-ViLG 2.0 section 2.2)    |
| snr                 | SNR_t = \\bar alpha_t / (1 - \\bar alpha_t)                                      |
| min_snr_gamma       | gamma of min-SNR weighting (Hang et al. 2023): min(SNR, gamma) / SNR for       |
|                     | epsilon, / (SNR + 1) for v, / 1 for x_0                                        |
"""

from __future__ import annotations

import numpy as np
import paddle

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def min_snr_weights(alphas_cumprod: np.ndarray, prediction_type: str, gamma: float) -> np.ndarray:
    """Weight (T,) float64 of each timestep's squared error (Hang et al. 2023, section 3.4)."""
    signal, noise = alphas_cumprod, 1.0 - alphas_cumprod
    # min(SNR, gamma) scaled by (1 - alpha_bar), so that neither end of the schedule divides by zero
    clipped = np.minimum(signal, gamma * noise)
    if prediction_type == "v_prediction":
        return clipped  # SNR + 1 = 1 / noise
    if prediction_type == "epsilon":
        return np.divide(clipped, signal, out=np.ones_like(signal), where=signal > 0)
    return np.divide(clipped, noise, out=np.full_like(noise, gamma), where=noise > 0)


class DenoisingLoss:
    """Squared error of a denoiser on noised latents; tables in float64 from the scheduler, cast to float32 once."""

    def __init__(self, scheduler, min_snr_gamma: float | None = None):
        self.prediction_type = scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma must be positive or None, got {min_snr_gamma}")
        alphas_cumprod = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)  # (T,)
        self.signal_scale = paddle.to_tensor(np.sqrt(alphas_cumprod).astype(np.float32))  # (T,)
        self.noise_scale = paddle.to_tensor(np.sqrt(1.0 - alphas_cumprod).astype(np.float32))  # (T,)
        self.snr_weights = None
        if min_snr_gamma is not None:
            weights = min_snr_weights(alphas_cumprod, self.prediction_type, min_snr_gamma)
            self.snr_weights = paddle.to_tensor(weights.astype(np.float32))  # (T,)

    def add_noise(self, latents: paddle.Tensor, noise: paddle.Tensor, timesteps: paddle.Tensor) -> paddle.Tensor:
        """x_t (N, C, h, w) of x_0 at timesteps (N,)."""
        return self._at(self.signal_scale, timesteps) * latents + self._at(self.noise_scale, timesteps) * noise

    def target(self, latents: paddle.Tensor, noise: paddle.Tensor, timesteps: paddle.Tensor) -> paddle.Tensor:
        """What the denoiser has to predict, (N, C, h, w)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        return self._at(self.signal_scale, timesteps) * noise - self._at(self.noise_scale, timesteps) * latents

    def __call__(
        self,
        denoiser,
        latents: paddle.Tensor,
        noise: paddle.Tensor,
        timesteps: paddle.Tensor | np.ndarray,
        loss_weights: paddle.Tensor | None = None,
        **conditioning,
    ) -> dict[str, paddle.Tensor]:
        """Per-sample terms (N,): "denoising" to minimise, "plain" the unweighted error without gradient.

        latents, noise: (N, C, h, w); timesteps: int64 (N,); loss_weights: (N, 1, h, w) or None;
        conditioning goes to `denoiser(noisy_latents, timesteps, **conditioning)` as it is, and so do timesteps: of
        those on the host a mixture knows its experts without waiting for the device.
        """
        given = timesteps
        if not isinstance(timesteps, paddle.Tensor):
            timesteps = paddle.to_tensor(timesteps)
        noisy = self.add_noise(latents, noise, timesteps)  # (N, C, h, w)
        output = denoiser(noisy, given, **conditioning)
        prediction = output if isinstance(output, paddle.Tensor) else output[0]  # (N, C, h, w)
        error = (prediction - self.target(latents, noise, timesteps)).square()  # (N, C, h, w)
        plain = error.mean(axis=[1, 2, 3])  # (N,)
        weighted = plain if loss_weights is None else (error * loss_weights).mean(axis=[1, 2, 3])  # (N,)
        if self.snr_weights is not None:
            weighted = weighted * paddle.gather(self.snr_weights, timesteps)  # (N,)
        return {"denoising": weighted, "plain": plain.detach()}

    @staticmethod
    def _at(table: paddle.Tensor, timesteps: paddle.Tensor) -> paddle.Tensor:
        return paddle.gather(table, timesteps).reshape([-1, 1, 1, 1])  # (N, 1, 1, 1)
