"""ErnieViLG2Pipeline: prompt -> picture. Text to image, image to image and inpainting are one denoising loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import paddle
from ppdiffusers import AutoencoderKL, DiffusionPipeline
from ppdiffusers.image_processor import PipelineImageInput

from ppvilg.knowledge import TextKnowledge
from ppvilg.models import MoDEUNet2DConditionModel, vae_scale_factor

from . import arguments as checks
from .adapters import LoraAdapters
from .arguments import Arguments
from .canvas import prepare_canvas
from .conditioning import Conditioning, encode, told, told_not
from .denoising import Drawing, ErnieViLG2PipelineOutput, at_work, preview_of, result_of, take_step, without_gradients
from .folders import Loading
from .noise import Generator, NoiseSource
from .queue import STREAMED_BATCHES, draw_batches, joined, split_into_batches
from .schedulers import Solver
from .switches import StockSwitches


class ErnieViLG2Pipeline(Loading, LoraAdapters, StockSwitches, DiffusionPipeline):
    """ERNIE-ViLG 2.0 generation (arXiv 2210.15257) from stock components around a mixture of denoising experts.

    vae: AutoencoderKL or PatchAutoencoderKL; text_encoder: paddlenlp ErnieModel; tokenizer: ErnieTokenizer with the
    mark tokens; unet: MoDEUNet2DConditionModel; scheduler: one of ppvilg.pipelines.SCHEDULERS. The other arguments are
    saved in model_index.json: how prompts become tokens (as in training) and the defaults of a call.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder,
        tokenizer,
        unet: MoDEUNet2DConditionModel,
        scheduler,
        mark: bool = True,
        key_token_weight: float = 0.01,
        max_length: int = 64,
        default_num_inference_steps: int = 50,
        default_guidance_scale: float | Sequence[float] = 7.5,
        default_eta: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            mark=mark,
            key_token_weight=key_token_weight,
            max_length=max_length,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_eta=default_eta,
        )
        checks.check_components(self)

    # ---- what the components say ----

    @property
    def text_knowledge(self) -> TextKnowledge:
        """How prompts become token ids and key-token weights."""
        return TextKnowledge(
            self.tokenizer,
            max_length=self.config.max_length,
            key_token_weight=self.config.key_token_weight,
            mark=self.config.mark,
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return vae_scale_factor(self.vae)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: VAE factor times the UNet's downsampling."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config.unet["block_out_channels"]) - 1)

    def resolve_eta(self, eta: float | None) -> float:
        """What a call uses: None is the model's default where the scheduler takes one. ValueError: it does not fit."""
        return checks.resolve_eta(self, eta)

    def resolve_guidance(self, guidance_scale: float | Sequence[float] | None) -> list[float]:
        """One guidance scale per expert, as a call uses them: None is the model's default. ValueError: see a call."""
        return checks.resolve_guidance(self, guidance_scale)

    # ---- generation ----

    @without_gradients
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: Generator = None,
        latents: paddle.Tensor | None = None,
        prompt_embeds: paddle.Tensor | Conditioning | None = None,
        negative_prompt_embeds: paddle.Tensor | Conditioning | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        style: str | list[str] | None = None,
        image: PipelineImageInput | str | os.PathLike | None = None,
        mask_image: PipelineImageInput | str | os.PathLike | None = None,
        strength: float | None = None,
    ) -> ErnieViLG2PipelineOutput | tuple:
        """Draws `num_images_per_prompt` pictures of each prompt; result.images in that order.

        Every argument is explained in ppvilg.pipelines.Arguments; None is the model's own value.

        Raises:
            ValueError, TypeError: an argument, before anything is computed. FileNotFoundError: a picture's file.
            FloatingPointError: the numbers are no longer finite; it names step, scheduler and eta.
        """
        arguments = Arguments(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            style=style,
            image=image,
            mask_image=mask_image,
            strength=strength,
        )
        return self._draw(arguments)

    def _draw(self, arguments: Arguments) -> ErnieViLG2PipelineOutput | tuple:
        with at_work(self):
            drawing = self.begin(arguments)
            bar = self.progress_bar(total=len(drawing.timesteps))
            with self.running([drawing]), self.unet.expecting(drawing.timesteps), bar:
                while not drawing.done:
                    take_step(self, [drawing])
                    bar.update()
            result = result_of(self, drawing)
        return result if arguments.return_dict else (result.images,)

    def stream_queue(
        self, prompt: list[str], batch_size: int = 8, batches_per_turn: int | None = None, **arguments
    ) -> Iterator:
        """Draws many prompts, `batch_size` at a time, and yields the pictures of each batch when they are finished.

        Yields ErnieViLG2PipelineOutput batch by batch in the order of the prompts; memory does not grow with their
        number. The other arguments are those of a call, lists with one entry per prompt (generator, image, mask_image
        and latents: per picture); a seed is counted on. batches_per_turn: so many batches are drawn expert by expert,
        so that each expert is read once for them (None: 1, and 32 where not all experts are in memory).
        ValueError: see a call; no callback, and no numpy Generator for all, which batches would share.
        """
        batches = split_into_batches(prompt, batch_size, arguments)
        turn = STREAMED_BATCHES if hasattr(self.unet.experts, "expecting") else 1
        if batches_per_turn is not None:
            turn = checks.whole_number("batches_per_turn", batches_per_turn)
        return draw_batches(self, batches, turn)

    def generate_queue(
        self, prompt: list[str], batch_size: int = 8, batches_per_turn: int | None = None, **arguments
    ) -> ErnieViLG2PipelineOutput:
        """All pictures of `stream_queue` as the output of one call."""
        results = list(self.stream_queue(prompt, batch_size, batches_per_turn, **arguments))
        return ErnieViLG2PipelineOutput(*joined(results))

    # ---- one drawing among others: see denoising.py ----

    @without_gradients
    def begin(self, arguments: Arguments | str | list[str] | None = None, **others) -> Drawing:
        """The arguments of a call up to its first denoising step; errors as of a call, before anything is computed."""
        given = arguments if isinstance(arguments, Arguments) else Arguments(prompt=arguments, **others)
        arguments = given.checked(self)
        noise = NoiseSource(arguments.generator, arguments.count)
        solver = Solver(self.scheduler, arguments.num_inference_steps, arguments.eta, noise)
        with at_work(self):
            positive, unknown, ignored = told(self, arguments)
            canvas = prepare_canvas(self, arguments, solver, noise)
            negative = told_not(self, arguments)
        return Drawing(
            arguments=arguments,
            solver=solver,
            noise=noise,
            canvas=canvas,
            latents=canvas.latents.cast(solver.dtype),
            positive=positive,
            negative=negative,
            boundaries=self.unet.boundaries,
            unknown_words=unknown,
            ignored_text=ignored,
        )

    @without_gradients
    def step(self, drawings: Sequence[Drawing]) -> None:
        """One denoising step of every drawing that is not done, in as few calls of the unet as there can be."""
        with at_work(self):
            take_step(self, drawings)

    @without_gradients
    def preview(self, drawing: Drawing, output_type: str = "pil"):
        """The pictures that a drawing is becoming: its predicted clean latents, decoded. None before the first step."""
        with at_work(self):
            return preview_of(self, drawing, output_type)

    @without_gradients
    def finish(self, drawing: Drawing) -> ErnieViLG2PipelineOutput:
        """What a call returns, of a drawing that is done. FloatingPointError: its numbers are not finite."""
        if not drawing.done:
            left = len(drawing.timesteps) - drawing.steps_done
            raise ValueError(f"the drawing has {left} steps left: step it, or interrupt it")
        with at_work(self):
            return result_of(self, drawing)

    # ---- networks ----

    def encode_prompt(self, prompts: list[str], num_images_per_prompt: int = 1, apply: bool = True) -> Conditioning:
        """Encodes each prompt once and repeats it; apply=False: as plain text with weights of ones."""
        return encode(self, prompts, num_images_per_prompt, apply)[0]

    def encode_image(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] to latents (N, C, h, w), the mean of the posterior."""
        latents = self.vae.encode(pixels.cast(self.vae.dtype)).latent_dist.mode()
        return latents.cast("float32") * self.vae.config.scaling_factor

    def decode_latents(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Latents (N, C, h, w) to pixels (N, 3, H, W) in [0, 1]."""
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).cast(self.vae.dtype)).sample
        return (decoded.cast("float32") / 2 + 0.5).clip(0, 1)  # (N, 3, H, W)
