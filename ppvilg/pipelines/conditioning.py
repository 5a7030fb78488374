"""What the denoiser is told: prompts encoded once each, or given embeddings, and what guidance leads away from."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import paddle

from ppvilg.knowledge import truncation_warning, unknown_words_warning

from .arguments import Arguments, embeddings


class Conditioning(NamedTuple):
    """What the denoiser is told about the prompts."""

    hidden_states: paddle.Tensor  # (N, L, D)
    key_token_weights: paddle.Tensor  # (N, L)


def told(pipeline, arguments: Arguments) -> tuple[Conditioning, list, list]:
    """What the denoiser is told of N pictures, and of each prompt what it cannot be told."""
    if arguments.prompt is not None:
        return encode(pipeline, arguments.texts, arguments.num_images_per_prompt, apply=True)
    return _given(pipeline, arguments.prompt_embeds, arguments.num_images_per_prompt), [], []


def told_not(pipeline, arguments: Arguments) -> Conditioning | None:
    """What guidance leads away from; None where no step uses guidance. Each text is encoded once."""
    if not any(scale > 1 for scale in arguments.guidance_scale):
        return None
    if arguments.negative_prompt_embeds is not None:
        return _given(pipeline, arguments.negative_prompt_embeds, arguments.num_images_per_prompt)
    texts = list(dict.fromkeys(arguments.negative_prompt))
    conditioning = encode(pipeline, texts, 1, apply=False)[0]
    rows = [texts.index(text) for text in arguments.negative_prompt for _ in range(arguments.num_images_per_prompt)]
    return Conditioning(*(paddle.gather(tensor, paddle.to_tensor(rows)) for tensor in conditioning))


def encode(pipeline, prompts: list[str], repeats: int, apply: bool) -> tuple[Conditioning, list, list]:
    """Conditioning of each prompt, its unknown words and its ignored end, each `repeats` times in a row."""
    encoded = pipeline.text_knowledge.encode(prompts, apply=apply)
    for warning in (truncation_warning(encoded), unknown_words_warning(encoded)):
        if warning:
            warnings.warn(f"prompt {warning}", stacklevel=4)
    hidden_states = pipeline.text_encoder(paddle.to_tensor(encoded.input_ids))[0].cast(pipeline.unet.dtype)  # (P, L, D)
    weights = paddle.to_tensor(encoded.key_token_weights)  # (P, L)
    conditioning = Conditioning(
        hidden_states.repeat_interleave(repeats, axis=0),  # (N, L, D)
        weights.repeat_interleave(repeats, axis=0),  # (N, L)
    )
    return conditioning, encoded.unknown, encoded.dropped


def _given(pipeline, embeds: paddle.Tensor | Conditioning, repeats: int) -> Conditioning:
    states = embeddings(embeds).cast(pipeline.unet.dtype)  # (P, L, D)
    weights = getattr(embeds, "key_token_weights", None)
    weights = paddle.ones(states.shape[:2], "float32") if weights is None else weights  # (P, L)
    return Conditioning(*(tensor.repeat_interleave(repeats, axis=0) for tensor in (states, weights)))
