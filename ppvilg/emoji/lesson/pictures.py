"""A forty-first object: a folder of pictures whose names are their captions, and prompts that the folder lacks."""

from __future__ import annotations

import os
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from ..captions import NUMBERS, SUBJECT_ON_BACKGROUND
from ..objects import BACKGROUNDS, EmojiObject, load_objects, read_cldr_names, require_assets
from ..render import draw_emoji
from ..scenes import SHAPES

UNSEEN = ("红色", "绿色", "粉色")  # backgrounds that the pictures of a lesson do not have
SAID = "{bg}背景上的{a}"  # how all of them are said
SIZE = 48  # pixels of the longer side
_STREAM = 41


def new_object(emoji: str, measure: str = "只") -> EmojiObject:
    """An emoji that is none of the forty, with its names of CLDR.

    ValueError: it is one of them, or CLDR has no Chinese name for it.
    """
    require_assets()
    names, names_en = read_cldr_names("zh"), read_cldr_names("en")
    if emoji not in names:
        raise ValueError(f"{emoji!r} is no emoji with a Chinese name in CLDR: give one, such as 🦊")
    known = {item.emoji: item.name for item in load_objects()}
    if emoji in known:
        raise ValueError(f"{emoji} ({known[emoji]}) is one of the forty objects, which the model knows: give another")
    name, name_en = names[emoji].removesuffix("脸"), names_en[emoji].removesuffix(" face")
    plural_en = f"{name_en}{'es' if name_en.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
    return EmojiObject(emoji, "new", name, name_en, plural_en, measure)


def write_lesson(folder: str | os.PathLike, item: EmojiObject, count: int = 20, seed: int = 0) -> list[Path]:
    """`count` pictures of one object each into a new folder, captions as their names; gives the files.

    The folder appears whole or not at all. FileExistsError: it is there already.
    ValueError: a count of none.
    """
    if count < 1:
        raise ValueError(f"a lesson of {count} pictures teaches nothing; 10 to 30 are enough")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as partial:
        partial = Path(partial, "pictures")
        partial.mkdir()
        used: dict[str, int] = {}
        for number in range(count):
            caption, picture = _draw(item, number, np.random.default_rng([seed, _STREAM, number]))
            used[caption] = used.get(caption, 0) + 1
            picture.save(partial / f"{caption}{f' ({used[caption]})' if used[caption] > 1 else ''}.png")
        partial.rename(folder)
    return sorted(folder.iterdir())


def _draw(item: EmojiObject, number: int, rng: np.random.Generator) -> tuple[str, Image.Image]:
    """(caption, picture): backgrounds and shapes in turn, the place drawn from `rng`."""
    seen = [background for background in BACKGROUNDS if background.name not in UNSEEN]
    background = seen[number % len(seen)]
    width, height = SHAPES[0] if number % 3 else SHAPES[number // 3 % len(SHAPES)]
    picture = Image.new("RGB", (width, height), background.rgb)
    x, y = (8 * int(rng.integers((side - SIZE) // 8 + 1)) for side in (width, height))
    glyph = draw_emoji(item.emoji, SIZE)
    picture.paste(glyph, (x + (SIZE - glyph.width) // 2, y + (SIZE - glyph.height) // 2), glyph)
    return SAID.format(bg=background.name, a=phrase(item)), picture


def phrase(item: EmojiObject, number: int = 1) -> str:
    """The object counted with its measure word."""
    return f"{NUMBERS[number]}{item.measure}{item.name}"


def lesson_prompts(item: EmojiObject, count: int, seed: int = 0) -> list[dict]:
    """`count` prompts for one object, none of which captions a picture of the lesson; as `held_out_prompts`.

    Half are of backgrounds that the lesson lacks, half say those that it has in other words. ValueError: so many there
    are not.
    """
    asked = [
        (background.name, said, shape)
        for background, said, shape in product(BACKGROUNDS, sorted(set(SUBJECT_ON_BACKGROUND)), SHAPES)
        if background.name in UNSEEN or said != SAID
    ]
    rng = np.random.default_rng([seed, _STREAM])
    halves = [[each for each in asked if (each[0] in UNSEEN) == unseen] for unseen in (True, False)]
    wanted = (count // 2, count - count // 2)
    if any(number > len(half) for number, half in zip(wanted, halves)):
        raise ValueError(f"there are {len(halves[0])} and {len(halves[1])} prompts for {item.name}, not {count}")
    chosen = [half[i] for number, half in zip(wanted, halves) for i in sorted(rng.permutation(len(half))[:number])]
    return [_prompt(item, *each) for each in chosen]


def _prompt(item: EmojiObject, background: str, said: str, shape: tuple[int, int]) -> dict:
    width, height = shape
    return {
        "prompt": said.format(bg=background, a=phrase(item)),
        "prompt_en": f"{item.name_en}, {background}",
        "kind": "single",
        "background": background,
        "objects": [{"label": item.name, "label_en": item.name_en}],
        "relation": None,
        "count": 1,
        "width": width,
        "height": height,
    }
