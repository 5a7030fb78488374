"""Scenes of the world of 128 pixels, drawn from (seed, index), and the combinations that training never sees."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np

from ..scenes import SPLITS, Placement, Scene, stable_fraction
from .objects import BACKGROUNDS, load_things
from .styles import SHARES, STYLES

GRID = 16  # pixels; one latent cell of an autoencoder with f = 16, which 128 pixels need on a small machine
SHAPES = ((128, 128), (128, 192), (192, 128))  # (width, height)
SHAPE_SHARES = (0.70, 0.15, 0.15)
LAYOUT_SHARES = {"single": 0.38, "count": 0.30, "left": 0.13, "above": 0.13, "three": 0.06}
NUMBER_SHARES = {2: 0.3, 3: 0.3, 4: 0.2, 5: 0.2}
SINGLE_SIZES = {64: 0.2, 96: 0.6, 112: 0.2}
GROUP_SIZES = (64, 48, 32)  # the largest that fits, or the next; pairs have room for more now and then
SMALLER_SHARE = 0.3
PAIR_SIZE = 96

# Rows of objects, first row on top, by their number.
ROWS = {
    2: ((2,), (1, 1)),
    3: ((3,), (1, 2), (2, 1), (1, 1, 1)),
    4: ((2, 2), (4,)),
    5: ((3, 2), (2, 3), (2, 1, 2)),
}

# Shares of the combinations that no training scene contains (object_background: besides one for every object).
HELD_OUT_SHARES = {"object_background": 0.03, "object_style": 0.06, "pair": 0.12, "count": 0.12}
RESERVED_SHARE = 0.02  # of the remaining scenes, which only validation uses
_RULE = "ppvilg emoji128 held out"


@cache
def is_held_out(kind: str, *combination: object) -> bool:
    """The written rule of what training never sees; a combination is held out when its hash falls below a share.

    object_background (name, background): the object never stands on this background, whatever else is in the picture;
        of an object's backgrounds the one with the lowest hash is always held out, so that every object is asked for.
    object_style (name, style): never in this style, but in the usual one, which is never held out.
    pair (first, second, relation): first is never "left" of / "above" second, in a scene of two or of three objects.
    count (name, number, background): never so many of this object on this background.
    """
    if kind not in HELD_OUT_SHARES:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(HELD_OUT_SHARES)}")
    if kind == "object_style" and combination[1] == STYLES[0].name:
        return False
    fraction = stable_fraction(_RULE, kind, *combination)
    if kind == "object_background":
        lowest = min(stable_fraction(_RULE, kind, combination[0], item.name) for item in BACKGROUNDS)
        return fraction < HELD_OUT_SHARES[kind] or fraction <= lowest
    return fraction < HELD_OUT_SHARES[kind]


def scene_combinations(scene: Scene) -> list[tuple]:
    """Every combination (arguments of `is_held_out`) that a scene shows."""
    names = [placement.name for placement in scene.objects]
    combinations = [("object_background", name, scene.background) for name in dict.fromkeys(names)]
    combinations += [("object_style", name, scene.style) for name in dict.fromkeys(names)]
    if scene.layout == "count":
        combinations.append(("count", names[0], len(names), scene.background))
    elif scene.layout != "single":
        for first, second in permutations(scene.objects, 2):
            if first.x + first.size <= second.x:
                combinations.append(("pair", first.name, second.name, "left"))
            if first.y + first.size <= second.y:
                combinations.append(("pair", first.name, second.name, "above"))
    return combinations


def scene_is_held_out(scene: Scene) -> bool:
    """True when any combination in the scene is held out of training."""
    return any(is_held_out(*combination) for combination in scene_combinations(scene))


def is_reserved(scene: Scene) -> bool:
    """True for the small share of ordinary scenes kept for validation, so that no training scene equals one of them."""
    objects = [(item.name, item.x, item.y, item.size) for item in scene.objects]
    identity = (scene.width, scene.height, scene.background, scene.style, sorted(objects))
    return stable_fraction("ppvilg emoji128 reserved", *identity) < RESERVED_SHARE


def sample_scene(seed: int, index: int, split: str = "train", square_share: float = SHAPE_SHARES[0]) -> Scene:
    """Scene `index` of a split: "train" holds no held-out or reserved scene, "validation" holds half of each.

    square_share: of square scenes; the other two shapes share the rest evenly.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 128])
    wants_held_out = split == "validation" and rng.random() < 0.5
    # Drawn before anything is refused: scenes of many combinations are refused more often, and would become rare.
    shares = (square_share, (1 - square_share) / 2, (1 - square_share) / 2)
    width, height = SHAPES[rng.choice(len(SHAPES), p=shares)]
    layout = _choose(rng, LAYOUT_SHARES)
    style = STYLES[rng.choice(len(STYLES), p=SHARES)].name
    number = {"single": 1, "left": 2, "above": 2, "three": 3}.get(layout) or _choose(rng, NUMBER_SHARES)
    while True:
        scene = draw_scene(rng, width, height, layout, number, style)
        held_out = scene_is_held_out(scene)
        if split == "train":
            accepted = not held_out and not is_reserved(scene)
        else:
            accepted = held_out if wants_held_out else not held_out and is_reserved(scene)
        if accepted:
            return scene


def _choose(rng: np.random.Generator, shares: dict):
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def draw_scene(rng: np.random.Generator, width: int, height: int, layout: str, number: int, style: str) -> Scene:
    """One scene of a shape, layout, number of objects and style, without regard to splits."""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))].name
    rows = {"single": (1,), "left": (2,), "above": (1, 1)}.get(layout) or _rows(rng, number, width, height)
    squares = place_rows(rng, rows, width, height)
    labels = [thing.label for thing in load_things()]
    if layout == "count":
        names = [labels[rng.integers(len(labels))]] * number
    else:
        names = [labels[i] for i in rng.choice(len(labels), size=number, replace=False)]
    arrangement = "row" if len(rows) == 1 else "column" if max(rows) == 1 else "free"
    placements = tuple(Placement(name, *square) for name, square in zip(names, squares))
    return Scene(width, height, background, layout, arrangement, placements, style)


def _rows(rng: np.random.Generator, number: int, width: int, height: int) -> tuple[int, ...]:
    fitting = [rows for rows in ROWS[number] if _largest(rows, width, height)]
    return fitting[rng.integers(len(fitting))]


def _largest(rows: tuple[int, ...], width: int, height: int) -> int | None:
    """The largest size of a group in which these rows fit."""
    return next((size for size in GROUP_SIZES if max(rows) * size <= width and len(rows) * size <= height), None)


def place_rows(
    rng: np.random.Generator, rows: tuple[int, ...], width: int, height: int
) -> list[tuple[int, int, int]]:
    """(left, top, side) of squares in rows, in reading order; none touches another, all edges are on the grid."""
    if rows == (1,):
        size = _choose(rng, SINGLE_SIZES)
        return [(_near_centre(rng, width - size), _near_centre(rng, height - size), size)]
    size = _largest(rows, width, height)
    if size == GROUP_SIZES[0] and rng.random() < SMALLER_SHARE:
        size = GROUP_SIZES[1]
    if sum(rows) == 2 and max(rows) * PAIR_SIZE <= width and len(rows) * PAIR_SIZE <= height and rng.random() < 0.5:
        size = PAIR_SIZE
    squares = []
    tops = _spread(rng, len(rows), size, height)
    for top, number in zip(tops, rows):
        for left in _spread(rng, number, size, width):
            # a neighbour in a single row may stand a little higher or lower
            shift = int(rng.choice((-GRID, 0, 0, GRID))) if len(rows) == 1 else 0
            squares.append((left, int(np.clip(top + shift, 0, height - size)), size))
    return squares


def _spread(rng: np.random.Generator, number: int, size: int, length: int) -> list[int]:
    """Offsets of `number` squares along an axis: evenly apart, as a whole near the middle."""
    slack = length - number * size
    gap = GRID * int(rng.integers(0, slack // ((number - 1) * GRID) + 1)) if number > 1 else 0
    start = _near_centre(rng, slack - gap * (number - 1))
    return [start + i * (size + gap) for i in range(number)]


def _near_centre(rng: np.random.Generator, room: int) -> int:
    """An offset on the grid in [0, room], the middle most often."""
    offsets = np.arange(0, room + 1, GRID)
    weights = 1.0 / (1.0 + np.abs(offsets - room / 2) / GRID)
    return int(rng.choice(offsets, p=weights / weights.sum()))
