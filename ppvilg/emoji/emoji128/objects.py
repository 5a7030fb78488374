"""The objects and backgrounds of the world of 128 pixels, by the names people call them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("objects.yml")


@dataclass(frozen=True)
class Thing:
    """One drawable object; the first of its names is its label."""

    emoji: str
    names: tuple[str, ...]
    names_en: tuple[str, ...]
    plural: str
    measure: str
    kinds: tuple[str, ...] = ()
    colour: str | None = None  # the same in every style, where one word is the truth

    @property
    def label(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Background:
    """A plain colour, or scenery: what captions call it, and how a thing is said to be on it.

    rgb: of a plain colour, soft so that objects stand out. on, on_en: phrases before or behind what stands there.
    """

    name: str
    name_en: str
    on: tuple[str, ...]
    on_en: tuple[str, ...]
    rgb: tuple[int, int, int] | None = None


def _plain(name: str, name_en: str, rgb: tuple[int, int, int]) -> Background:
    article = "an" if name_en[0] in "aeiou" else "a"
    return Background(name, name_en, (f"{name}背景上",), (f"on {article} {name_en} background",), rgb)


BACKGROUNDS = (
    _plain("白色", "white", (250, 250, 250)),
    _plain("灰色", "gray", (120, 120, 120)),
    _plain("黑色", "black", (32, 32, 32)),
    _plain("红色", "red", (200, 64, 78)),
    _plain("橙色", "orange", (246, 166, 92)),
    _plain("黄色", "yellow", (252, 232, 124)),
    _plain("绿色", "green", (136, 204, 128)),
    _plain("蓝色", "blue", (104, 164, 236)),
    _plain("紫色", "purple", (164, 120, 212)),
    _plain("粉色", "pink", (252, 190, 212)),
    Background("蓝天", "blue sky", ("蓝天下", "蓝天白云下"), ("under a blue sky",)),
    Background("草地", "grass", ("草地上", "绿草地上"), ("on the grass", "in a meadow")),
    Background("星空", "starry sky", ("星空下", "夜空下"), ("under a starry sky", "at night")),
    Background("沙滩", "beach", ("沙滩上", "海边的沙滩上"), ("on the beach",)),
    Background("雪地", "snow", ("雪地上", "雪地里"), ("in the snow",)),
)


def background_by_name(name: str) -> Background:
    """The background called `name`; KeyError names the ones there are."""
    for background in BACKGROUNDS:
        if background.name == name:
            return background
    raise KeyError(f"no background {name!r}; there are: {', '.join(each.name for each in BACKGROUNDS)}")


@lru_cache(maxsize=1)
def load_things() -> tuple[Thing, ...]:
    """The eighty objects in a fixed order."""
    things = []
    for row in yaml.safe_load(TABLE.read_text(encoding="utf-8")):
        names, names_en = tuple(row["names"]), tuple(row["names_en"])
        plural = row.get("plural", names_en[0] + "s")
        kinds = tuple(row.get("kinds", ()))
        things.append(Thing(row["emoji"], names, names_en, plural, row["measure"], kinds, row.get("colour")))
    return tuple(things)


@lru_cache(maxsize=1)
def _by_label() -> dict[str, Thing]:
    return {thing.label: thing for thing in load_things()}


def thing_by_label(label: str) -> Thing:
    """The object whose first Chinese name is `label`; KeyError names the ones there are."""
    try:
        return _by_label()[label]
    except KeyError:
        raise KeyError(f"no object named {label!r}; there are: {', '.join(_by_label())}") from None
