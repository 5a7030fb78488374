"""Pipelines from folders, bundles and published weights, and back to folders."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import paddle
from paddlenlp.transformers import ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler

from ppvilg.files import check_model_files, refuse_pickles
from ppvilg.inference import (
    BackendOptions,
    check_pipeline_folder,
    exported_components,
    load_resident_unet,
    open_bundle,
    resident_exported_unet,
)
from ppvilg.knowledge import add_marks
from ppvilg.models import MoDEUNet2DConditionModel

from .identity import folder_sha256
from .weights import forget_paths
from .zoo import resolve

# The noise schedule of Stable Diffusion 1, for UNet folders that come without a scheduler.
STABLE_DIFFUSION_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Loading:
    """How ErnieViLG2Pipeline is read and written."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        max_resident_experts: int | None = None,
        subfolder: str | None = None,
        **kwargs,
    ) -> Loading:
        """Loads a pipeline folder or a model of the zoo by name; never touches the network and runs no pickle.

        max_resident_experts: at most so many experts in memory, read just ahead of the steps that need them (all).
        FileNotFoundError and ValueError name what is missing, damaged, or not allowed in such a folder.
        """
        name = pretrained_model_name_or_path
        _check_dtype(kwargs.get("paddle_dtype"))
        folder = resolve(name if subfolder is None else Path(name) / subfolder)
        check_pipeline_folder(folder)
        check_model_files(folder, given=kwargs)
        if max_resident_experts is not None:
            dtype = kwargs.get("paddle_dtype")
            kwargs["unet"] = load_resident_unet(folder / "unet", max_resident_experts, dtype)
        try:
            pipeline = super().from_pretrained(str(folder), **kwargs)
        except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:  # of odd settings
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"{folder} cannot be opened ({reason}): copy or download it again") from error
        pipeline.__dict__["_base_sha256"] = functools.partial(folder_sha256, folder)
        return pipeline

    @classmethod
    def from_exported(
        cls,
        folder: str | os.PathLike,
        backend: str | BackendOptions | None = None,
        max_resident_experts: int | None = None,
        threads: int | None = None,
    ) -> Loading:
        """The same pipeline over the static graphs of an export bundle (tools/export.py), hashes verified.

        backend: one of ppvilg.inference.BACKENDS that the bundle was proven on, or its options; None: the fastest that
            is proven on this machine, and it says which.
        max_resident_experts: as in `from_pretrained`. threads: of the CPU (None: OMP_NUM_THREADS, else all cores).
        FileNotFoundError and ValueError name what is missing, changed, not proven, or not readable by this Paddle.
        """
        _, options = open_bundle(folder, backend, threads)
        unet = None
        if max_resident_experts is not None:
            unet = resident_exported_unet(folder, max_resident_experts, options)
        return cls(**exported_components(folder, options, unet))

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
    ) -> Loading:
        """An untrained mixture from published weights: ERNIE gets the marks, one UNet becomes every expert.

        ernie: folder or PaddleNLP name; unet, vae, scheduler: folders in diffusers' format (Paddle's with
        from_diffusers=False; without a scheduler the noise schedule of Stable Diffusion 1). config: mark, max_length...
        """
        return cls(**published_components(ernie, unet, vae, scheduler, from_diffusers, num_experts), **config)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        to_diffusers: bool | None = None,
        **kwargs,
    ) -> None:
        """Writes every component (safetensors) and model_index.json, without the paths they were loaded from.

        ValueError, before anything is written: the networks are not all in memory, or `from_pretrained` could not read
        the folder.
        """
        self._need_weights("save_pretrained", safe_serialization, variant, to_diffusers)
        super().save_pretrained(os.fspath(save_directory), **kwargs)
        forget_paths(Path(save_directory))

    def save_config(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Writes model_index.json alone. ValueError for an exported pipeline, whose manifest says more."""
        if self.is_exported:
            raise ValueError("save_config: an exported pipeline is described by the manifest.json of its bundle")
        super().save_config(os.fspath(save_directory), *args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Uploads the folder that `save_pretrained` writes; ValueError, before a repository is made, as there."""
        self._need_weights("push_to_hub", **_forms(kwargs))
        return super().push_to_hub(repo_id, **kwargs)

    def save_to_aistudio(self, repo_id: str, **kwargs):
        """As `push_to_hub`, to AI Studio."""
        self._need_weights("save_to_aistudio", **_forms(kwargs))
        return super().save_to_aistudio(repo_id, **kwargs)

    def _need_weights(self, what: str, safe_serialization=True, variant=None, to_diffusers=None) -> None:
        if self.is_exported:
            raise ValueError(f"{what}: an exported pipeline has no weights to save, copy the folder of its bundle")
        if self.is_streamed:
            raise ValueError(f"{what}: not all experts are in memory; open the model without max_resident_experts")
        if self.get_active_adapters() and self._lora.fused_scale is None:
            raise ValueError(f"{what}: adapters are on; fuse_lora to save the model with them, or disable_lora")
        if not safe_serialization or variant or to_diffusers:
            raise ValueError(
                f"{what}: weights are written as safetensors in Paddle's layout without a variant, "
                "leave safe_serialization, variant and to_diffusers out"
            )

    def __setattr__(self, name: str, value) -> None:
        components = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        if name in components and name in self.__dict__ and value is not None:
            # The base class would write only the top package of a replaced component to model_index.json.
            del self.__dict__[name]
            self.register_modules(**{name: value})
        else:
            super().__setattr__(name, value)


def _check_dtype(dtype: paddle.dtype | str | None) -> None:
    """ValueError for a half precision where Paddle has no kernels for it."""
    if str(dtype).rpartition(".")[2] in ("float16", "bfloat16") and paddle.get_device().startswith("cpu"):
        raise ValueError(
            f"paddle_dtype={dtype}: a CPU computes in float32 alone; leave it out, or paddle.set_device('gpu') before"
        )


def _forms(arguments: dict) -> dict:
    """The arguments that decide in which form weights are written."""
    names = ("safe_serialization", "variant", "to_diffusers")
    return {name: arguments[name] for name in names if name in arguments}


def published_components(
    ernie: str | os.PathLike,
    unet: str | os.PathLike,
    vae: str | os.PathLike,
    scheduler: str | os.PathLike | None,
    from_diffusers: bool,
    num_experts: int,
) -> dict:
    """Components of an ErnieViLG2Pipeline: marks added to ERNIE, the UNet copied into every expert."""
    for name, folder in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        if folder is not None and not os.path.isdir(folder):
            raise FileNotFoundError(f"{name}: {os.fspath(folder)!r} is not a folder")
        if folder is not None:
            refuse_pickles(folder)
    if scheduler is None:
        noise_schedule = DDIMScheduler(**STABLE_DIFFUSION_SCHEDULE)
    else:
        noise_schedule = DDIMScheduler.from_pretrained(os.fspath(scheduler))
    tokenizer = ErnieTokenizer.from_pretrained(os.fspath(ernie))
    text_encoder = ErnieModel.from_pretrained(os.fspath(ernie))
    text_encoder.eval()
    add_marks(tokenizer, text_encoder)
    return {
        "vae": AutoencoderKL.from_pretrained(os.fspath(vae), from_diffusers=from_diffusers),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": MoDEUNet2DConditionModel.from_stock(
            unet,
            from_diffusers=from_diffusers,
            num_experts=num_experts,
            num_train_timesteps=noise_schedule.config.num_train_timesteps,
        ),
        "scheduler": noise_schedule,
    }
