"""The shipped detector with one class more: its features stay as they are, one row of its last layer is fitted."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.nn.initializer import Constant
from PIL import Image

from ppvilg.data import ObjectBox

from ..detector import Detector, DetectorNetwork, to_input
from ..detector_training import targets
from ..examples import Example, disturb, training_background
from ..objects import EmojiObject
from ..render import draw_emoji, draw_glyph
from ..scenes import LAYOUT_SHARES, SHAPES, draw_scene
from ..spoiling import SPOILERS, can_spoil

_STREAM = 42
_STEPS, _RATE, _DECAY = 400, 0.05, 1e-4


def detector_with(detector: Detector, item: EmojiObject, pictures: int = 480, seed: int = 0) -> Detector:
    """The detector that also knows `item`; what it says of the others changes only where it now sees `item`.

    The row is a logistic regression against the other classes on `pictures` rendered scenes, on colours that no
    denoiser was trained on; in a part of them the object is spoiled, and then counts as none.
    """
    labels = [*detector.labels, item.name]
    features, rest, classes, weights = _material(detector, item, labels, pictures, seed)
    new = len(labels)  # number of the class
    row = paddle.create_parameter([features.shape[1], 1], "float32", default_initializer=Constant(0.0))
    bias = paddle.create_parameter([1], "float32", default_initializer=Constant(-4.0))
    optimizer = paddle.optimizer.AdamW(_RATE, parameters=[row, bias], weight_decay=_DECAY)
    is_new = paddle.to_tensor((classes == new).astype(np.float32))  # (P,)
    weights = paddle.to_tensor(weights)
    for _ in range(_STEPS):
        logit = (features @ row).squeeze(1) + bias - rest  # (P,): against all other classes together
        loss = (F.binary_cross_entropy_with_logits(logit, is_new, reduction="none") * weights).sum() / pictures
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return _extended(detector, labels, row.numpy()[:, 0], float(bias.item()))


@paddle.no_grad()
def _material(detector: Detector, item: EmojiObject, labels: list[str], pictures: int, seed: int) -> tuple:
    """(features (P, C), log-sum of the known classes' logits (P,), classes (P,), weights (P,)) of cells."""
    detector.network.eval()
    found = []
    for shape in SHAPES:
        rng = np.random.default_rng([seed, _STREAM, *shape])
        examples = [_example(rng, item, *shape) for _ in range(pictures // len(SHAPES))]
        seen = detector.network.features(to_input(np.stack([example.pixels for example in examples])))
        logits = detector.network.head(seen)[:, : len(labels)]  # (N, 1 + K, h, w), without the new one
        classes, weights, _ = targets(examples, labels)
        found.append((seen.transpose([0, 2, 3, 1]).flatten(0, 2), paddle.logsumexp(logits, 1).flatten(),
                      classes.reshape(-1), weights.reshape(-1)))  # fmt: skip
    features, rest, classes, weights = zip(*found)
    return paddle.concat(features), paddle.concat(rest), np.concatenate(classes), np.concatenate(weights)


def _example(rng: np.random.Generator, item: EmojiObject, width: int, height: int) -> Example:
    """A scene in which the first object is often the new one, and that is often spoiled."""
    layout = str(rng.choice(list(LAYOUT_SHARES), p=list(LAYOUT_SHARES.values())))
    image = Image.new("RGB", (width, height), training_background(rng))
    objects, spoiled = [], []
    for number, placement in enumerate(draw_scene(rng, width, height, layout).objects):
        is_new = number == 0 and rng.random() < 0.8
        glyph = draw_emoji(item.emoji, placement.size) if is_new else draw_glyph(placement.name, placement.size)
        name = item.name if is_new else placement.name
        at = [place + (placement.size - side) // 2 + int(rng.integers(-2, 3))
              for place, side in zip((placement.x, placement.y), glyph.size)]  # fmt: skip
        box = ObjectBox(name, tuple(map(float, (*at, at[0] + glyph.width, at[1] + glyph.height))))
        if is_new and rng.random() < 0.4:
            kind = str(rng.choice([each for each in SPOILERS if can_spoil(each, glyph)]))
            changed = SPOILERS[kind](glyph, rng)
            at = [place - (new - old) // 2 for place, new, old in zip(at, changed.size, glyph.size)]
            glyph = changed
            spoiled.append(box)
        else:
            objects.append(box)
        image.paste(glyph, tuple(at), glyph)
    return Example(disturb(rng, image), tuple(objects), tuple(spoiled))


def _extended(detector: Detector, labels: list[str], row: np.ndarray, bias: float) -> Detector:
    """A network whose last layer has the new class behind the others, and edges behind it."""
    old = detector.network
    network = DetectorNetwork(len(labels), old.head.weight.shape[1], len(old.blocks))
    state = dict(old.state_dict())
    weight, offset = state["head.weight"].numpy(), state["head.bias"].numpy()
    at = len(labels)  # of 1 + K old classes
    state["head.weight"] = np.insert(weight, at, row[:, None, None], axis=0)
    state["head.bias"] = np.insert(offset, at, bias)
    network.set_state_dict({name: paddle.to_tensor(np.asarray(value)) for name, value in state.items()})
    network.eval()
    return Detector(network, labels, detector.threshold)
