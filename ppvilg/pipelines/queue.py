"""Many prompts as batches of calls: which argument belongs to which batch, and the pictures in one sequence again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import paddle

_PER_PROMPT = ("negative_prompt", "style")
_PER_PICTURE = ("generator", "image", "mask_image", "latents")
_NOT_FOR_QUEUES = ("callback_on_step_end", "return_dict")


def split_into_batches(prompts: Sequence[str], batch_size: int, arguments: Mapping) -> list[dict]:
    """Arguments of one call for every `batch_size` prompts; ValueError for lists that do not fit the prompts."""
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise ValueError(f"prompt must be a list of texts, got {prompts!r}")
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number from 1, got {batch_size!r}")
    for name in _NOT_FOR_QUEUES:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not for queues, whose batches take turns; call the pipeline itself")
    if isinstance(arguments.get("generator"), np.random.Generator):
        raise ValueError("one numpy Generator cannot serve batches that take turns; give a seed, or one per picture")
    each = arguments.get("num_images_per_prompt", 1)
    seed = arguments.get("generator")
    counted = isinstance(seed, Integral) and not isinstance(seed, bool)
    calls = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        call = {**arguments, "prompt": list(prompts[start:stop])}
        for names, factor in ((_PER_PROMPT, 1), (_PER_PICTURE, each)):
            for name in filter(lambda name: _is_listed(name, arguments.get(name)), names):
                _check_length(name, arguments[name], len(prompts) * factor)
                call[name] = arguments[name][start * factor : stop * factor]
        if counted:
            call["generator"] = seed + start * each
        calls.append(call)
    return calls


def _is_listed(name: str, value) -> bool:
    """Whether an argument has one entry per prompt or picture; a single picture may be in a list and serve all."""
    several = isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, paddle.Tensor)) and value.ndim == 4)
    return several and not (name in ("image", "mask_image") and len(value) == 1)


def _check_length(name: str, value: Sequence, expected: int) -> None:
    if len(value) != expected:
        raise ValueError(f"{name} has {len(value)} entries, the queue needs {expected}")


def joined(results: list):
    """The pictures of all batches as those of one call: a list, one array or one tensor."""
    first = results[0]
    if isinstance(first, paddle.Tensor):
        return paddle.concat(results)
    if isinstance(first, np.ndarray):
        return np.concatenate(results)
    return [picture for result in results for picture in result]
