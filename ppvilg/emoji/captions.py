"""Scene -> sentences: Chinese with measure words, English, and "generated" ones in another wording; test prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from .objects import BACKGROUNDS, COLOURS_EN, load_objects, object_by_name
from .scenes import SHAPE_SHARES, SHAPES, Scene, is_held_out

BACKGROUND_SHARE = 0.8  # captions that name the background
COLOUR_SHARE = 0.2  # objects with a colour of their own whose caption says so
OMISSION_SHARE = 0.28  # of scenes of different objects, which is 10 % of everything

NUMBERS = {1: "一", 2: "两", 3: "三"}
NUMBERS_EN = {2: "two", 3: "three"}
STYLES_EN = {"像素风格": "pixel art style", "水彩": "watercolor style"}

# {a}, {b}: noun phrases; {core}: what is where; {bg}: colour word of the background.
SUBJECT = ("{a}", "{a}", "图里有{a}", "这里有{a}")
SUBJECT_ON_BACKGROUND = (
    "{bg}背景上的{a}", "{bg}背景上的{a}", "{bg}背景上有{a}", "{a}，背景是{bg}的", "{a}，{bg}背景", "{bg}的背景上有{a}",
)  # fmt: skip
PAIRS = {
    "left": (
        "左边是{a}，右边是{b}", "左边是{a}，右边是{b}", "左边有{a}，右边有{b}", "{a}在{b}的左边", "{b}在{a}的右边",
    ),
    "above": (
        "上面是{a}，下面是{b}", "上面是{a}，下面是{b}", "上面有{a}，下面有{b}", "{a}在{b}的上面", "{b}在{a}的下面",
    ),
}  # fmt: skip
HALF_PAIRS = {"left": ("左边是{}", "右边是{}"), "above": ("上面是{}", "下面是{}")}
LISTS = {"row": "从左到右是{list}", "column": "从上到下是{list}", "free": "图里有{list}"}
CORE_ON_BACKGROUND = ("{bg}背景上，{core}", "{core}，背景是{bg}的", "{core}，{bg}背景")
GENERATED = ("图中有{core}，背景为{bg}", "画面上是{core}，背景为{bg}", "这张图片展示了{core}，背景为{bg}")
GENERATED_PAIRS = {"left": "{a}和位于其右侧的{b}", "above": "{a}和位于其下方的{b}"}

SUBJECT_EN = ("{a}", "a picture of {a}")
SUBJECT_ON_BACKGROUND_EN = ("{a} on {bg} background", "{a} on {bg} background", "{a} with {bg} background")
PAIRS_EN = {
    "left": ("{a} on the left and {b} on the right", "{a} to the left of {b}", "{b} to the right of {a}"),
    "above": ("{a} at the top and {b} at the bottom", "{a} above {b}", "{b} below {a}"),
}
LISTS_EN = {"row": "from left to right: {list}", "column": "from top to bottom: {list}", "free": "{list}"}


@dataclass(frozen=True)
class Captions:
    """The three sentences of a picture and the names of the objects that `zh` leaves out."""

    zh: str
    en: str
    generated: str
    omitted: tuple[str, ...] = ()


def noun_phrase(name: str, number: int = 1, colour: str = "") -> str:
    """`name` counted with its measure word: 三只企鹅, 一辆黄色的出租车."""
    return f"{NUMBERS[number]}{object_by_name(name).measure}{colour}{name}"


def noun_phrase_en(name: str, number: int = 1, colour: str = "") -> str:
    """English name of the object called `name`, with its article or number: "a yellow taxi", "three penguins"."""
    emoji_object = object_by_name(name)
    if number > 1:
        return f"{NUMBERS_EN[number]} {colour}{emoji_object.plural_en}"
    return with_article(colour + emoji_object.name_en)


def with_article(words: str) -> str:
    """English words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene, rng: np.random.Generator) -> Captions:
    """Sentences for a scene; a function of the scene and the state of `rng`."""
    names = [placement.name for placement in scene.objects]
    number = len(names) if scene.layout == "count" else 1
    names = names[:1] if scene.layout == "count" else names
    phrases, phrases_en = zip(*(_phrases(name, number, rng) for name in names))
    omitted = None
    if len(names) > 1 and rng.random() < OMISSION_SHARE:
        omitted = int(rng.integers(len(names)))
    background = scene.background if rng.random() < BACKGROUND_SHARE else None
    zh = _compose(scene, phrases, background, omitted, rng)
    en = _compose_en(scene, phrases_en, background, rng)
    generated = _compose_generated(scene, [noun_phrase(name, number) for name in names], rng)
    if scene.style is not None:
        zh, generated = f"{zh}，{scene.style}", f"{generated}，{scene.style}"
        en = f"{en}, {STYLES_EN[scene.style]}"
    return Captions(zh, en, generated, () if omitted is None else (names[omitted],))


def _pick(rng: np.random.Generator, templates: tuple[str, ...]) -> str:
    return templates[rng.integers(len(templates))]


def _phrases(name: str, number: int, rng: np.random.Generator) -> tuple[str, str]:
    """Chinese and English phrase; now and then with the object's own colour."""
    colour = object_by_name(name).colour
    if colour is None or rng.random() >= COLOUR_SHARE:
        return noun_phrase(name, number), noun_phrase_en(name, number)
    colour_zh = colour + _pick(rng, ("", "的"))
    return noun_phrase(name, number, colour_zh), noun_phrase_en(name, number, COLOURS_EN[colour] + " ")


def _enumerate(phrases: list[str] | tuple[str, ...], comma: str, conjunction: str) -> str:
    return comma.join(phrases[:-1]) + conjunction + phrases[-1]


def _compose(scene: Scene, phrases, background: str | None, omitted: int | None, rng: np.random.Generator) -> str:
    if len(phrases) == 1:
        templates = SUBJECT if background is None else SUBJECT_ON_BACKGROUND
        return _pick(rng, templates).format(a=phrases[0], bg=background)
    if len(phrases) == 2 and omitted is not None:
        kept = 1 - omitted
        core = HALF_PAIRS[scene.layout][kept].format(phrases[kept])
    elif len(phrases) == 2:
        core = _pick(rng, PAIRS[scene.layout]).format(a=phrases[0], b=phrases[1])
    elif omitted is not None:
        core = LISTS["free"].format(list=_enumerate([p for i, p in enumerate(phrases) if i != omitted], "、", "和"))
    else:
        core = LISTS[scene.arrangement].format(list=_enumerate(phrases, "、", "和"))
    return core if background is None else _pick(rng, CORE_ON_BACKGROUND).format(core=core, bg=background)


def _compose_en(scene: Scene, phrases, background: str | None, rng: np.random.Generator) -> str:
    background = None if background is None else with_article(COLOURS_EN[background])
    if len(phrases) == 1:
        templates = SUBJECT_EN if background is None else SUBJECT_ON_BACKGROUND_EN
        return _pick(rng, templates).format(a=phrases[0], bg=background)
    if len(phrases) == 2:
        core = _pick(rng, PAIRS_EN[scene.layout]).format(a=phrases[0], b=phrases[1])
    else:
        core = LISTS_EN[scene.arrangement].format(list=_enumerate(phrases, ", ", " and "))
    return core if background is None else f"{core}, on {background} background"


def _compose_generated(scene: Scene, phrases: list[str], rng: np.random.Generator) -> str:
    if len(phrases) == 2:
        core = GENERATED_PAIRS[scene.layout].format(a=phrases[0], b=phrases[1])
    elif len(phrases) == 3:
        core = _enumerate(phrases, "、", "以及")
    else:
        core = phrases[0]
    return _pick(rng, GENERATED).format(core=core, bg=scene.background)


def held_out_combinations(kind: str) -> list[tuple]:
    """All (names, background, relation, number) that a prompt can say and training never saw."""
    names = [item.name for item in load_objects()]
    backgrounds = [item.name for item in BACKGROUNDS]
    if kind == "single":
        pairs = product(names, backgrounds)
        return [((n,), b, None, 1) for n, b in pairs if is_held_out("object_background", n, b)]
    if kind == "count":
        triples = product(names, (2, 3), backgrounds)
        return [((n,), b, None, k) for n, k, b in triples if is_held_out("count", n, k, b)]
    if kind == "pair":
        pairs = product(permutations(names, 2), ("left", "above"))
        return [(pair, None, relation, 1) for pair, relation in pairs if is_held_out("pair", *pair, relation)]
    raise ValueError(f"kind {kind!r} is not one of single, pair, count")


def held_out_prompts(kind: str, count: int, seed: int = 0) -> list[dict]:
    """`count` prompts of `kind` ("single", "pair", "count") about combinations that are held out of training.

    Each is {"prompt", "prompt_en", "kind", "background", "objects": [{"label", "label_en"}, ...] (one entry per object
    to be seen, first = left or top), "relation": "left" | "above" | None, "count", "width", "height"}. Every prompt
    names its background. No (prompt, shape) occurs twice; ValueError when there are not so many.
    """
    rng = np.random.default_rng([seed, len(kind), 64])
    return distinct_prompts(kind, count, held_out_combinations(kind), _make_prompt, rng)


def distinct_prompts(
    kind: str, count: int, combinations: list[tuple], make: Callable[..., dict], rng: np.random.Generator
) -> list[dict]:
    """`count` results of make(kind, combination, rng), no two with one prompt and shape; ValueError when too few.

    Every combination comes once before any comes again.
    """
    prompts, seen, fruitless = [], set(), 0
    order: list[int] = []
    while len(prompts) < count:
        if not order:
            order = list(rng.permutation(len(combinations)))
        prompt = make(kind, combinations[order.pop()], rng)
        identity = (prompt["prompt"], prompt["width"], prompt["height"])
        fruitless = fruitless + 1 if identity in seen else 0
        if fruitless > 1000:
            raise ValueError(f"only {len(prompts)} different held-out prompts of kind {kind!r}, not {count}")
        if identity not in seen:
            seen.add(identity)
            prompts.append(prompt)
    return prompts


def _make_prompt(kind: str, combination: tuple, rng: np.random.Generator) -> dict:
    names, background, relation, number = combination
    if background is None:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))].name
    width, height = SHAPES[rng.choice(len(SHAPES), p=SHAPE_SHARES)]
    phrases = [noun_phrase(name, number) for name in names]
    phrases_en = [noun_phrase_en(name, number) for name in names]
    scene = Scene(width, height, background, relation or kind, "free", ())
    labels = [name for name in names for _ in range(number)]
    return {
        "prompt": _compose(scene, phrases, background, None, rng),
        "prompt_en": _compose_en(scene, phrases_en, background, rng),
        "kind": kind,
        "background": background,
        "objects": [{"label": name, "label_en": object_by_name(name).name_en} for name in labels],
        "relation": relation,
        "count": len(labels),
        "width": width,
        "height": height,
    }
