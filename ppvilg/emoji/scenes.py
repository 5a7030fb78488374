"""Scenes of the emoji world: what is where, drawn from (seed, index), and which combinations training never sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from .objects import BACKGROUNDS, load_objects

GRID = 8  # pixels; one latent cell of an autoencoder with f = 8
SHAPES = ((64, 64), (64, 96), (96, 64))  # (width, height)
SHAPE_SHARES = (0.70, 0.15, 0.15)
LAYOUT_SHARES = {"single": 0.40, "count": 0.25, "left": 0.15, "above": 0.15, "three": 0.05}
STYLES = ("像素风格", "水彩")
STYLE_SHARE = 0.085  # of singles and pairs, which is 6 % of everything
SMALL_SINGLE_SHARE = 0.25
SPLITS = ("train", "validation")

# Shares of the combinations that no training scene contains (object_background: besides one for every object).
HELD_OUT_SHARES = {"object_background": 0.03, "single": 0.04, "pair": 0.12, "count": 0.12}
RESERVED_SHARE = 0.03  # of the remaining scenes, which only validation uses


@dataclass(frozen=True)
class Placement:
    """An object in its square: left and top edge and side in pixels, all multiples of GRID."""

    name: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. Objects of "left", "above", rows and columns are in reading order."""

    width: int
    height: int
    background: str
    layout: str  # a key of LAYOUT_SHARES; "left" = first object left of the second
    arrangement: str  # "row", "column", "free"
    objects: tuple[Placement, ...]
    style: str | None = None


def stable_fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone: the same on every machine and in every version of Python."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@cache
def is_held_out(kind: str, *combination: object) -> bool:
    """The written rule of what training never sees; a combination is held out when its hash falls below a share.

    object_background (name, background): the object never stands on this background, whatever else is in the picture;
        of an object's backgrounds the one with the lowest hash is always held out, so that every object is asked for.
    single (name, background, position): not alone on this background at this one of nine coarse positions.
    pair (first, second, relation): first is never "left" of / "above" second, in a scene of two or of three objects.
    count (name, number, background): never 2 / 3 of this object on this background.
    """
    if kind not in HELD_OUT_SHARES:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(HELD_OUT_SHARES)}")
    fraction = stable_fraction("ppvilg emoji64 held out", kind, *combination)
    if kind == "object_background":
        others = (stable_fraction("ppvilg emoji64 held out", kind, combination[0], item.name) for item in BACKGROUNDS)
        return fraction < HELD_OUT_SHARES[kind] or fraction <= min(others)
    return fraction < HELD_OUT_SHARES[kind]


def coarse_position(scene: Scene, placement: Placement) -> str:
    """Which of nine places a square is in: "left", "middle" or "right", then "top", "middle" or "bottom"."""
    horizontal = np.sign(2 * placement.x + placement.size - scene.width)
    vertical = np.sign(2 * placement.y + placement.size - scene.height)
    return f"{('left', 'middle', 'right')[horizontal + 1]} {('top', 'middle', 'bottom')[vertical + 1]}"


def scene_combinations(scene: Scene) -> list[tuple]:
    """Every combination (arguments of `is_held_out`) that a scene shows."""
    names = [placement.name for placement in scene.objects]
    combinations = [("object_background", name, scene.background) for name in dict.fromkeys(names)]
    if scene.layout == "single":
        combinations.append(("single", names[0], scene.background, coarse_position(scene, scene.objects[0])))
    elif scene.layout == "count":
        combinations.append(("count", names[0], len(names), scene.background))
    else:
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
    identity = (scene.width, scene.height, scene.background, sorted(objects))
    return stable_fraction("ppvilg emoji64 reserved", *identity) < RESERVED_SHARE


def sample_scene(seed: int, index: int, split: str = "train", square_share: float = SHAPE_SHARES[0]) -> Scene:
    """Scene `index` of a split: "train" holds no held-out or reserved scene, "validation" holds half of each.

    square_share: of scenes 64 x 64; the other two shapes share the rest evenly.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    wants_held_out = split == "validation" and rng.random() < 0.5
    # Drawn before anything is refused: scenes of many combinations are refused more often, and would become rare.
    shares = SHAPE_SHARES if square_share == SHAPE_SHARES[0] else (square_share, *[(1 - square_share) / 2] * 2)
    width, height = SHAPES[rng.choice(len(SHAPES), p=shares)]
    layout = str(rng.choice(list(LAYOUT_SHARES), p=list(LAYOUT_SHARES.values())))
    while True:
        scene = draw_scene(rng, width, height, layout)
        held_out = scene_is_held_out(scene)
        if split == "train":
            accepted = not held_out and not is_reserved(scene)
        else:
            accepted = held_out if wants_held_out else not held_out and is_reserved(scene)
        if accepted:
            return scene


def draw_scene(rng: np.random.Generator, width: int, height: int, layout: str) -> Scene:
    """One scene of a shape and layout, without regard to splits."""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))].name
    if layout == "single":
        arrangement, squares = "free", [_place_single(rng, width, height)]
    elif layout == "left":
        arrangement, squares = "row", _place_pair_in_row(rng, width, height)
    elif layout == "above":
        # A column is a row seen with the axes exchanged.
        transposed = _place_pair_in_row(rng, height, width)
        arrangement, squares = "column", [(y, x, size) for x, y, size in transposed]
    else:
        number = 3 if layout == "three" else int(rng.integers(2, 4))
        arrangement, squares = _place_group(rng, width, height, number)
    objects = load_objects()
    if layout == "count":
        names = [objects[rng.integers(len(objects))].name] * len(squares)
    else:
        names = [objects[i].name for i in rng.choice(len(objects), size=len(squares), replace=False)]
    styled = layout in ("single", "left", "above") and rng.random() < STYLE_SHARE
    style = STYLES[rng.integers(len(STYLES))] if styled else None
    placements = tuple(Placement(name, *square) for name, square in zip(names, squares))
    return Scene(width, height, background, layout, arrangement, placements, style)


def _near_centre(rng: np.random.Generator, room: int) -> int:
    """An offset on the grid in [0, room], the middle most often."""
    offsets = np.arange(0, room + 1, GRID)
    weights = 1.0 / (1.0 + np.abs(offsets - room / 2) / GRID)
    return int(rng.choice(offsets, p=weights / weights.sum()))


def _place_single(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int]:
    size = 32 if rng.random() < SMALL_SINGLE_SHARE else 48
    return _near_centre(rng, width - size), _near_centre(rng, height - size), size


def _beside(rng: np.random.Generator, y: int, room: int) -> int:
    """A neighbour's offset across the axis: the same one or one grid step off."""
    return int(np.clip(y + GRID * rng.choice((-1, 0, 0, 1)), 0, room))


def _place_pair_in_row(rng: np.random.Generator, width: int, height: int) -> list[tuple[int, int, int]]:
    """Two squares side by side, a little apart where there is room."""
    size = 48 if width == 96 and rng.random() < 0.5 else 32
    slack = (width - 2 * size) // GRID
    left = int(rng.integers(0, slack // 2 + 1)) * GRID
    right = width - size - int(rng.integers(0, slack // 2 + 1)) * GRID
    y = _near_centre(rng, height - size)
    return [(left, y, size), (right, _beside(rng, y, height - size), size)]


def _place_group(rng: np.random.Generator, width: int, height: int, number: int) -> tuple[str, list]:
    """Two or three squares of 32 pixels as a row, a column, a diagonal (of two) or a triangle (of three)."""
    size = 32
    arrangements = ["free"]
    if width >= number * size:
        arrangements.append("row")
    if height >= number * size:
        arrangements.append("column")
    arrangement = str(rng.choice(arrangements))
    if arrangement == "free" and number == 2:
        if rng.random() < 0.5:
            return arrangement, [(0, 0, size), (width - size, height - size, size)]
        return arrangement, [(width - size, 0, size), (0, height - size, size)]
    if arrangement == "free":
        return arrangement, _place_triangle(rng, width, height, size)
    along, across = (width, height) if arrangement == "row" else (height, width)
    gap = int(rng.integers(0, (along - number * size) // ((number - 1) * GRID) + 1)) * GRID
    start = _near_centre(rng, along - number * size - (number - 1) * gap)
    base = _near_centre(rng, across - size)
    steps = [(start + i * (size + gap), _beside(rng, base, across - size)) for i in range(number)]
    squares = [(a, b, size) if arrangement == "row" else (b, a, size) for a, b in steps]
    return arrangement, squares


def _place_triangle(rng: np.random.Generator, width: int, height: int, size: int) -> list[tuple[int, int, int]]:
    """Two beside each other and one below or above them, in reading order."""
    left, _, _ = pair = (int(rng.integers(0, (width - 2 * size) // (2 * GRID) + 1)) * GRID, 0, size)
    beside = (width - size - left, 0, size)
    alone = (_near_centre(rng, width - size), height - size, size)
    if rng.random() < 0.5:
        return [pair, beside, alone]
    return [(alone[0], 0, size), (pair[0], height - size, size), (beside[0], height - size, size)]
