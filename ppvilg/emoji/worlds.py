"""The worlds that data can be rendered from: what a scene is in each, how it is drawn and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import captions, objects, render, scenes
from .captions import Captions
from .emoji128 import captions as captions128
from .emoji128 import glyphs as glyphs128
from .emoji128 import objects as objects128
from .emoji128 import packages as packages128
from .emoji128 import render as render128
from .emoji128 import scenes as scenes128
from .scenes import Scene

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class World:
    """What `prepare` asks of a world; every function depends on its arguments and the pictures of objects only.

    sample_scene: (seed, index, split, share of square pictures) -> scene. identity: what its data depend on, as it is
    written into their header, once everything it needs is there. licences: whose pictures objects are, or None.
    """

    sample_scene: Callable[[int, int, str, float], Scene]
    describe: Callable[[Scene, np.random.Generator], Captions]
    render: Callable[[Scene], tuple[Image.Image, list[Box]]]
    scene_is_held_out: Callable[[Scene], bool]
    identity: Callable[[], dict]
    licences: Callable[[], str] | None = None


def _identity128() -> dict:
    glyphs128.require_rasterizer()
    return {
        "world": "emoji128",
        "packages": {f"{each.name} {each.version}": packages128.check_package(each) for each in packages128.PACKAGES},
        "labels": [thing.label for thing in objects128.load_things()],
    }


WORLDS = {
    "emoji64": World(
        scenes.sample_scene,
        captions.describe,
        render.render,
        scenes.scene_is_held_out,
        lambda: {"font_sha256": objects.font_sha256(), "labels": [item.name for item in objects.load_objects()]},
    ),
    "emoji128": World(
        scenes128.sample_scene,
        captions128.describe,
        render128.render,
        scenes128.scene_is_held_out,
        _identity128,
        packages128.licences,
    ),
}


def world_by_name(name: str) -> World:
    """The world called `name`; ValueError names the ones there are."""
    if name not in WORLDS:
        raise ValueError(f"no world {name!r}; there are: {', '.join(WORLDS)}")
    return WORLDS[name]

