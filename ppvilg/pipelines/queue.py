"""Many prompts as batches of calls: which argument belongs to which batch, and pictures as they are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby

import numpy as np
import paddle

from ppvilg.models import expert_index

from .arguments import Arguments, whole_number
from .denoising import Drawing, at_work, result_of, take_step
from .noise import new_seed, seed_of

STREAMED_BATCHES = 32  # that an expert stays for, where not all are in memory
_PER_PROMPT = ("negative_prompt", "style")
_PER_PICTURE = ("generator", "image", "mask_image", "latents")
_NOT_FOR_QUEUES = (
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "return_dict",
    "prompt_embeds",
    "negative_prompt_embeds",
)


def split_into_batches(prompts: Sequence[str], batch_size: int, arguments: Mapping) -> list[Arguments]:
    """Arguments of one call for every `batch_size` prompts; a seed is counted on from batch to batch.

    ValueError for lists that do not fit the prompts, and for what no queue can have.
    """
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise ValueError(f"prompt must be a list of texts, got {prompts!r}")
    batch_size = whole_number("batch_size", batch_size)
    _check_names(arguments)
    each = whole_number("num_images_per_prompt", arguments.get("num_images_per_prompt", 1))
    seed = arguments.get("generator")
    seed = new_seed() if seed is None else seed
    listed = {"generator": list(map(seed_of, seed))} if isinstance(seed, (list, tuple)) else {}
    first = None if listed else seed_of(seed)
    if isinstance(first, np.random.Generator):
        raise ValueError("one numpy Generator cannot serve batches that take turns; give a seed, or one per picture")
    arguments = {**arguments, **listed}
    calls = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        call = {**arguments, "prompt": list(prompts[start:stop])}
        for names, factor in ((_PER_PROMPT, 1), (_PER_PICTURE, each)):
            for name in filter(lambda name: _is_listed(name, arguments.get(name)), names):
                _check_length(name, arguments[name], len(prompts) * factor)
                call[name] = arguments[name][start * factor : stop * factor]
        if not listed:
            call["generator"] = first + start * each
        calls.append(Arguments(**call))
    for call in calls:
        call.with_texts()  # a fault in the last batch is found before the first is drawn
    return calls


def _check_names(arguments: Mapping) -> None:
    known = {field.name for field in fields(Arguments)}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise TypeError(f"a queue takes no {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    for name in _NOT_FOR_QUEUES:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not for queues, whose batches take turns; call the pipeline itself")


def _is_listed(name: str, value) -> bool:
    """Whether an argument has one entry per prompt or picture; a single picture may be in a list and serve all."""
    several = isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, paddle.Tensor)) and value.ndim == 4)
    return several and not (name in ("image", "mask_image") and len(value) == 1)


def _check_length(name: str, value: Sequence, expected: int) -> None:
    if len(value) != expected:
        raise ValueError(f"{name} has {len(value)} entries, the queue needs {expected}")


def draw_batches(pipeline, batches: Sequence[Arguments], batches_per_turn: int) -> Iterator:
    """The results of batches in their order, `batches_per_turn` begun at a time and drawn expert by expert.

    An expert that is not in memory is so read once per turn. Ends early when the pipeline is interrupted.
    """
    first = batches[0].checked(pipeline)
    with pipeline.progress_bar(total=first.num_inference_steps * len(batches)) as progress_bar:
        for start in range(0, len(batches), batches_per_turn):
            with paddle.no_grad(), at_work(pipeline):
                drawings = [pipeline.begin(batch) for batch in batches[start : start + batches_per_turn]]
                if start == 0:
                    progress_bar.total = len(drawings[0].timesteps) * len(batches)
                with pipeline.running(drawings):
                    _draw_by_expert(pipeline, drawings, progress_bar)
                if any(drawing.interrupted for drawing in drawings):
                    return
                results = [result_of(pipeline, drawing) for drawing in drawings]
            yield from results


def _draw_by_expert(pipeline, drawings: Sequence[Drawing], progress_bar) -> None:
    timesteps, boundaries = drawings[0].timesteps, pipeline.unet.boundaries
    with pipeline.unet.expecting(timesteps):
        for _, block in groupby(timesteps, key=lambda timestep: expert_index(float(timestep), boundaries)):
            steps = len(list(block))
            for drawing in drawings:
                for _ in range(steps):
                    take_step(pipeline, [drawing])
                    progress_bar.update()


def joined(results: Sequence) -> tuple:
    """(images, unknown_words, ignored_text) of all batches as those of one call: a list, one array or one tensor."""
    images = [result.images for result in results]
    if isinstance(images[0], paddle.Tensor):
        pictures = paddle.concat(images)
    elif isinstance(images[0], np.ndarray):
        pictures = np.concatenate(images)
    else:
        pictures = [picture for batch in images for picture in batch]
    return (
        pictures,
        [words for result in results for words in result.unknown_words],
        [text for result in results for text in result.ignored_text],
    )
