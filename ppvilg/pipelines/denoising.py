"""The denoising loop, of one call and of a service that draws what many people asked for.

    drawing = pipeline.begin("三只企鹅", generator=7)        # takes what a call takes; everything is checked here
    while not drawing.done:
        pipeline.step([drawing, another, ...])              # one step of each
        pictures = pipeline.preview(drawing)                # optional and cheap: what it is becoming
    result = pipeline.finish(drawing)                       # what a call returns

A drawing is a batch of N pictures of one call. It has its own scheduler, noise, guidance and size, so any drawings may
be stepped together, begun at different times, of other prompts, samplers and numbers of steps. Those that are due at
the same expert with latents of one size and texts of one length share one call of the unet; so order what you pass by
`drawing.expert` to get large calls and few changes of experts. In dygraph every picture has the bits that it has alone.

`drawing.steps_done` of `len(drawing.timesteps)`: progress. `drawing.interrupt()`, from any thread: no further steps;
`finish` then decodes what is there. A drawing whose numbers are no longer finite is done, the others go on; `finish`
raises its `failure`. What `step` itself raises comes from a callback or from reading an expert.

`ErnieViLG2Pipeline.__call__` and the queue are this loop and nothing else. Calls from several threads may share one
pipeline; over an exported or streamed one, whose experts have one set of buffers, and where tokens are merged, they
take turns.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import paddle
from ppdiffusers import ImagePipelineOutput
from ppdiffusers.image_processor import VaeImageProcessor

from ppvilg.models import expert_index

from .arguments import Arguments
from .canvas import Canvas
from .conditioning import Conditioning
from .noise import NoiseSource
from .schedulers import Solver
from .switches import merges_tokens


@dataclass
class ErnieViLG2PipelineOutput(ImagePipelineOutput):
    """Pictures, and what the model could not read of each prompt.

    unknown_words: per prompt, characters and words that the vocabulary lacks. ignored_text: per prompt, the end that
    is longer than the text encoder takes, "" where nothing is.
    """

    unknown_words: list[list[str]] | None = None
    ignored_text: list[str] | None = None


class Prediction(NamedTuple):
    """A denoiser's answer, kept for previews."""

    sample: paddle.Tensor  # (N, C, h, w), what the denoiser was given
    output: paddle.Tensor  # (N, C, h, w), after guidance
    timestep: float


@dataclass(eq=False)
class Drawing:
    """N pictures of one call between prompt and decoder."""

    arguments: Arguments  # checked
    solver: Solver
    noise: NoiseSource
    canvas: Canvas
    latents: paddle.Tensor  # (N, C, h, w), as noisy as the timestep that is due
    positive: Conditioning
    negative: Conditioning | None  # None: no step uses guidance
    boundaries: list[int]  # of the experts
    unknown_words: list[list[str]] = field(default_factory=list)
    ignored_text: list[str] = field(default_factory=list)
    steps_done: int = 0
    interrupted: bool = False
    failure: Exception | None = None
    prediction: Prediction | None = None  # of the latest step

    @property
    def timesteps(self) -> list[paddle.Tensor]:
        return self.canvas.timesteps

    @property
    def done(self) -> bool:
        """No step is left, or none will be taken."""
        return self.steps_done == len(self.timesteps) or self.interrupted or self.failure is not None

    @property
    def moment(self) -> float:
        """The timestep that is due; only while the drawing is not done."""
        return float(self.timesteps[self.steps_done])

    @property
    def expert(self) -> int:
        """Number of the expert that the next step needs; only while the drawing is not done."""
        return expert_index(self.moment, self.boundaries)

    @property
    def guidance_scale(self) -> float:
        """Of the next step; at most 1 is no guidance."""
        return self.arguments.guidance_scale[self.expert]

    def interrupt(self) -> None:
        """Takes no further step."""
        self.interrupted = True


# ---- one step ----


def take_step(pipeline, drawings: Sequence[Drawing]) -> None:
    """One step of every drawing that is not done."""
    active = [drawing for drawing in drawings if not drawing.done]
    groups: dict[tuple, list[Drawing]] = {}
    for drawing in active:
        key = (drawing.expert, *drawing.latents.shape[2:], drawing.positive.hidden_states.shape[1])
        groups.setdefault(key, []).append(drawing)
    for group in groups.values():
        for drawing, prediction in zip(group, predict(pipeline.unet, group)):
            _advance(pipeline, drawing, prediction)


def predict(unet, drawings: Sequence[Drawing]) -> list[Prediction]:
    """Predictions with classifier-free guidance, whose scale belongs to the expert; all drawings due at one expert."""
    samples, states, weights, moments = [], [], [], []
    for drawing in drawings:
        sample = drawing.solver.model_input(drawing.latents, drawing.timesteps[drawing.steps_done]).cast(unet.dtype)
        told = (drawing.negative, drawing.positive) if drawing.guidance_scale > 1 else (drawing.positive,)
        samples += [sample] * len(told)  # (N, C, h, w)
        states += [each.hidden_states for each in told]  # (N, L, D)
        weights += [each.key_token_weights for each in told]  # (N, L)
        moments += [drawing.moment] * (len(told) * len(sample))
    output = unet(
        paddle.concat(samples), _timestep_of(moments), paddle.concat(states), paddle.concat(weights)
    ).sample  # (rows, C, h, w)
    found, row = [], 0
    for drawing, position in zip(drawings, _positions(drawings)):
        count, scale = len(drawing.latents), drawing.guidance_scale
        rows = output[row : row + count * (2 if scale > 1 else 1)].cast(drawing.latents.dtype)
        row += len(rows)
        if scale > 1:
            without, towards = rows.chunk(2)
            rows = without + scale * (towards - without)
        found.append(Prediction(samples[position], rows, drawing.moment))
    return found


def _positions(drawings: Sequence[Drawing]) -> Iterator[int]:
    """Where each drawing's sample is in the list of samples."""
    position = 0
    for drawing in drawings:
        yield position
        position += 2 if drawing.guidance_scale > 1 else 1


def _timestep_of(moments: Sequence[float]) -> float | paddle.Tensor:
    """One number if all rows have the same, else one per row."""
    if len(set(moments)) == 1:
        return moments[0]
    whole = all(moment.is_integer() for moment in moments)
    return paddle.to_tensor([int(m) for m in moments] if whole else moments, "int64" if whole else "float32")


def _advance(pipeline, drawing: Drawing, prediction: Prediction) -> None:
    """A drawing's latents after the step that the prediction is for."""
    canvas, step = drawing.canvas, drawing.steps_done
    timestep = drawing.timesteps[step]
    latents = drawing.solver.step(prediction.output, timestep, drawing.latents)  # (N, C, h, w)
    if canvas.mask is not None:
        known = canvas.known
        if step + 1 < len(canvas.timesteps):
            known = drawing.solver.add_noise(known, canvas.noise, canvas.timesteps[step + 1])
        latents = paddle.where(canvas.latent_mask > 0, latents, known.cast(latents.dtype))
    drawing.latents, drawing.prediction = latents, prediction
    if drawing.arguments.callback_on_step_end is not None:
        _call_back(pipeline, drawing, step, timestep)
    drawing.steps_done = step + 1
    if not bool(paddle.isfinite(drawing.latents).all()):
        drawing.failure = FloatingPointError(
            f"the latents are no longer finite after step {step + 1} of {len(canvas.timesteps)} (timestep "
            f"{float(timestep):g}, {drawing.solver.name}, eta {drawing.arguments.eta:g}, guidance_scale "
            f"{drawing.arguments.guidance_scale}): try another scheduler, eta or number of steps"
        )


def _call_back(pipeline, drawing: Drawing, step: int, timestep: paddle.Tensor) -> None:
    """Gives a callback its tensors and takes those that it returns."""
    negative = None if drawing.negative is None else drawing.negative.hidden_states
    there = {
        "latents": drawing.latents,
        "prompt_embeds": drawing.positive.hidden_states,
        "negative_prompt_embeds": negative,
    }
    asked = {name: there[name] for name in drawing.arguments.callback_on_step_end_tensor_inputs}
    changed = drawing.arguments.callback_on_step_end(pipeline, step, timestep, asked)
    if changed is None:
        return
    if not isinstance(changed, dict) or not changed.keys() <= there.keys():
        raise ValueError(f"callback_on_step_end must return None or a dict of {', '.join(there)}, got {changed!r}")
    for name, value in changed.items():
        if value is not None and list(value.shape) != list(there[name].shape):
            raise ValueError(f"callback_on_step_end returned {name} of shape {value.shape}, not {there[name].shape}")
    drawing.latents = changed.get("latents", drawing.latents)
    drawing.positive = drawing.positive._replace(
        hidden_states=changed.get("prompt_embeds", drawing.positive.hidden_states)
    )
    if drawing.negative is not None:
        drawing.negative = drawing.negative._replace(hidden_states=changed.get("negative_prompt_embeds", negative))


# ---- pictures ----


def preview_of(pipeline, drawing: Drawing, output_type: str = "pil"):
    """The clean pictures that the latest prediction points to; None before the first step."""
    if drawing.prediction is None:
        return None
    return as_output(pipeline.decode_latents(drawing.solver.clean(*drawing.prediction).cast("float32")), output_type)


def result_of(pipeline, drawing: Drawing) -> ErnieViLG2PipelineOutput:
    """What a call returns of a drawing. FloatingPointError: its numbers are not finite."""
    if drawing.failure is not None:
        raise drawing.failure
    images = drawing.latents.cast("float32")
    if drawing.arguments.output_type != "latent":
        pixels = pipeline.decode_latents(images)  # (N, 3, H, W)
        if not bool(paddle.isfinite(pixels).all()):
            raise FloatingPointError("the decoder made pixels of finite latents that are not finite: check the vae")
        if drawing.canvas.mask is not None:
            pixels = paddle.where(drawing.canvas.mask > 0, pixels, drawing.canvas.pixels)
        images = as_output(pixels, drawing.arguments.output_type)
    return ErnieViLG2PipelineOutput(images, drawing.unknown_words, drawing.ignored_text)


def as_output(pixels: paddle.Tensor, output_type: str):
    """Pixels (N, 3, H, W) in [0, 1] as a call gives them out."""
    return VaeImageProcessor(do_normalize=False).postprocess(pixels, output_type)


# ---- networks that other threads use too ----

_lock = threading.Lock()
_held: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # layers that were training -> who needs them evaluating
_turns: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # unets whose experts have one set of buffers


def without_gradients(function: Callable) -> Callable:
    """As the decorator `paddle.no_grad()`, which forgets what to put back when calls of a function are nested."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with paddle.no_grad():
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def at_work(pipeline) -> Iterator[None]:
    """Networks in evaluation mode, those that were training put back by whoever leaves last; one thread at a time
    where the experts are exported or streamed, or merge tokens."""
    with _turn_of(pipeline.unet), _evaluating(pipeline.text_encoder, pipeline.unet, pipeline.vae):
        yield


@contextlib.contextmanager
def _evaluating(*layers) -> Iterator[None]:
    layers = [layer for layer in layers if isinstance(layer, paddle.nn.Layer)]  # not what stands in for an exported one
    with _lock:
        sublayers = [sublayer for layer in layers for sublayer in layer.sublayers(include_self=True)]
        held = [sublayer for sublayer in sublayers if sublayer.training or sublayer in _held]
        for sublayer in held:
            sublayer.training = False
            _held[sublayer] = _held.get(sublayer, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for sublayer in held:
                _held[sublayer] -= 1
                if not _held[sublayer]:
                    del _held[sublayer]
                    sublayer.training = True


def _turn_of(unet) -> contextlib.AbstractContextManager:
    in_memory = isinstance(unet.experts, paddle.nn.LayerList) and not hasattr(unet.experts, "dtype")
    if in_memory and not merges_tokens(unet):
        return contextlib.nullcontext()
    with _lock:
        return _turns.setdefault(unet, threading.RLock())
