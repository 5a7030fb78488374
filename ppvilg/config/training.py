"""The recipe of a training run: every key with its type and default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from .limits import bounded, choice

STAGES = ("vae", "base", "experts", "lora")


@dataclass
class DataSetConfig:
    """One of several data sets."""

    path: str = MISSING
    annotations: str | None = None
    weight: float | None = None  # its share of the samples is weight / the sum of all weights
    repeats: float | None = None  # or how often each of its samples comes in an epoch


@dataclass
class DataConfig:
    """Where samples come from and how they become pictures of the model's shapes."""

    train: str | None = None  # one .tar, a folder of .tar shards, a brace pattern, or a folder with a .jsonl
    sets: list[DataSetConfig] = field(default_factory=list)  # several of them, in the place of `train`
    validation: str | None = None
    annotations: str | None = None  # sidecar JSONL; None: annotations.jsonl beside the shards, if there
    shapes: list[list[int]] = bounded([[64, 64]], least=1)  # (width, height) in pixels, one bucket each
    # "auto": shapes of the area of the first one are found that fit the pictures; recipe.yml in the output has them.
    buckets: str = choice("listed", ("listed", "auto"))
    max_buckets: int = bounded(8, least=1, most=64)
    crop: str = choice("center", ("center", "random"))
    horizontal_flip: float = bounded(0.0, least=0, most=1)  # probability; 0 where captions speak of left, right
    caption: str = choice("zh", ("zh", "en"))  # which caption is trained on
    cache_latents: bool = True  # encode every picture once; needs crop "center" and horizontal_flip 0
    cache_tags: bool = False  # find the words of every caption once (worth it where captions are too many to remember)
    workers: int = bounded(0, least=0, most=1024)  # processes per rank that read and decode ahead
    bad_sample_share: float = bounded(0.1, least=0, most=1)  # so many of the samples may be unreadable
    max_validation_samples: int = bounded(512, least=1)


@dataclass
class TextKnowledgeConfig:
    """Part-of-speech marks and key-token attention weights (paper section 2.2, textual knowledge)."""

    enabled: bool = True
    probability: float = bounded(0.5, least=0, most=1)  # share of training samples it is applied to
    key_token_weight: float = bounded(0.01, least=0)  # w_a


@dataclass
class ObjectLossConfig:
    """Heavier squared error inside the boxes of key objects (paper section 2.2, visual knowledge)."""

    enabled: bool = True
    object_weight: float = bounded(0.1, least=0)  # w_l


@dataclass
class CompletionConfig:
    """Objects that the caption leaves out are appended to it."""

    enabled: bool = True
    probability: float = bounded(1.0, least=0, most=1)


@dataclass
class ReplacementConfig:
    """The caption is replaced by a generated one."""

    enabled: bool = True
    probability: float = bounded(0.1, least=0, most=1)


@dataclass
class VisionKnowledgeConfig:
    loss: ObjectLossConfig = field(default_factory=ObjectLossConfig)
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    replacement: ReplacementConfig = field(default_factory=ReplacementConfig)
    min_score: float = bounded(0.5, least=0, most=1)  # objects detected with less are not trusted
    # Tables of names and kinds of detected objects: one that comes with ppvilg or a YAML file, later ones over earlier.
    names: list[str] = field(default_factory=lambda: ["coco"])
    synonyms: dict[str, list[str]] = field(default_factory=dict)  # label -> names that mention it: {cat: [猫, 猫咪]}


@dataclass
class KnowledgeConfig:
    text: TextKnowledgeConfig = field(default_factory=TextKnowledgeConfig)
    vision: VisionKnowledgeConfig = field(default_factory=VisionKnowledgeConfig)


@dataclass
class TokenizerConfig:
    pretrained: str | None = None  # name or folder of a stock ERNIE tokenizer; None: vocabulary from the captions
    max_length: int = bounded(40, least=3)  # tokens, marks included; the first and last are not words


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
    num_experts: int = bounded(10, least=1)
    boundaries: list[int] | None = bounded(None, least=0)  # n + 1 ascending timesteps from 0 to T; None: uniform blocks
    scheduler: dict[str, Any] = field(default_factory=dict)  # keys of ppdiffusers' DDIMScheduler


@dataclass
class StageConfig:
    """One stage of training. ``steps: 0`` leaves the stage out.

    The experts take turns, so a stage of them has steps / num_experts for each; their warm-up, decay and averages count
    the steps of one expert.
    """

    steps: int = bounded(0, least=0)
    batch_size: int = bounded(64, least=1)  # pictures per optimizer step over all ranks and accumulation passes
    accumulation: int = bounded(1, least=1)  # passes per optimizer step
    learning_rate: float = bounded(1e-4, least=0)
    final_learning_rate: float = bounded(0.0, least=0)
    warmup_steps: int = bounded(0, least=0)
    decay: str = choice("cosine", ("cosine", "linear", "constant"))  # after the warm-up
    optimizer: str = choice("adamw", ("adamw", "lion", "adafactor"))
    weight_decay: float = bounded(0.01, least=0)
    beta1: float | None = bounded(None, least=0, below=1)  # None, here and below: the optimizer's usual one
    beta2: float | None = bounded(None, least=0, below=1)
    epsilon: float | None = bounded(None, above=0)
    gradient_clip: float = bounded(1.0, least=0)  # global norm; 0: off
    ema: str = choice("decay", ("decay", "power", "none"))  # what the stage's result is: averages, or the last weights
    ema_decay: float = bounded(0.999, least=0, below=1)
    ema_width: float = bounded(0.1, above=0, below=0.28)  # of a power average, as a share of the steps so far
    ema_every: int = bounded(10, least=1)  # steps between averages; the decay is per step and is raised to this power
    log_every: int = bounded(10, least=1)
    checkpoint_every: int = bounded(200, least=1)
    keep_checkpoints: int = bounded(2, least=1)  # the last so many
    keep_every: int = bounded(0, least=0)  # checkpoints of steps that are multiples of this are kept for good; 0: none
    validate_every: int = bounded(500, least=0)  # 0: only at the end
    sample_every: int = bounded(0, least=0)  # steps between grids of the fixed prompts; 0: only at the end


@dataclass
class VAEStageConfig(StageConfig):
    kl_weight: float = bounded(1e-6, least=0)


@dataclass
class DenoisingConfig(StageConfig):
    """What all stages that train a denoiser have in common."""

    # Share of samples trained on the empty caption, for classifier-free guidance.
    caption_dropout: float = bounded(0.1, least=0, most=1)
    min_snr_gamma: float | None = bounded(None, above=0)  # None: off
    noise_offset: float = bounded(0.0, least=0)  # of noise that is the same all over a channel of a picture
    weighting_scheme: str = choice("none", ("none", "logit_normal"))  # how timesteps are drawn; none: uniformly
    logit_mean: float = 0.0  # of logit(t / T); above 0 favours noisy timesteps
    logit_std: float = bounded(1.0, above=0)
    validation_timesteps: int = bounded(4, least=1, most=1000)  # fixed timesteps per block of the routing table


@dataclass
class DenoiserStageConfig(DenoisingConfig):
    train_text_encoder: bool = True
    # Rates of parts that are not `learning_rate`; schedules scale them all alike.
    learning_rates: dict[str, float] = bounded({}, least=0, keys=("unet", "text_encoder"))


@dataclass
class ExpertsStageConfig(DenoiserStageConfig):
    train_text_encoder: bool = False  # it is shared, so experts stay independent of each other
    # Train these experts alone; None: all. train.experts=[7] is short for it.
    only: list[int] | None = bounded(None, least=0)
    start: str | None = None  # pipeline folder whose denoiser(s) the experts begin as; None: <output>/base


@dataclass
class PriorConfig:
    """Pictures that the base draws of what it knows, so that it keeps it; none without prompts."""

    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None  # more of them, one per line
    pictures: int = bounded(100, least=1)  # of the prompts in turns, in <output>/prior
    weight: float = bounded(1.0, above=0)  # of their loss, against that of the pictures that are taught


@dataclass
class LoraStageConfig(DenoisingConfig):
    """An adapter of a finished model, which stays as it is; the recipe's `model` is then the model's own.

    Not shared, the experts take turns as in stage experts; shared, every step trains on all timesteps.
    """

    base: str | None = None  # pipeline folder or zoo name of the model
    rank: int = bounded(8, least=1)
    alpha: float | None = bounded(None, above=0)  # changes are scaled by alpha / rank; None: by 1
    # Ends of the paths of linear and convolutional layers of the denoiser, or "all" of them.
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    experts: Any = "all"  # or a list of numbers: the others stay as they are
    shared: bool = False  # the same changes for all experts
    text_encoder: bool = False  # the attention of the text encoder learns too
    # New words, each a token that is learnt: those of the captions that the model lacks, or a list of
    # {word: 狐狸, mark: n, key_token_weight: null, like: 狗} (all but the word may be left out); []: none.
    words: Any = "auto"
    prior: PriorConfig = field(default_factory=PriorConfig)


@dataclass
class TrainConfig:
    vae: VAEStageConfig = field(default_factory=VAEStageConfig)
    base: DenoiserStageConfig = field(default_factory=DenoiserStageConfig)
    experts: ExpertsStageConfig = field(default_factory=ExpertsStageConfig)
    lora: LoraStageConfig = field(default_factory=LoraStageConfig)


@dataclass
class DistributedConfig:
    """Sizes of the axes that ranks are laid out on (docs/en/distributed.md); their product is the number of ranks."""

    data: int | None = bounded(None, least=1)  # None: whatever is left of the ranks
    sharding: int = bounded(1, least=1)  # ranks that share one copy of the optimizer's state
    sharding_stage: int = choice(1, (1, 2))  # 2: of the gradients too (3, of the weights, is GPU-only in Paddle)
    bucket_megabytes: float = bounded(32.0, above=0)  # stage 2: so much waits on a rank before it goes to its owners
    # Groups of ranks that train different experts; stages vae and base use all ranks as one group.
    expert: int = bounded(1, least=1)
    find_unused_parameters: bool = True  # ranks agree on which weights have gradients before they add them up
    stop_seconds: int = bounded(120, least=1)  # from SIGTERM to the checkpoint; a run that takes longer is ended


@dataclass
class PrecisionConfig:
    """Automatic mixed precision; does nothing on a CPU, and says so."""

    # "O0": float32; "O1": matrix products in `dtype`; "O2": weights too, with float32 master copies.
    level: str = choice("O0", ("O0", "O1", "O2"))
    dtype: str = choice("bfloat16", ("bfloat16", "float16"))  # float16: with dynamic loss scaling


@dataclass
class ResumeConfig:
    """What a run goes on with that finds checkpoints in its output."""

    strict: bool = False  # true: refuse whatever would change a bit of what is learnt; false: go on, and log it


@dataclass
class SampleConfig:
    """The fixed prompts whose pictures show progress."""

    prompts: list[str] = field(default_factory=list)
    num_inference_steps: int = bounded(25, least=1)
    guidance_scale: float = bounded(3.0, least=0)
    eta: float = bounded(0.0, least=0, most=1)  # share of fresh noise in DDIM's steps, 0 to 1
    seed: int = bounded(0, least=0, most=2**31 - 1)


@dataclass
class Recipe:
    """The whole of one run; ``output`` holds its checkpoints, caches, logs and finished pipelines."""

    output: str = MISSING
    seed: int = bounded(0, least=0, most=2**31 - 1)
    data: DataConfig = field(default_factory=DataConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    recompute: bool = False  # the denoiser keeps fewer activations and computes them again in the backward pass
