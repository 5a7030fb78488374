"""A recipe on a cluster that is not there: memory, traffic and time of its steps, by stated assumptions (`Cluster`).

Traffic is checked against ranks that really run by tests/benchmarks/plan.py.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

from ppvilg.config import Recipe
from ppvilg.engine.parallel.layout import Axes
from ppvilg.engine.planning.memory import CONTEXT, Form, rank_memory
from ppvilg.engine.planning.plan import Sent, Work, count, layer_shapes, step_traffic, trace


@dataclass(frozen=True)
class Cluster:
    """Assumptions about machines: A100 80 GB, eight to a machine, one 200 Gbit/s adapter each; no overlap assumed."""

    gpus: int
    gpus_per_machine: int = 8
    memory: float = 80e9  # bytes
    flops: float = 312e12  # bf16, peak
    utilisation: float = 0.4  # of the peak
    inside: float = 250e9  # bytes/s a GPU sends to the others of its machine
    between: float = 25e9  # bytes/s a GPU sends to another machine
    context: float = CONTEXT


@dataclass
class Estimate:
    """One stage on one cluster. memory: bytes per rank by what they are for; seconds: of a step, by what they go to."""

    stage: str
    cluster: Cluster
    axes: Axes
    samples_per_rank: int
    samples_per_pass: int
    memory: dict[str, float] = field(default_factory=dict)
    traffic: list[Sent] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Expected time of a step, computation and communication one after the other."""
        return sum(self.seconds.values())


@dataclass
class Planner:
    """Estimates for a recipe; shapes and work are found once."""

    recipe: Recipe
    shapes: dict[str, dict[str, tuple[int, ...]]]
    work: dict[str, Work]

    @classmethod
    def of(cls, recipe: Recipe) -> Planner:
        """Build and trace the recipe's layers at its first shape."""
        width, height = recipe.data.shapes[0]
        return cls(recipe, layer_shapes(recipe), trace(recipe, width, height))

    def trained(self, stage: str) -> tuple[int, int]:
        """(elements, tensors) that get gradients in a step: one denoiser, and the text encoder where it is trained."""
        parts = ["unet", "text_encoder"] if self.recipe.train[stage].train_text_encoder else ["unet"]
        return sum(count(self.shapes[part]) for part in parts), sum(len(self.shapes[part]) for part in parts)

    def estimate(self, stage: str, cluster: Cluster, axes: Axes, experts: int | None = None) -> Estimate:
        """Memory, traffic and time; `experts` are trained in all (those of a one-expert job: 1)."""
        form = Form.of(self.recipe, stage, axes)
        form = form if experts is None else replace(form, experts=experts)
        memory, low = rank_memory(form, self.shapes, self.work, cluster.context), form.level == "O2"
        elements, tensors = self.trained(stage)
        traffic = step_traffic(elements, tensors, axes, stage == "experts", 4, weight_bytes=2 if low else 4)
        share = form.samples_per_pass * form.accumulation
        seconds = {"computation": share * self._operations(stage) / (cluster.flops * cluster.utilisation)}
        seconds |= self._communication(traffic, cluster, axes)
        elements += (form.held * form.groups - 1) * count(self.shapes["unet"])
        return Estimate(stage, cluster, axes, share, form.samples_per_pass, memory, traffic, seconds, 16.0 * elements)

    def _operations(self, stage: str) -> float:
        """Per sample: forward, twice that backward, once more for recompute; the frozen parts forward only."""
        trains_text = self.recipe.train[stage].train_text_encoder
        text = self.work["text_encoder"].flops * (3 if trains_text else 1)
        return self.work["unet"].flops * (4 if self.recipe.recompute else 3) + text + self.work["vae"].flops

    @staticmethod
    def _communication(traffic: list[Sent], cluster: Cluster, axes: Axes) -> dict[str, float]:
        """Seconds by link: groups that fit a machine stay in it, for sharding is the innermost axis."""
        seconds = {"inside machines": 0.0, "between machines": 0.0}
        for sent in traffic:
            inside = sent.n * (axes.sharding if sent.group == "data" else 1) <= cluster.gpus_per_machine
            speed = cluster.inside if inside else cluster.between
            seconds["inside machines" if inside else "between machines"] += sent.wire / speed
        return seconds
