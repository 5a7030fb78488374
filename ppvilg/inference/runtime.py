"""Exported parts under Paddle Inference, with the call signatures of the components they stand in for.

`exported_components(folder, backend)` gives what ErnieViLG2Pipeline is made of; routing, pipeline and denoising loop
are the ones of the dygraph model and do not know the difference.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle import inference, nn
from paddlenlp.transformers import ErnieConfig, ErnieTokenizer
from ppdiffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel  # noqa: F401
from ppdiffusers.configuration_utils import FrozenDict
from ppdiffusers.models.autoencoder_kl import AutoencoderKLOutput
from ppdiffusers.models.unet_2d_condition import UNet2DConditionOutput
from ppdiffusers.models.vae import DecoderOutput, DiagonalGaussianDistribution

from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.models.unet import expert_folder_name

from .manifest import GRAPH, WEIGHTS, Manifest, read_manifest, verify

BACKENDS = ("cpu", "onednn", "onednn_bfloat16", "gpu", "tensorrt")
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # as /proc/cpuinfo calls them


# ---- back ends ----


def require_backend(backend: str) -> None:
    """ValueError, with what to do, unless this machine and this Paddle have the back end."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}, choose one of {', '.join(BACKENDS)}")
    if backend == "onednn_bfloat16" and not has_bfloat16_instructions():
        raise ValueError(
            f"backend {backend!r} needs a processor with {' or '.join(BFLOAT16_INSTRUCTIONS)}; without, it is many "
            "times slower than float32: use backend 'onednn'"
        )
    if backend in ("gpu", "tensorrt"):
        if not paddle.is_compiled_with_cuda():
            raise ValueError(
                f"backend {backend!r} needs paddlepaddle-gpu, installed is paddlepaddle {paddle.__version__} for CPUs: "
                "install paddlepaddle-gpu from Paddle's index, or use backend 'onednn'"
            )
        if paddle.device.cuda.device_count() == 0:
            raise ValueError(f"backend {backend!r} needs an NVIDIA GPU and its driver: none was found")
    if backend == "tensorrt" and inference.get_trt_compile_version() == (0, 0, 0):
        raise ValueError("backend 'tensorrt' needs a paddlepaddle-gpu that was built with TensorRT: use backend 'gpu'")


def has_bfloat16_instructions(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> bool:
    """Whether this processor multiplies bfloat16 numbers by itself; False where that cannot be told."""
    try:
        words = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return any(name in words for name in BFLOAT16_INSTRUCTIONS)


def inference_config(folder: Path, backend: str, threads: int | None = None) -> inference.Config:
    """Paddle Inference settings for one part; `threads` is for CPUs (None: OMP_NUM_THREADS, else all cores)."""
    config = inference.Config(str(folder / GRAPH), str(folder / WEIGHTS))
    config.disable_glog_info()
    if backend in ("gpu", "tensorrt"):
        config.enable_use_gpu(256, 0)
        if backend == "tensorrt":
            config.enable_tensorrt_engine(precision_mode=inference.PrecisionType.Float32)
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads or _default_threads())
    if backend.startswith("onednn"):
        _switch_onednn(config, "enable")
        # With oneDNN this pass overwrites a buffer that the sine and cosine of the timestep share: silently wrong.
        config.delete_pass("inplace_pass")
        if backend == "onednn_bfloat16":
            _switch_onednn(config, "enable", "_bfloat16")
    else:
        _switch_onednn(config, "disable")  # it is on by default, with that pass
    return config


def _switch_onednn(config: inference.Config, verb: str, what: str = "") -> None:
    """`enable` or `disable` oneDNN, or a part of it; it was called MKL-DNN before, and Paddle's methods with it."""
    switch = getattr(config, f"{verb}_onednn{what}", None) or getattr(config, f"{verb}_mkldnn{what}")
    switch()


def _default_threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


@functools.cache
def readable_program_version() -> int:
    """Version of the graph format that the installed Paddle writes; Paddle itself loads newer ones without a word."""

    with tempfile.TemporaryDirectory() as folder:
        spec = [paddle.static.InputSpec([-1, 1], "float32", "x")]
        layer = paddle.jit.to_static(nn.Linear(1, 1), input_spec=spec, full_graph=True)
        paddle.jit.save(layer, str(Path(folder, GRAPH).with_suffix("")))
        return program_version(Path(folder, GRAPH))


def program_version(graph: Path) -> int:
    """Version of the graph format of a file; ValueError if it is no Paddle 3 graph."""
    try:
        header = json.loads(graph.read_text(encoding="utf-8"))["base_code"]
        assert header["magic"] == "pir"
        return int(header["version"])
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{graph} is not a graph of Paddle 3 (PIR JSON): export the model again") from None


def check_readable(manifest: Manifest, folder: str | os.PathLike) -> None:
    """ValueError if the bundle's graphs are in a newer format than the installed Paddle knows."""
    mine = readable_program_version()
    if manifest.program_version > mine:
        made_by = manifest.versions.get("paddlepaddle") or manifest.versions.get("paddlepaddle-gpu")
        raise ValueError(
            f"{os.fspath(folder)} was made by Paddle {made_by} (graph format {manifest.program_version}), the "
            f"installed Paddle {paddle.__version__} reads up to format {mine}: install Paddle {made_by} or newer, or "
            "export the model again with the Paddle that is installed"
        )


# ---- one graph ----


class Predictor:
    """One part of a bundle: tensors in, tensors out, in the order of the manifest."""

    def __init__(self, folder: Path, backend: str, threads: int | None = None) -> None:
        require_backend(backend)
        self.folder, self.backend = Path(folder), backend
        self._predictor = inference.create_predictor(inference_config(self.folder, backend, threads))

    def __call__(self, *inputs: paddle.Tensor) -> list[paddle.Tensor]:
        # The predictor hands out its own buffers, which the next call overwrites.
        return [output.clone() for output in self._predictor.run(list(inputs))]


def open_part(
    folder: Path, manifest: Manifest, name: str, backend: str, threads: int | None = None, verified: bool = False
) -> Predictor:
    """Verifies the files of one part, unless they are `verified`, and loads it.

    Raises:
        ValueError: the bundle has no such part; it was not proven for the back end; a file was changed.
        FileNotFoundError: a file is missing.
    """
    check_proven(folder, manifest, backend)
    if name not in manifest.parts:
        raise ValueError(f"{folder} has no part {name!r}, it has {', '.join(manifest.parts)}")
    if not verified:
        verify(folder / name, manifest.parts[name].files)
    return Predictor(folder / name, backend, threads)


def check_proven(folder: Path, manifest: Manifest, backend: str) -> None:
    """ValueError unless this machine has the back end and the bundle was proven for it."""
    require_backend(backend)
    if backend not in manifest.proof:
        raise ValueError(
            f"{folder} is proven for {', '.join(manifest.proof)}, not for backend {backend!r}: export with "
            f"--backends {' '.join([*manifest.proof, backend])}"
        )


# ---- stand-ins ----


class ExportedExpert(nn.Layer):
    """One exported expert with the call signature of UNet2DConditionModel."""

    def __init__(self, predictor: Predictor, size_multiple: int) -> None:
        super().__init__()
        self.predictor = predictor
        self.size_multiple = size_multiple
        self.dtype = paddle.float32
        self.eval()

    def forward(
        self,
        sample: paddle.Tensor,
        timestep: int | float | paddle.Tensor,
        encoder_hidden_states: paddle.Tensor,
        class_labels: None = None,
        timestep_cond: None = None,
        attention_mask: None = None,
        cross_attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[paddle.Tensor]:
        """Denoises (N, C, h, w) at one or (N,) timesteps with text states (N, L, D).

        cross_attention_kwargs may have key_token_weights (N, L). ValueError for what the graph has no input for.
        """
        attention = dict(cross_attention_kwargs or {})
        weights = attention.pop("key_token_weights", None)
        if attention or class_labels is not None or timestep_cond is not None or attention_mask is not None:
            raise ValueError("an exported expert takes sample, timestep, text states and key_token_weights alone")
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"latents of {height}x{width} are no multiple of {self.size_multiple} on both sides")
        count, length = encoder_hidden_states.shape[:2]
        if weights is None:
            weights = paddle.ones([count, length], "float32")
        timestep = paddle.to_tensor(timestep).cast("float32").reshape([-1]).expand([count])  # (N,)
        inputs = (sample, timestep, encoder_hidden_states, weights)
        output = self.predictor(*(tensor.cast("float32") for tensor in inputs))[0]  # (N, C, h, w)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)


class ExportedTextEncoder:
    """An exported ErnieModel: token ids (N, L) -> (states (N, L, D), pooled (N, D))."""

    def __init__(self, predictor: Predictor, config: dict) -> None:
        self.predictor = predictor
        self.config = ErnieConfig.from_dict(dict(config))

    def __call__(self, input_ids: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return tuple(self.predictor(input_ids.cast("int64")))


class ExportedAutoencoder:
    """An exported AutoencoderKL or PatchAutoencoderKL; the encoder is loaded when it is first asked for."""

    dtype = paddle.float32

    def __init__(self, open_encoder, decoder: Predictor, config: dict) -> None:
        self._open_encoder = open_encoder
        self.decoder = decoder
        self.config = FrozenDict(config)

    @functools.cached_property
    def encoder(self) -> Predictor:
        """Loaded on first use: text to image never needs it."""
        return self._open_encoder()

    def encode(self, x: paddle.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Posterior of latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        posterior = DiagonalGaussianDistribution(self.encoder(x.cast("float32"))[0])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: paddle.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[paddle.Tensor]:
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        pixels = self.decoder(z.cast("float32"))[0]
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)


# ---- loading ----


def load_exported_expert(
    folder: str | os.PathLike, index: int, backend: str = "onednn", threads: int | None = None
) -> ExportedExpert:
    """Expert `index` of a bundle, its files verified: callable like UNet2DConditionModel.

    Raises:
        FileNotFoundError: the folder is no bundle or lacks a file.
        ValueError: unknown or unproven back end, changed file, newer graph format, or no such expert.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    return open_expert(folder, manifest, index, backend, threads)


def open_expert(
    folder: Path, manifest: Manifest, index: int, backend: str, threads: int | None = None, verified: bool = False
) -> ExportedExpert:
    """As `load_exported_expert`, with a manifest that was read and checked before."""
    levels = len(manifest.components["unet"]["unet"]["block_out_channels"])
    predictor = open_part(folder, manifest, expert_folder_name(index), backend, threads, verified)
    return ExportedExpert(predictor, 2 ** (levels - 1))


def exported_unet(
    folder: str | os.PathLike,
    backend: str = "onednn",
    experts: Sequence[int] | None = None,
    threads: int | None = None,
) -> MoDEUNet2DConditionModel:
    """The mixture of a bundle: the routing of MoDEUNet2DConditionModel over exported experts.

    experts: which to load (all); the others stay absent.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    model = MoDEUNet2DConditionModel(**manifest.components["unet"], experts=[])
    for index in range(model.num_experts) if experts is None else experts:
        model.experts[index] = open_expert(folder, manifest, index, backend, threads)
    model.experts.dtype = paddle.float32  # no parameter tells it
    model.eval()
    return model


def exported_components(
    folder: str | os.PathLike,
    backend: str = "onednn",
    unet: MoDEUNet2DConditionModel | None = None,
    threads: int | None = None,
) -> dict:
    """Arguments of ErnieViLG2Pipeline from a bundle; errors as `load_exported_expert`.

    unet: the bundle's experts, if they were loaded already (None: all of them are loaded here).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_readable(manifest, folder)
    if manifest.pipeline is None:
        raise ValueError(f"{folder} holds experts alone, no text encoder and VAE: use load_exported_expert")
    verify(folder, manifest.files)

    def part(name: str) -> Predictor:
        return open_part(folder, manifest, name, backend, threads)

    return {
        "vae": ExportedAutoencoder(
            functools.partial(part, "vae_encoder"), part("vae_decoder"), manifest.components["vae"]
        ),
        "text_encoder": ExportedTextEncoder(part("text_encoder"), manifest.components["text_encoder"]),
        "tokenizer": ErnieTokenizer.from_pretrained(str(folder / "tokenizer")),
        "unet": exported_unet(folder, backend, threads=threads) if unet is None else unet,
        "scheduler": _load_scheduler(folder / "scheduler"),
        **manifest.pipeline,
    }


def _load_scheduler(folder: Path):
    """A scheduler of the class that its config names."""
    import ppdiffusers

    name = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    return getattr(ppdiffusers, name).from_pretrained(str(folder))
