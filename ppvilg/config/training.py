"""The recipe of a training run: every key with its type and default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

STAGES = ("vae", "base", "experts")


@dataclass
class DataConfig:
    """Where samples come from and how they become pictures of the model's shapes."""

    train: str = MISSING  # one .tar, a folder of .tar shards, a brace pattern, or a folder with a .jsonl
    validation: str | None = None
    annotations: str | None = None  # sidecar JSONL; None: annotations.jsonl beside the shards, if there
    shapes: list[list[int]] = field(default_factory=lambda: [[64, 64]])  # (width, height) in pixels, one bucket each
    crop: str = "center"  # "center" or "random"
    horizontal_flip: float = 0.0  # probability; leave 0 where captions speak of left and right
    caption: str = "zh"  # which caption is trained on: "zh" or "en"
    cache_latents: bool = True  # encode every picture once; needs crop "center" and horizontal_flip 0
    cache_tags: bool = False  # find the words of every caption once (worth it where captions are too many to remember)
    workers: int = 0  # processes per rank that read and decode ahead
    bad_sample_limit: int = 100
    max_validation_samples: int = 512


@dataclass
class TextKnowledgeConfig:
    """Part-of-speech marks and key-token attention weights (paper section 2.2, textual knowledge)."""

    enabled: bool = True
    probability: float = 0.5  # share of training samples it is applied to
    key_token_weight: float = 0.01  # w_a


@dataclass
class ObjectLossConfig:
    """Heavier squared error inside the boxes of key objects (paper section 2.2, visual knowledge)."""

    enabled: bool = True
    object_weight: float = 0.1  # w_l


@dataclass
class CompletionConfig:
    """Objects that the caption leaves out are appended to it."""

    enabled: bool = True
    probability: float = 1.0


@dataclass
class ReplacementConfig:
    """The caption is replaced by a generated one."""

    enabled: bool = True
    probability: float = 0.1


@dataclass
class VisionKnowledgeConfig:
    loss: ObjectLossConfig = field(default_factory=ObjectLossConfig)
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    replacement: ReplacementConfig = field(default_factory=ReplacementConfig)
    min_score: float = 0.5  # objects detected with less are not trusted
    synonyms: dict[str, list[str]] = field(default_factory=dict)  # label -> names that mention it: {cat: [猫, 猫咪]}


@dataclass
class KnowledgeConfig:
    text: TextKnowledgeConfig = field(default_factory=TextKnowledgeConfig)
    vision: VisionKnowledgeConfig = field(default_factory=VisionKnowledgeConfig)


@dataclass
class TokenizerConfig:
    pretrained: str | None = None  # name or folder of a stock ERNIE tokenizer; None: vocabulary from the captions
    max_length: int = 40  # tokens, marks included


@dataclass
class ComponentConfig:
    """One network: weights to start from, or the configuration of a new one (keys of the stock class)."""

    pretrained: str | None = None
    from_diffusers: bool = False  # the folder holds PyTorch diffusers weights
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text_encoder: ComponentConfig = field(default_factory=ComponentConfig)
    vae: ComponentConfig = field(default_factory=ComponentConfig)
    unet: ComponentConfig = field(default_factory=ComponentConfig)
    num_experts: int = 10
    boundaries: list[int] | None = None  # n + 1 ascending timesteps from 0 to T; None: uniform blocks
    scheduler: dict[str, Any] = field(default_factory=dict)  # keys of ppdiffusers' DDIMScheduler


@dataclass
class StageConfig:
    """One stage of training. ``steps: 0`` leaves the stage out."""

    steps: int = 0
    batch_size: int = 64  # pictures per optimizer step over all ranks and accumulation passes
    accumulation: int = 1  # passes per optimizer step
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: str = "cosine"  # "cosine", "linear" or "constant" after the warm-up
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    gradient_clip: float = 1.0  # global norm; 0: off
    ema_decay: float = 0.999
    ema_every: int = 10  # steps between averages; the decay is per step and is raised to this power
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2  # the last so many
    keep_every: int = 0  # checkpoints of steps that are multiples of this are kept for good; 0: none
    validate_every: int = 500
    sample_every: int = 0  # steps between grids of the fixed prompts; 0: only at the end


@dataclass
class VAEStageConfig(StageConfig):
    kl_weight: float = 1e-6


@dataclass
class DenoiserStageConfig(StageConfig):
    caption_dropout: float = 0.1  # share of samples trained on the empty caption, for classifier-free guidance
    min_snr_gamma: float | None = None  # None: off
    train_text_encoder: bool = True
    weighting_scheme: str = "none"  # how training timesteps are drawn: uniformly, or "logit_normal"
    logit_mean: float = 0.0  # of logit(t / T); above 0 favours noisy timesteps
    logit_std: float = 1.0
    validation_timesteps: int = 4  # fixed timesteps per block of the routing table


@dataclass
class ExpertsStageConfig(DenoiserStageConfig):
    train_text_encoder: bool = False  # it is shared, so experts stay independent of each other
    only: list[int] | None = None  # train these experts alone; None: all. train.experts=[7] is short for it
    start: str | None = None  # pipeline folder whose denoiser(s) the experts begin as; None: <output>/base


@dataclass
class TrainConfig:
    vae: VAEStageConfig = field(default_factory=VAEStageConfig)
    base: DenoiserStageConfig = field(default_factory=DenoiserStageConfig)
    experts: ExpertsStageConfig = field(default_factory=ExpertsStageConfig)


@dataclass
class DistributedConfig:
    """Sizes of the axes that ranks are laid out on (docs/en/distributed.md); their product is the number of ranks."""

    data: int | None = None  # None: whatever is left of the ranks
    sharding: int = 1  # ranks that share one copy of the optimizer's state
    sharding_stage: int = 1  # 2: of the gradients too
    bucket_megabytes: float = 32.0  # stage 2: so many gradients wait on a rank before they go to their owners
    expert: int = 1  # groups of ranks that train different experts; stages vae and base use all ranks as one group
    find_unused_parameters: bool = True  # ranks agree on which weights have gradients before they add them up
    stop_seconds: int = 120  # after SIGTERM a run that has not stopped by itself by then is ended


@dataclass
class PrecisionConfig:
    """Automatic mixed precision; does nothing on a CPU, and says so."""

    level: str = "O0"  # "O0": float32; "O1": matrix products in `dtype`; "O2": weights too, float32 master copies
    dtype: str = "bfloat16"  # or "float16", with dynamic loss scaling


@dataclass
class SampleConfig:
    """The fixed prompts whose pictures show progress."""

    prompts: list[str] = field(default_factory=list)
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    eta: float = 0.0  # share of fresh noise in DDIM's steps, 0 to 1
    seed: int = 0


@dataclass
class Recipe:
    """The whole of one run; ``output`` holds its checkpoints, caches, logs and finished pipelines."""

    output: str = MISSING
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recompute: bool = False  # the denoiser keeps fewer activations and computes them again in the backward pass
