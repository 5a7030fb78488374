"""ErnieViLG2Pipeline: prompt -> picture. Text to image, image to image and inpainting are one denoising loop."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from numbers import Real
from pathlib import Path

import numpy as np
import paddle
from ppdiffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, PNDMScheduler
from ppdiffusers.image_processor import PipelineImageInput, VaeImageProcessor

from ppvilg.inference import (
    check_pipeline_folder,
    exported_components,
    load_resident_unet,
    resident_exported_unet,
)
from ppvilg.knowledge import MARKS, TextKnowledge, apply_style, truncation_warning
from ppvilg.models import MoDEUNet2DConditionModel, expert_index, vae_scale_factor

from .arguments import _one_each, _picture_size
from .canvas import Canvas
from .denoising import Conditioning, Drawing, _evaluating
from .noise import Generator, NoiseSource
from .published import published_components
from .queue import joined, split_into_batches
from .schedulers import start_scheduler
from .zoo import forget_paths, resolve

OUTPUT_TYPES = ("pil", "np", "pd", "latent")


class ErnieViLG2Pipeline(DiffusionPipeline):
    """ERNIE-ViLG 2.0 generation (arXiv 2210.15257) from stock components around a mixture of denoising experts.

    vae: AutoencoderKL or PatchAutoencoderKL; text_encoder: paddlenlp ErnieModel; tokenizer: ErnieTokenizer with the
    mark tokens; unet: MoDEUNet2DConditionModel; scheduler: any discrete ppdiffusers scheduler. The other arguments are
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
        self._check_components()

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, max_resident_experts: int | None = None, **kwargs
    ) -> ErnieViLG2Pipeline:
        """Loads a pipeline folder or a model of the zoo by name; never touches the network.

        max_resident_experts: at most so many experts in memory, read just ahead of the steps that need them (all).
        """
        folder = resolve(pretrained_model_name_or_path)
        check_pipeline_folder(folder)
        if max_resident_experts is not None:
            dtype = kwargs.get("paddle_dtype")
            kwargs["unet"] = load_resident_unet(folder / "unet", max_resident_experts, dtype)
        return super().from_pretrained(str(folder), **kwargs)

    @classmethod
    def from_exported(
        cls,
        folder: str | os.PathLike,
        backend: str = "onednn",
        max_resident_experts: int | None = None,
        threads: int | None = None,
    ) -> ErnieViLG2Pipeline:
        """The same pipeline over the static graphs of an export bundle (tools/export.py), hashes verified.

        backend: "cpu", "onednn", "onednn_bfloat16" or "gpu", one that the bundle was proven on.
        max_resident_experts: as in `from_pretrained`. threads: of the CPU (None: OMP_NUM_THREADS, else all cores).
        FileNotFoundError and ValueError name what is missing, changed, not proven, or not readable by this Paddle.
        """
        unet = None
        if max_resident_experts is not None:
            unet = resident_exported_unet(folder, max_resident_experts, backend, threads)
        return cls(**exported_components(folder, backend, unet, threads))

    @classmethod
    def from_published(
        cls,
        ernie: str | os.PathLike = "ernie-3.0-base-zh",
        *,
        unet: str | os.PathLike,
        vae: str | os.PathLike,
        scheduler: str | os.PathLike | None = None,
        from_diffusers: bool = True,
        num_experts: int = 1,
        **config,
    ) -> ErnieViLG2Pipeline:
        """An untrained mixture from published weights: ERNIE gets the marks, one UNet becomes every expert.

        ernie: folder or PaddleNLP name; unet, vae, scheduler: folders in diffusers' format (Paddle's with
        from_diffusers=False; without a scheduler the noise schedule of Stable Diffusion 1). config: mark, max_length...
        """
        return cls(**published_components(ernie, unet, vae, scheduler, from_diffusers, num_experts), **config)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes every component (safetensors) and model_index.json, without the paths they were loaded from.

        ValueError for an exported pipeline: its bundle is what it is on disk.
        """
        if not all(hasattr(component, "save_pretrained") for component in (self.vae, self.text_encoder)):
            raise ValueError("an exported pipeline has no weights to save: copy the folder of its bundle instead")
        super().save_pretrained(os.fspath(save_directory), **kwargs)
        forget_paths(Path(save_directory))

    def __setattr__(self, name: str, value) -> None:
        components = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        if name in components and name in self.__dict__ and value is not None:
            # The base class would write only the top package of a replaced component to model_index.json.
            del self.__dict__[name]
            self.register_modules(**{name: value})
        else:
            super().__setattr__(name, value)

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
    def dtype(self) -> paddle.dtype:
        """dtype the denoiser computes in (the base class asks whichever component comes first, and ERNIE has none)."""
        return self.unet.dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return vae_scale_factor(self.vae)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: VAE factor times the UNet's downsampling."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config.unet["block_out_channels"]) - 1)

    def _check_components(self) -> None:
        unet, hidden_size = self.unet.config, self.text_encoder.config.hidden_size
        steps = self.scheduler.config.num_train_timesteps
        faults = []
        if steps != unet.num_train_timesteps:
            faults.append(f"scheduler has num_train_timesteps={steps}, unet {unet.num_train_timesteps}")
        if self.vae.config.latent_channels != unet.unet["in_channels"]:
            faults.append(f"vae has {self.vae.config.latent_channels} channels, unet takes {unet.unet['in_channels']}")
        if hidden_size != unet.unet["cross_attention_dim"]:
            faults.append(f"text_encoder gives {hidden_size} features, unet takes {unet.unet['cross_attention_dim']}")
        if self.config.max_length > self.text_encoder.config.max_position_embeddings:
            positions = self.text_encoder.config.max_position_embeddings
            faults.append(f"max_length={self.config.max_length}, text_encoder has {positions} positions")
        vocabulary, rows = self.tokenizer.get_vocab(), self.text_encoder.config.vocab_size
        if max(vocabulary.values()) >= rows:
            faults.append(f"tokenizer has ids up to {max(vocabulary.values())}, text_encoder embeds {rows} tokens")
        missing = [mark for mark in MARKS.values() if mark not in vocabulary]
        if self.config.mark and missing:
            faults.append(f"tokenizer lacks {' '.join(missing)}: add_marks(tokenizer, text_encoder), or mark=False")
        if faults:
            raise ValueError(f"the components do not fit together: {'; '.join(faults)}")

    # ---- generation ----

    @paddle.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        style: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        generator: Generator = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float | None = None,
        latents: paddle.Tensor | None = None,
        eta: float | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draws `num_images_per_prompt` pictures of each prompt; result.images in that order.

        prompt: too long a text is cut with a warning. style: one of ppvilg.knowledge.STYLES.
        height, width: pixels, multiples of `size_multiple`; None: the size of `image`, else of the unet's training.
        num_inference_steps, guidance_scale: None: the model's defaults. guidance_scale: one number or one per
            expert; 1 is no guidance.
        generator: seed or numpy Generator, or one per picture (see NoiseSource). Picture i of seed s is picture 0 of
            seed s + i, whatever the batch; schedulers that draw noise in their steps repeat for equal batches.
        output_type: "pil", "np" (N, H, W, 3), "pd" (N, 3, H, W), both in [0, 1], or "latent" (N, C, h, w).
        callback_on_step_end: called as f(pipeline, step, timestep, {"latents": ...}); may return {"latents": ...}.
        image: start from this picture, `strength` (default 0.8) of the way to noise; 0 is its reconstruction.
        mask_image: repaint where it is white (default strength 1, pure noise); other pixels of `image` stay exact.
        latents: initial standard normal noise (N, C, h, w) instead of drawing it. eta: DDIM's share of fresh noise in
            every step, 0 to 1; None: the model's default where the scheduler takes one.
        """
        drawing = self._begin(
            prompt,
            negative_prompt,
            style,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            generator,
            num_images_per_prompt,
            output_type,
            callback_on_step_end,
            image,
            mask_image,
            strength,
            latents,
            eta,
        )
        timesteps = drawing.canvas.timesteps
        with self.unet.expecting(timesteps), self.progress_bar(total=len(timesteps)) as progress_bar:
            self._advance(drawing, len(timesteps), progress_bar)
        images = self._finish(drawing, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @paddle.no_grad()
    def generate_queue(
        self, prompt: list[str], batch_size: int = 8, output_type: str = "pil", **arguments
    ) -> ImagePipelineOutput:
        """Draws many prompts, `batch_size` at a time, expert by expert: each is in memory once for the whole queue.

        The other arguments are those of a call, lists with one entry per prompt (generator, image, mask_image and
        latents: per picture), and so are the pictures: those of a call for every `batch_size` prompts in turn, with a
        generator seed counted on. No callback_on_step_end, and no numpy Generator for all, which calls would share.
        """
        calls = split_into_batches(prompt, batch_size, arguments)
        painters = [self._with_own_scheduler() for _ in calls]
        drawings = [painter._begin(output_type=output_type, **call) for painter, call in zip(painters, calls)]
        timesteps, boundaries = drawings[0].canvas.timesteps, self.unet.boundaries
        total = len(timesteps) * len(drawings)
        with self.unet.expecting(timesteps), self.progress_bar(total=total) as progress_bar:
            for _, block in groupby(timesteps, key=lambda timestep: expert_index(float(timestep), boundaries)):
                steps = len(list(block))
                for painter, drawing in zip(painters, drawings):
                    painter._advance(drawing, steps, progress_bar)
        images = [painter._finish(drawing, output_type) for painter, drawing in zip(painters, drawings)]
        return ImagePipelineOutput(images=joined(images))

    def _with_own_scheduler(self) -> ErnieViLG2Pipeline:
        """This pipeline over the same components, with a copy of the scheduler, which remembers its steps."""
        other = copy.copy(self)
        other.scheduler = copy.deepcopy(self.scheduler)
        return other

    def _begin(
        self,
        prompt,
        negative_prompt=None,
        style=None,
        height=None,
        width=None,
        num_inference_steps=None,
        guidance_scale=None,
        generator=None,
        num_images_per_prompt=1,
        output_type="pil",
        callback_on_step_end=None,
        image=None,
        mask_image=None,
        strength=None,
        latents=None,
        eta=None,
    ) -> Drawing:
        """The arguments of a call up to the first denoising step."""
        # 1. check inputs
        prompts, negatives = self._check_text(prompt, negative_prompt, style)
        self._check_components()
        self._check_call(num_images_per_prompt, output_type, image, mask_image, strength, latents)
        eta = self.resolve_eta(eta)
        steps = self._check_steps(num_inference_steps)
        scales = self.resolve_guidance(guidance_scale)
        height, width = self._check_size(height, width, image)
        count = len(prompts) * num_images_per_prompt
        noise = NoiseSource(generator, count)

        with self._at_work(noise):
            # 2. encode prompt
            positive = self.encode_prompt(prompts, num_images_per_prompt)
            negative = self.encode_prompt(negatives, num_images_per_prompt, apply=False)

            # 3. prepare latents
            solver_dtype = start_scheduler(self.scheduler, steps)
            canvas = self._prepare(height, width, noise, latents, image, mask_image, strength, count)
        start = canvas.latents.cast(solver_dtype)
        return Drawing(canvas, start, positive, negative, scales, noise, eta, callback_on_step_end)

    @contextlib.contextmanager
    def _at_work(self, noise: NoiseSource) -> Iterator[None]:
        with _evaluating(self.text_encoder, self.unet, self.vae), noise.paddle_seeded():
            yield

    # ---- 1. check inputs ----

    def _check_text(self, prompt, negative_prompt, style) -> tuple[list[str], list[str]]:
        """Prompts with their styles, and as many negative prompts."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompt must be a text or a list of texts, got {prompt!r}")
        negatives = _one_each("negative_prompt", negative_prompt, len(prompts))
        styles = _one_each("style", style, len(prompts))
        return [apply_style(*pair) for pair in zip(prompts, styles)], [text or "" for text in negatives]

    def _check_call(self, num_images_per_prompt, output_type, image, mask_image, strength, latents) -> None:
        if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be a whole number from 1, got {num_images_per_prompt!r}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if image is None and (mask_image is not None or strength is not None):
            raise ValueError("mask_image and strength need an image to start from")
        if image is not None and latents is not None:
            raise ValueError("give latents or image to start from, not both")
        if strength is not None and not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 (keep the image) to 1 (pure noise), got {strength}")
        runge_kutta = isinstance(self.scheduler, PNDMScheduler) and not self.scheduler.config.skip_prk_steps
        if image is not None and runge_kutta:
            raise ValueError("PNDMScheduler can start from an image only with skip_prk_steps=True")

    def _check_steps(self, num_inference_steps: int | None) -> int:
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        limit = self.scheduler.config.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= limit:
            raise ValueError(f"num_inference_steps must be a whole number from 1 to {limit}, got {steps!r}")
        return int(steps)

    def resolve_eta(self, eta: float | None) -> float:
        """What a call uses: None is the model's default where the scheduler takes one. ValueError: it does not fit."""
        taken = "eta" in inspect.signature(self.scheduler.step).parameters
        if eta is None:
            eta = self.config.default_eta if taken else 0.0
        if eta and not taken:
            raise ValueError(f"{type(self.scheduler).__name__} takes no eta, got eta={eta}; use DDIMScheduler")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 (no fresh noise) to 1 (as much as DDPM), got {eta}")
        return float(eta)

    def resolve_guidance(self, guidance_scale: float | Sequence[float] | None) -> list[float]:
        """One guidance scale per expert, as a call uses them: None is the model's default. ValueError: see a call."""
        scales = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        scales = [scales] * self.unet.num_experts if isinstance(scales, Real) else list(scales)
        if len(scales) != self.unet.num_experts:
            raise ValueError(f"guidance_scale has {len(scales)} numbers for {self.unet.num_experts} experts")
        if not all(np.isfinite(scale) for scale in scales):
            raise ValueError(f"guidance_scale must be finite, got {scales}")
        return [float(scale) for scale in scales]

    def _check_size(self, height: int | None, width: int | None, image) -> tuple[int, int]:
        """(height, width) in pixels."""
        if image is not None:
            default = _picture_size(image)
        else:
            size = self.unet.sample_size
            cells = (size, size) if size is None or isinstance(size, int) else size
            default = tuple(None if cell is None else cell * self.vae_scale_factor for cell in cells)
        sizes = []
        for name, given, fallback in (("height", height, default[0]), ("width", width, default[1])):
            value, multiple = fallback if given is None else given, self.size_multiple
            if value is None:
                raise ValueError(f"{name} must be given: the unet's config has no sample_size")
            if not isinstance(value, (int, np.integer)) or value < 1 or value % multiple:
                low = int(value // multiple * multiple)
                valid = f"{low} and {low + multiple}" if low > 0 else f"{multiple}"
                raise ValueError(f"{name}={value} is not a multiple of {multiple}; the nearest valid: {valid}")
            sizes.append(int(value))
        return tuple(sizes)

    # ---- 2. encode prompt ----

    def encode_prompt(self, prompts: list[str], num_images_per_prompt: int = 1, apply: bool = True) -> Conditioning:
        """Encodes each prompt once and repeats it; apply=False: as plain text with weights of ones."""
        encoded = self.text_knowledge.encode(prompts, apply=apply)
        cut = truncation_warning(encoded)
        if cut:
            warnings.warn(f"prompt {cut}", stacklevel=2)
        hidden_states = self.text_encoder(paddle.to_tensor(encoded.input_ids))[0].cast(self.unet.dtype)  # (P, L, D)
        weights = paddle.to_tensor(encoded.key_token_weights)  # (P, L)
        return Conditioning(
            hidden_states.repeat_interleave(num_images_per_prompt, axis=0),  # (N, L, D)
            weights.repeat_interleave(num_images_per_prompt, axis=0),  # (N, L)
        )

    # ---- 3. prepare latents ----

    def _prepare(self, height, width, noise: NoiseSource, latents, image, mask_image, strength, count) -> Canvas:
        factor = self.vae_scale_factor
        shape = [self.unet.in_channels, height // factor, width // factor]
        if latents is not None and list(latents.shape) != [count, *shape]:
            raise ValueError(f"latents must have shape {[count, *shape]}, got {list(latents.shape)}")
        drawn = noise.normal(shape) if latents is None else latents.cast("float32")  # (N, C, h, w)
        if image is None:
            return Canvas(list(self.scheduler.timesteps), drawn * self.scheduler.init_noise_sigma)

        pixels = self._read_picture(image, height, width, count, "image")  # (N, 3, H, W)
        known = self.encode_image(2 * pixels - 1)  # (N, C, h, w)
        mask = latent_mask = None
        if mask_image is not None:
            mask = self._read_picture(mask_image, height, width, count, "mask_image")  # (N, 1, H, W)
            latent_mask = paddle.nn.functional.max_pool2d(mask, factor)  # (N, 1, h, w), free if any pixel is
        if strength is None:
            strength = 0.8 if mask is None else 1.0
        timesteps = self._shortened(strength)
        if not timesteps:
            start = known
        elif strength == 1:
            start = drawn * self.scheduler.init_noise_sigma
        else:
            start = self.scheduler.add_noise(known, drawn, timesteps[0].reshape([1]))
        return Canvas(timesteps, start, drawn, pixels, known, mask, latent_mask)

    def _read_picture(self, image, height: int, width: int, count: int, name: str) -> paddle.Tensor:
        """PIL, array or tensor pictures as (count, channels, height, width) in [0, 1]; a mask is made 0 or 1."""
        binary = name == "mask_image"
        processor = VaeImageProcessor(
            vae_scale_factor=1,
            do_normalize=False,
            do_binarize=binary,
            do_convert_grayscale=binary,
            do_convert_rgb=not binary,
        )
        pictures = image if isinstance(image, (list, tuple)) else [image]
        pixels = processor.preprocess(list(pictures), height, width).cast("float32")
        channels = 1 if binary else 3
        if pixels.shape[1] != channels or pixels.shape[0] not in (1, count):
            raise ValueError(f"{name} must be 1 or {count} pictures of {channels} channels, got shape {pixels.shape}")
        if not binary and (float(pixels.min()) < 0 or float(pixels.max()) > 1):
            raise ValueError(f"{name} as an array must be in [0, 1], got [{pixels.min():.3g}, {pixels.max():.3g}]")
        return pixels.expand([count, *pixels.shape[1:]])

    def encode_image(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] to latents (N, C, h, w), the mean of the posterior."""
        return self.vae.encode(pixels.cast(self.vae.dtype)).latent_dist.mode().cast("float32") * self._latent_scale

    def _shortened(self, strength: float) -> list[paddle.Tensor]:
        """The last `strength` share of the scheduler's timesteps, at least one unless strength is 0."""
        timesteps = list(self.scheduler.timesteps)
        if isinstance(self.scheduler, PNDMScheduler):
            del timesteps[1:2]  # the second one is there twice; see below
        order = self.scheduler.order
        total = -(-len(timesteps) // order)
        kept = max(round(strength * total), 1) if strength > 0 else 0
        timesteps = timesteps[(total - kept) * order :]
        if isinstance(self.scheduler, PNDMScheduler):
            timesteps[1:1] = timesteps[1:2]  # the multistep warm-up takes the second timestep twice
        return timesteps

    # ---- 4. loop ----

    def _advance(self, drawing: Drawing, count: int, progress_bar) -> None:
        """The next `count` denoising steps of a drawing."""
        canvas, noise = drawing.canvas, drawing.noise
        with self._at_work(noise):
            for i in range(drawing.step, drawing.step + count):
                timestep, latents = canvas.timesteps[i], drawing.latents
                prediction = self._predict(
                    latents, timestep, drawing.positive, drawing.negative, drawing.scales
                )  # (N, C, h, w)
                extra = self._step_arguments(latents, noise, drawing.eta)
                latents = self.scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
                if canvas.mask is not None:
                    known = canvas.known
                    if i + 1 < len(canvas.timesteps):
                        following = canvas.timesteps[i + 1].reshape([1])
                        known = self.scheduler.add_noise(known, canvas.noise, following)
                    latents = paddle.where(canvas.latent_mask > 0, latents, known.cast(latents.dtype))
                if drawing.callback is not None:
                    changed = drawing.callback(self, i, timestep, {"latents": latents})
                    latents = changed.get("latents", latents) if changed else latents
                drawing.latents, drawing.step = latents, i + 1
                progress_bar.update()

    def _predict(self, latents, timestep, positive: Conditioning, negative: Conditioning, scales) -> paddle.Tensor:
        """The unet's prediction with classifier-free guidance, whose scale belongs to the expert at `timestep`."""
        moment = float(timestep)
        sample = self.scheduler.scale_model_input(latents, timestep).cast(self.unet.dtype)
        scale = scales[expert_index(moment, self.unet.boundaries)]
        if scale == 1:
            return self.unet(sample, moment, *positive).sample.cast(latents.dtype)
        both = [paddle.concat(pair) for pair in zip(negative, positive)]  # (2N, L, D), (2N, L)
        prediction = self.unet(paddle.concat([sample, sample]), moment, *both).sample.cast(latents.dtype)
        without, towards = prediction.chunk(2)
        return without + scale * (towards - without)

    def _step_arguments(self, latents, noise: NoiseSource, eta: float) -> dict:
        """What this scheduler's step takes besides prediction, timestep and sample."""
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {"eta": eta} if "eta" in accepted else {}
        if eta and "variance_noise" in accepted:
            extra["variance_noise"] = noise.normal(latents.shape[1:])
        return extra

    # ---- 5. decode ----

    @property
    def _latent_scale(self) -> float:
        return self.vae.config.scaling_factor

    def decode_latents(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Latents (N, C, h, w) to pixels (N, 3, H, W) in [0, 1]."""
        decoded = self.vae.decode((latents / self._latent_scale).cast(self.vae.dtype)).sample  # (N, 3, H, W)
        return (decoded.cast("float32") / 2 + 0.5).clip(0, 1)

    def _finish(self, drawing: Drawing, output_type: str):
        """The pictures of a drawing after its last step."""
        latents, canvas = drawing.latents.cast("float32"), drawing.canvas
        if output_type == "latent":
            return latents
        with self._at_work(drawing.noise):
            pixels = self.decode_latents(latents)
        if canvas.mask is not None:
            pixels = paddle.where(canvas.mask > 0, pixels, canvas.pixels)
        return VaeImageProcessor(do_normalize=False).postprocess(pixels, output_type)
