"""Training the detector on pictures drawn as they are needed, and measuring what it finds and what it refuses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from tqdm import tqdm

from .detector import CONFIG, STRIDE, Detector, DetectorNetwork, to_input
from .examples import Example, draw_example
from .objects import load_objects
from .scenes import SHAPE_SHARES, SHAPES


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything the detector's weights depend on."""

    output: str = "output/detector"
    seed: int = 1_000_000
    steps: int = 1500
    batch_size: int = 48  # pictures of 64 x 64; fewer of the larger shapes, so that a step has about as many pixels
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.02
    style_share: float = 0.12
    spoiled_share: float = 0.5
    width: int = 96
    blocks: int = 3
    threshold: float = 0.8
    accuracy_scenes: int = 2000
    accuracy_seed: int = 2_000_000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "width", "blocks", "accuracy_scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "accuracy_seed", "warmup_steps", "weight_decay", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        for name in ("style_share", "spoiled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: must be between 0 and 1")


def batches(recipe: DetectorRecipe) -> Iterator[list[Example]]:
    """Batches of one shape each, a function of the recipe alone."""
    for step in range(recipe.steps):
        rng = np.random.default_rng([recipe.seed, step])
        width, height = SHAPES[rng.choice(len(SHAPES), p=SHAPE_SHARES)]
        count = max(1, recipe.batch_size * 64 * 64 // (width * height))
        yield [draw_example(rng, width, height, recipe.style_share, recipe.spoiled_share) for _ in range(count)]


def targets(examples: Sequence[Example], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the network should say: classes (N, h, w), weights of the cells (N, h, w), edges (N, 4, h, w).

    A centre weighs 1, as does the centre of something spoiled (class 0) together with its neighbours; cells beside a
    centre weigh nothing, since a centre may lie half way; the rest weigh little each but as much in sum.
    """
    height, width = (side // STRIDE for side in examples[0].pixels.shape[:2])
    shape = (len(examples), height, width)
    classes, weights = np.zeros(shape, dtype=np.int64), np.full(shape, 4.0 / (height * width), dtype=np.float32)
    edges = np.zeros((len(examples), 4, height, width), dtype=np.float32)
    for n, example in enumerate(examples):
        for item in example.spoiled:
            i, j = _centre(item.box, height, width)
            weights[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 0.2
            weights[n, i, j] = 1.0
        for item in example.objects:
            i, j = _centre(item.box, height, width)
            weights[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 0.0
            x0, y0, x1, y1 = item.box
            classes[n, i, j], weights[n, i, j] = 1 + labels.index(item.label), 1.0
            edges[n, :, i, j] = j - x0 / STRIDE, i - y0 / STRIDE, x1 / STRIDE - j, y1 / STRIDE - i
    return classes, weights, edges


def _centre(box: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int]:
    """Row and column of the grid point nearest to the centre of a box."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return min(round(y / STRIDE), height - 1), min(round(x / STRIDE), width - 1)


def detection_loss(
    network: DetectorNetwork, examples: Sequence[Example], labels: Sequence[str]
) -> dict[str, paddle.Tensor]:
    """Scalars "classes" (cross-entropy over cells) and "edges" (absolute error at centres), per picture."""
    classes, weights, edges = map(paddle.to_tensor, targets(examples, labels))
    logits, predicted = network(to_input(np.stack([example.pixels for example in examples])))
    entropy = F.cross_entropy(logits, classes.unsqueeze(1), axis=1, reduction="none").squeeze(1)  # (N, h, w)
    centres = (classes > 0).cast("float32").unsqueeze(1)  # (N, 1, h, w)
    return {
        "classes": (entropy * weights).sum() / len(examples),
        "edges": 0.5 * ((predicted - edges).abs() * centres).sum() / len(examples),
    }


def learning_rate(recipe: DetectorRecipe) -> paddle.optimizer.lr.LambdaDecay:
    """Linear warm-up, then cosine decay to nothing."""

    def factor(step: int) -> float:
        progress = max(0.0, (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps))
        return min(1.0, (step + 1) / max(1, recipe.warmup_steps)) * (1 + math.cos(math.pi * progress)) / 2

    return paddle.optimizer.lr.LambdaDecay(recipe.learning_rate, factor)


def train_detector(recipe: DetectorRecipe) -> tuple[Detector, dict]:
    """A detector trained from scratch, and what the training was: steps, pictures, seconds, recipe.

    FileExistsError: the recipe's output holds a detector already.
    """
    if (Path(recipe.output) / CONFIG).exists():
        raise FileExistsError(f"{recipe.output} holds a detector; choose another output, or remove it")
    paddle.seed(recipe.seed)
    labels = [item.name for item in load_objects()]
    network = DetectorNetwork(len(labels), recipe.width, recipe.blocks)
    network.train()
    decayed = {parameter.name for parameter in network.parameters() if parameter.ndim > 1}
    schedule = learning_rate(recipe)
    optimizer = paddle.optimizer.AdamW(
        schedule,
        parameters=network.parameters(),
        weight_decay=recipe.weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(5.0),
    )
    started, pictures = time.perf_counter(), 0
    progress = tqdm(batches(recipe), total=recipe.steps, desc="detector", unit="step", mininterval=5)
    for step, examples in enumerate(progress):
        terms = detection_loss(network, examples, labels)
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
        pictures += len(examples)
        if step % 50 == 0:
            progress.set_postfix({name: f"{float(value):.3f}" for name, value in terms.items()})
    about = {"pictures": pictures, "seconds": round(time.perf_counter() - started), "recipe": asdict(recipe)}
    network.eval()
    return Detector(network, labels, recipe.threshold), about
