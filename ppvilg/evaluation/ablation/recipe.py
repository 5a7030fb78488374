"""What an ablation depends on, and the arms that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from ppvilg.config import Checked, ConfigError, bounded, choice
from ppvilg.emoji.judging import CRITERIA
from ppvilg.pipelines import SCHEDULERS

KNOWLEDGE = {"none": (False, False), "text": (True, False), "vision": (False, True), "both": (True, True)}
ALIGNMENTS = ("all", "criteria")


@dataclass(frozen=True)
class Arm:
    """One model: knowledge is "none", "text", "vision" or "both"."""

    knowledge: str
    experts: int

    @property
    def name(self) -> str:
        """Folder name."""
        return f"knowledge_{self.knowledge}_experts_{self.experts:02d}"

    def overrides(self) -> list[str]:
        """What it sets in a training recipe."""
        text, vision = ("true" if on else "false" for on in KNOWLEDGE[self.knowledge])
        parts = ("loss", "completion", "replacement")
        switches = [f"knowledge.text.enabled={text}", *(f"knowledge.vision.{part}.enabled={vision}" for part in parts)]
        return [*switches, f"model.num_experts={self.experts}"]


@dataclass(frozen=True)
class AblationRecipe(Checked):
    """Everything an ablation depends on."""

    suite: str = "ablation"
    output: str = MISSING
    training: str = "emoji64"  # recipe of the data, the networks and the stages: a file, or one of ppvilg's own
    train_data: str | None = None  # None: the data of the training recipe
    validation_data: str | None = None
    overrides: list[str] = field(default_factory=list)  # of the training recipe, for the base and for every arm
    base: str | None = None  # a finished run, or a pipeline folder; None: one is trained
    base_steps: int = bounded(2000, least=1)
    steps: int = bounded(500, least=1)  # of every arm
    train_text_encoder: bool = True  # in every arm alike; marks are new words that must be learned
    seeds: list[int] = bounded([0, 1, 2], least=0)
    knowledge: list[str] = choice(list(KNOWLEDGE), tuple(KNOWLEDGE))  # with one denoiser
    experts: list[int] = bounded([1, 2, 5, 10], least=1)
    experts_knowledge: str = choice("none", tuple(KNOWLEDGE))  # of the arms with several experts
    guidance_scales: list[float] = bounded([1.0, 2.0, 3.0, 5.0], least=0)
    prompts: dict[str, int] = bounded({"single": 120, "pair": 100, "count": 100}, least=0, keys=tuple(CRITERIA))
    num_inference_steps: int = bounded(15, least=1)
    scheduler: str | None = choice(None, tuple(SCHEDULERS))  # None: the model's own
    reference_pictures: int = bounded(3200, least=2)
    alignment: str = choice("all", ALIGNMENTS)  # all the prompt asks for, or criteria: mean over the single demands
    loss_scenes: int = bounded(400, least=1)  # real scenes of the prompts on which the loss is measured
    loss_blocks: int = bounded(5, least=1)  # equal blocks of timesteps it is reported for, whatever the experts are
    detector: str | None = None
    picture_seed: int = bounded(0, least=0)
    batch_size: int = bounded(32, least=1)
    parallel: int = bounded(1, least=1)  # arms that are trained and drawn at once, with one thread each
    only: str | None = None  # one job, <arm>/seed_<k>, without a report; how the jobs are started

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "guidance_scales", "knowledge", "experts"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}={values}: needs values, each once")
        if not any(self.prompts.values()):
            raise ConfigError(f"prompts={self.prompts}: needs how many of {', '.join(CRITERIA)}")

    @property
    def families(self) -> dict[str, list[Arm]]:
        """The arms of each question; the first of a family is what the others are compared with."""
        return {
            "knowledge": [Arm(name, 1) for name in self.knowledge],
            "experts": [Arm(self.experts_knowledge, count) for count in self.experts],
        }

    @property
    def arms(self) -> list[Arm]:
        """All arms, each once."""
        return list(dict.fromkeys(arm for arms in self.families.values() for arm in arms))
