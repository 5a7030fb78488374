"""Scene -> sentences as people write them, Chinese and English, and "generated" ones; test prompts."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from ..captions import Captions, distinct_prompts, with_article
from ..scenes import Scene
from . import phrases
from .objects import BACKGROUNDS, Background, background_by_name, load_things, thing_by_label
from .scenes import SHAPE_SHARES, SHAPES, is_held_out
from .styles import STYLES, USUAL, DrawingStyle, style_by_name

BACKGROUND_SHARE = 0.75  # captions that name the background
USUAL_STYLE_SHARE = 0.15  # of pictures in the usual style, whose caption says so; other styles are always said
COLOUR_SHARE = 0.15  # objects with a colour of their own whose caption says so
ADJECTIVE_SHARE = 0.15
SYNONYM_SHARE = 0.35  # of objects that have other names
KIND_SHARE = 0.04  # single objects called by their kind, such as 花
REQUEST_SHARE = 0.35
BARE_SHARE = 0.15  # single objects without a number
OMISSION_SHARE = 0.2  # of scenes of different objects
WEB_SHARE = 0.06
ENGLISH_COLOURS = {each.name: each.name_en for each in BACKGROUNDS} | {"棕色": "brown", "金色": "golden"}


def describe(scene: Scene, rng: np.random.Generator) -> Captions:
    """Sentences for a scene; a function of the scene and the state of `rng`."""
    labels = [placement.name for placement in scene.objects]
    number = len(labels) if scene.layout == "count" else 1
    labels = labels[:1] if scene.layout == "count" else labels
    nouns, nouns_en = zip(*(_nouns(label, number, scene, rng) for label in labels))
    omitted = int(rng.integers(len(labels))) if len(labels) > 1 and rng.random() < OMISSION_SHARE else None
    background = background_by_name(scene.background) if rng.random() < BACKGROUND_SHARE else None
    style = style_by_name(scene.style)
    style = None if style.name == USUAL and rng.random() >= USUAL_STYLE_SHARE else style
    zh = _style(_compose(scene, nouns, background, omitted, rng), style, rng)
    en = _style_en(_compose_en(scene, nouns_en, background, rng), style, rng)
    if rng.random() < WEB_SHARE:
        zh, en = f"{zh} {_pick(rng, phrases.WEB_WORDS)}", f"{en} {_pick(rng, phrases.WEB_WORDS_EN)}"
    generated = _compose_generated(scene, [noun_phrase(label, number) for label in labels], rng)
    if scene.style != USUAL:
        generated = f"{generated}，{scene.style}"
    return Captions(zh, en, generated, () if omitted is None else (labels[omitted],))


def noun_phrase(label: str, number: int = 1, before: str = "", name: str | None = None) -> str:
    """The object counted with its measure word: 三只企鹅, 一辆黄色的出租车."""
    return f"{phrases.NUMBERS[number]}{thing_by_label(label).measure}{before}{name or label}"


def noun_phrase_en(label: str, number: int = 1, before: str = "", name: str | None = None) -> str:
    """English name with its article or number: "a yellow taxi", "three penguins"."""
    thing = thing_by_label(label)
    if number > 1:
        return f"{phrases.NUMBERS_EN[number]} {before}{thing.plural}"
    return with_article(before + (name or thing.names_en[0]))


def _pick(rng: np.random.Generator, options: tuple):
    return options[rng.integers(len(options))]


def _nouns(label: str, number: int, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Chinese and English phrase of one object, with now and then another name, an adjective or its own colour."""
    thing, name, name_en = thing_by_label(label), label, None
    alone, has_colours = scene.layout == "single", style_by_name(scene.style).glyph_set != "line"
    if rng.random() < SYNONYM_SHARE:
        name, name_en = _pick(rng, thing.names), _pick(rng, thing.names_en)
    if alone and thing.kinds and rng.random() < KIND_SHARE:
        name = _pick(rng, thing.kinds)
    before = before_en = ""
    if rng.random() < ADJECTIVE_SHARE:
        choice = rng.integers(len(phrases.ADJECTIVES))
        before, before_en = phrases.ADJECTIVES[choice], phrases.ADJECTIVES_EN[choice] + " "
    elif has_colours and thing.colour and rng.random() < COLOUR_SHARE and thing.colour[0] not in name:
        before, before_en = thing.colour + _pick(rng, ("", "的")), ENGLISH_COLOURS[thing.colour] + " "
    if alone and rng.random() < BARE_SHARE:
        return before + name, before_en + (name_en or thing.names_en[0])
    return noun_phrase(label, number, before, name), noun_phrase_en(label, number, before_en, name_en)


def _enumerate(parts, comma: str, conjunction: str) -> str:
    return comma.join(parts[:-1]) + conjunction + parts[-1]


def _compose(scene: Scene, nouns, background: Background | None, omitted: int | None, rng: np.random.Generator) -> str:
    request = rng.random()
    if len(nouns) == 1:
        core = nouns[0] if background is None else _subject_on(scene, nouns[0], background, rng)
        return _asked(core, request, rng, background is None)
    if len(nouns) == 2 and omitted is not None:
        kept = 1 - omitted
        core = phrases.HALF_PAIRS[scene.layout][kept].format(nouns[kept])
    elif len(nouns) == 2:
        core = _pick(rng, phrases.PAIRS[scene.layout]).format(a=nouns[0], b=nouns[1])
    else:
        kept = [noun for i, noun in enumerate(nouns) if i != omitted]
        arrangement = "free" if omitted is not None else scene.arrangement
        core = phrases.LISTS[arrangement].format(list=_enumerate(kept, "、", "和"))
    if background is not None:
        core = _pick(rng, phrases.CORE_ON).format(core=core, on=_pick(rng, background.on), bg=background.name)
    return core


def _subject_on(scene: Scene, noun: str, background: Background, rng: np.random.Generator) -> str:
    if background.rgb is not None:
        templates = phrases.ON_COLOUR
    elif "动物" in thing_by_label(scene.objects[0].name).kinds:
        templates = phrases.ON_SCENERY + phrases.MOVING
    else:
        templates = phrases.ON_SCENERY
    return _pick(rng, templates).format(a=noun, on=_pick(rng, background.on), bg=background.name)


def _asked(core: str, request: float, rng: np.random.Generator, plain: bool) -> str:
    """What is to be seen, as a request now and then; without a background also as a statement."""
    if request >= REQUEST_SHARE:
        return core
    return _pick(rng, phrases.REQUESTS + (phrases.STATEMENTS if plain else ())).format(core=core)


def _compose_en(scene: Scene, nouns, background: Background | None, rng: np.random.Generator) -> str:
    if len(nouns) == 1:
        core = nouns[0]
    elif len(nouns) == 2:
        core = _pick(rng, phrases.PAIRS_EN[scene.layout]).format(a=nouns[0], b=nouns[1])
    else:
        core = phrases.LISTS_EN[scene.arrangement].format(list=_enumerate(nouns, ", ", " and "))
    if background is not None:
        core = f"{core}{', ' if len(nouns) > 1 else ' '}{_pick(rng, background.on_en)}"
    if len(nouns) == 1 and rng.random() < REQUEST_SHARE:
        core = _pick(rng, phrases.REQUESTS_EN).format(core=core)
    return core


def _style(core: str, style: DrawingStyle | None, rng: np.random.Generator) -> str:
    if style is None:
        return core
    return _pick(rng, phrases.STYLED).format(core=core, style=_pick(rng, style.words))


def _style_en(core: str, style: DrawingStyle | None, rng: np.random.Generator) -> str:
    if style is None:
        return core
    return _pick(rng, phrases.STYLED_EN).format(core=core, style=_pick(rng, style.words_en))


def _compose_generated(scene: Scene, nouns: list[str], rng: np.random.Generator) -> str:
    if len(nouns) == 2:
        core = phrases.GENERATED_PAIRS[scene.layout].format(a=nouns[0], b=nouns[1])
    else:
        core = nouns[0] if len(nouns) == 1 else _enumerate(nouns, "、", "以及")
    return _pick(rng, phrases.GENERATED).format(core=core, bg=scene.background)


# ---- test prompts ----

KINDS = ("single", "pair", "count", "style")


def held_out_combinations(kind: str) -> list[tuple]:
    """All (labels, background, relation, number, style) that a prompt can say and training never saw."""
    labels = [thing.label for thing in load_things()]
    backgrounds = [each.name for each in BACKGROUNDS]
    if kind == "single":
        pairs = product(labels, backgrounds)
        return [((n,), b, None, 1, USUAL) for n, b in pairs if is_held_out("object_background", n, b)]
    if kind == "count":
        triples = product(labels, (2, 3, 4, 5), backgrounds)
        return [((n,), b, None, k, USUAL) for n, k, b in triples if is_held_out("count", n, k, b)]
    if kind == "pair":
        pairs = product(permutations(labels, 2), ("left", "above"))
        return [(pair, None, relation, 1, USUAL) for pair, relation in pairs if is_held_out("pair", *pair, relation)]
    if kind == "style":
        pairs = product(labels, STYLES)
        return [((n,), None, None, 1, s.name) for n, s in pairs if is_held_out("object_style", n, s.name)]
    raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")


def held_out_prompts(kind: str, count: int, seed: int = 0) -> list[dict]:
    """`count` prompts of `kind` (one of KINDS) about combinations that are held out of training, no two alike.

    Each is {"prompt", "prompt_en", "kind", "background", "style", "objects": [{"label", "label_en"}, ...] (one entry
    per object to be seen, first = left or top), "relation": "left" | "above" | None, "count", "width", "height"}.
    Every prompt names its background. ValueError when there are not so many.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind) if kind in KINDS else 0, 128])
    return distinct_prompts(kind, count, held_out_combinations(kind), _make_prompt, rng)


def _make_prompt(kind: str, combination: tuple, rng: np.random.Generator) -> dict:
    labels, name, relation, number, style_name = combination
    background = background_by_name(name) if name else _pick(rng, BACKGROUNDS)
    width, height = SHAPES[rng.choice(len(SHAPES), p=SHAPE_SHARES)]
    shown = [label for label in labels for _ in range(number)]
    style = None if style_name == USUAL else style_by_name(style_name)
    scene = Scene(width, height, background.name, relation or kind, "free", (), style_name)
    zh = [noun_phrase(label, number) for label in labels]
    en = [noun_phrase_en(label, number) for label in labels]
    if relation:
        prompt, prompt_en = (_compose(scene, zh, background, None, rng), _compose_en(scene, en, background, rng))
    else:
        templates = phrases.ON_SCENERY if background.rgb is None else phrases.ON_COLOUR
        prompt = _pick(rng, templates).format(a=zh[0], on=_pick(rng, background.on), bg=background.name)
        prompt_en = f"{en[0]} {_pick(rng, background.on_en)}"
    return {
        "prompt": _style(prompt, style, rng),
        "prompt_en": _style_en(prompt_en, style, rng),
        "kind": kind,
        "background": background.name,
        "style": style_name,
        "objects": [{"label": label, "label_en": thing_by_label(label).names_en[0]} for label in shown],
        "relation": relation,
        "count": len(shown),
        "width": width,
        "height": height,
    }
