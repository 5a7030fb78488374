"""Denoising loss of a pipeline inside the boxes of detected objects and outside, beside an untrained denoiser's.

    python tests/benchmarks/region_loss.py --pipeline output/photos/base --data data/shards/validation --size 128

Every picture meets ten timesteps with fixed noise. The untrained denoiser has the same config and random weights; the
autoencoder and the text encoder are the same, so both are asked the same.
"""

from __future__ import annotations

import argparse

import numpy as np
import paddle

from ppvilg import ErnieViLG2Pipeline
from ppvilg.data import ImageTransform, open_source
from ppvilg.knowledge import box_weight_map

TIMESTEPS = range(50, 1000, 100)


@paddle.no_grad()
def losses(pipeline: ErnieViLG2Pipeline, samples: list[tuple[np.ndarray, str, np.ndarray]]) -> np.ndarray:
    """(mean squared error inside boxes, outside)."""
    sums, cells = np.zeros(2), np.zeros(2)
    alphas = pipeline.scheduler.alphas_cumprod.astype("float32")
    for number, (pixels, caption, boxes) in enumerate(samples):
        latents = pipeline.encode_image(paddle.to_tensor(pixels[None]))  # (1, C, h, w)
        conditioning = pipeline.encode_prompt([caption])
        inside = box_weight_map(boxes, pixels.shape[:0:-1], latents.shape[2:], 1.0)[0] > 1  # (h, w)
        for timestep in TIMESTEPS:
            noise = np.random.default_rng([number, timestep]).standard_normal(latents.shape, np.float32)
            noise, signal = paddle.to_tensor(noise), alphas[timestep]
            noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
            target = signal.sqrt() * noise - (1 - signal).sqrt() * latents  # v-prediction
            predicted = pipeline.unet(noisy, paddle.to_tensor([timestep]), *conditioning).sample
            error = (predicted - target).square().mean(axis=[0, 1]).numpy()  # (h, w)
            sums += error[inside].sum(), error[~inside].sum()
            cells += inside.sum(), (~inside).sum()
    return sums / cells


def main() -> None:
    """Prints both losses of both denoisers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--min-score", type=float, default=0.3)
    options = parser.parse_args()
    source, transform, samples = open_source(options.data), ImageTransform([(options.size, options.size)]), []
    for number in range(len(source)):
        record = source.read(number)
        placement = transform.plan(*record.image.size, 0, np.random.default_rng(0))
        pixels = np.asarray(placement.image(record.image), np.float32).transpose(2, 0, 1) / 127.5 - 1
        sure = [item for item in record.objects if item.score >= options.min_score]
        boxes = np.array([item.box for item in placement.objects(sure)]).reshape(-1, 4)
        if len(boxes):
            samples.append((pixels, record.captions["zh"], boxes))
    pipeline = ErnieViLG2Pipeline.from_pretrained(options.pipeline)
    trained = losses(pipeline, samples)
    paddle.seed(0)
    pipeline.register_modules(unet=type(pipeline.unet).from_config(pipeline.unet.config))
    pipeline.unet.eval()
    before = losses(pipeline, samples)
    print(f"{len(samples)} pictures with boxes")
    for name, one, two in zip(("inside boxes", "outside"), before, trained):
        print(f"{name}: {one:.3f} untrained, {two:.3f} trained")


if __name__ == "__main__":
    main()
