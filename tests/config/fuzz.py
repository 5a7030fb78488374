"""Odd recipes for the one loader, one a call: files, bases and overrides are made from a random.Random and loaded.

A generator is a function (rng, folder) as in tests/data/fuzz.py. A recipe is read as it was written, or refused by one
sentence that names its file or override.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import importlib
import io
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml
from omegaconf import MISSING, OmegaConf

from ppvilg.config import ConfigError, Recipe, load, load_config
from ppvilg.evaluation.suite import SUITES
from tests.data.fuzz import mutated

LONGEST = 2000  # characters of a sentence
# Values as YAML: wrong types, numbers that are none, and everything that YAML and OmegaConf read as more than it says.
SCALARS = (
    "0", "1", "-1", "1.5", "2.0", "1e-3", "1E400", "1_000", "0o17", "017", "0x1F", "1:30", "+1", "-0.0", "9" * 30,
    "9" * 400,
    "9" * 5000, ".nan", "-.inf", ".inf", "nan", "NaN", "inf", "true", "yes", "off", "No", "null", "~", "''", '" "',
    "2026-11-25",
    "2026-11-25 10:00:00", "!!binary aGFsbG8=", "!!float 1", "!!str 5", "!!set {a, b}", "!!python/name:os.system",
    "!!python/object/apply:os.getcwd []", "!unknown x", "${seed}", "${output}", "${nope}", "${oc.env:HOME}",
    "${oc.env:PPVILG_NOT_THERE}", "${ppvilg:zoo}", "${ppvilg:}", "${a.b.c}", "'${'", "'$'", "'${oc.decode:1}'",
    "'${oc.create:[1]}'", "???", "'???'", "*nowhere", "猫", "'\\0'", '"\\0"', '"\\ud800"', '"\\uD83D\\uDE00"',
    '"a\\nb"', "'" + "长" * 3000 + "'", "|\n  a\n  b", ">-\n  a", "!!null x", "<<", "=", "- - 1", "/dev/zero", "/",
    "@", "`", "%TAG", "\u2028", "\ufeff1", "١٢", "1 000", "5 # five", "5#five", "a: b: c", "{", "[", "]", "'", '"',
)  # fmt: skip
COLLECTIONS = (
    "{}", "[]", "[[]]", "[null]", "[1, a]", "[[16, 16]]", "[[16, 16], [16, 16]]", "[[16, 16, 16]]", "[[.nan, 16]]",
    "[['16', 16]]", "[[99999999999, 16]]", "{a: 1}", "{a: {b: [c]}}", "{1: 2}", "{? [a]: b}", "{null: 1}", "{true: 1}",
    "{1.5: 1}", "{'': 1}", "{a.b: 1}", "{'a[0]': 1}", "{_base_: x}", "{a: 1, a: 2}", "&x [*x]", "&x {a: *x}",
    "[&x [1], *x]", "{<<: {a: 1}}", "{<<: 1}", "[true, false]", "['???']", "[${seed}]", "{猫: [猫]}", "[猫, 2]",
    "[" * 200 + "]" * 200, "[" * 3000, "{a: " * 200 + "1" + "}" * 200,
)  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gbk", "big5", "shift_jis", "latin-1", "cp037")
_LAUGHS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10 if i else ['x'] * 10)}]" for i in range(9)) + "\n"


def training_recipes(rng: random.Random, folder: Path) -> None:
    """A training recipe, its networks' settings and schedule checked as before the first stage."""
    recipe = _judged(rng, folder, Recipe, {"output": "out", "data": {"train": "a", "validation": "b"}}, load_config)
    if recipe is not None and rng.random() < 0.3:
        from ppvilg.engine.checks import check_settings

        try:
            check_settings(recipe)
        except ConfigError as error:
            _one_sentence(error)


def evaluation_recipes(rng: random.Random, folder: Path) -> None:
    """The recipe of a suite."""
    name = rng.choice(sorted(SUITES))
    schema = getattr(importlib.import_module(SUITES[name].module), SUITES[name].recipe)
    required = {field.name: "x" for field in dataclasses.fields(schema) if field.default == MISSING}
    _judged(rng, folder, schema, {"suite": name, **required}, functools.partial(load, schema))


GENERATORS = {"training recipes": training_recipes, "evaluation recipes": evaluation_recipes}


# ---- what is made ----


def _judged(rng: random.Random, folder: Path, schema: type, content: dict, read: Callable):
    """The recipe that is read of odd files and overrides, None where it is refused; what was typed is in it."""
    path = folder / rng.choice(("r.yml", "食谱 1.yml", "a\nb.yml", "r"))
    keys = _keys(schema)
    content, odd = _with_odd_values(rng, content, keys)
    whole = _write(rng, path, content)
    overrides = [_override(rng, keys) for _ in range(rng.choice((0, 0, 1, 2)))]
    try:
        recipe = read(path, overrides)
    except (ValueError, OSError) as error:
        text = str(error)
        _one_sentence(error)
        named = [str(folder), *(f"-o {each}"[:100] for each in overrides), *map(repr, overrides), *keys]
        assert any(name in text for name in named), f"nothing is named in {text!r}"
        return None
    changed = {key.partition("=")[0].strip() for key in overrides}
    for key, value in odd.items() if whole else ():
        if not any(key.startswith(each) or each.startswith(key) for each in changed):
            _assert_same(key, value, _value_at(recipe, key))
    return recipe


def _one_sentence(error: Exception) -> None:
    text = str(error)
    assert text.strip() and len(text) < LONGEST, f"{len(text)} characters: {text[:200]!r}"
    shown = re.sub(r"a\nb\.yml|base\.yml\n", "r.yml", text)
    assert "\n" not in shown, f"several lines: {text!r}"


@functools.lru_cache
def _keys(schema: type) -> list[str]:
    return sorted(_leaves(schema))


def _leaves(schema: type, prefix: str = "") -> Iterator[str]:
    config = OmegaConf.structured(schema)
    for key in config:
        node = config._get_node(key)
        if OmegaConf.is_dict(node) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
            yield from (f"{prefix}{key}.{inner}" for inner in _leaves(OmegaConf.get_type(node)))
        yield f"{prefix}{key}"


def _with_odd_values(rng: random.Random, content: dict, keys: Sequence[str]) -> tuple[str, dict]:
    """The recipe as YAML with up to three odd values, and those of them that can be looked up again."""
    lines, odd = [], {}
    for key in rng.sample(keys, rng.choice((0, 1, 1, 1, 2, 3))):
        if rng.random() < 0.05:
            key = rng.choice((f"{key}s", key.upper(), f"{key}.x", "_base_", "猫", "limits", "__class__"))
        value = rng.choice(SCALARS if rng.random() < 0.7 else COLLECTIONS)
        if _inside(content, key.partition(".")[0]) and "." in key:
            continue
        content = {name: each for name, each in content.items() if name != key}
        lines.append(_nested(key.split("."), value))
        with_value = _parsed(lines[-1])
        if with_value is not None:
            odd[key] = OmegaConf.select(with_value, key, throw_on_missing=False, default=MISSING)
    heads = [line.split(":")[0].strip() for line in lines]
    if len(set(heads)) < len(heads):  # YAML refuses a key that is there twice
        lines, odd = lines[:1], {key: odd[key] for key in list(odd)[:1] if key.startswith(heads[0])}
    content = {name: each for name, each in content.items() if name not in heads}
    return yaml.safe_dump(content, allow_unicode=True) + "\n".join(lines) + "\n", odd


def _inside(content: dict, key: str) -> bool:
    return isinstance(content.get(key), dict)


def _nested(parts: Sequence[str], value: str) -> str:
    if len(parts) == 1:
        return f"{parts[0]}: {value}"
    return f"{parts[0]}: {{{_nested(parts[1:], value)}}}" if "\n" not in value else f"{parts[0]}: {value}"


def _parsed(text: str):
    try:
        found = OmegaConf.load(io.StringIO(text))
        OmegaConf.resolve(found)
        return found
    except Exception:  # whatever the value does is for the loader to say
        return None


def _write(rng: random.Random, path: Path, text: str) -> bool:
    """The file, with bases that may go in circles, in an encoding of any kind; whether it says what it should."""
    kind = rng.random()
    if kind < 0.15:
        text = _with_bases(rng, path, text)
    elif kind < 0.2:
        text = rng.choice((_LAUGHS, "", "- a\n- b\n", "a", "---\n---\n", "%YAML 9.9\n---\n", "\t" + text, "\0",
                           "{" * 2000,
                           "a: " * 2000, "? a\n", text + text, "---\n" + text + "---\n" + text))  # fmt: skip
    if rng.random() < 0.2:
        text = text.replace("\n", rng.choice(("\r\n", "\r")))
    try:
        data = text.encode(rng.choice(ENCODINGS) if rng.random() < 0.1 else "utf-8", "surrogatepass")
    except (UnicodeEncodeError, LookupError):
        data = codecs.BOM_UTF8 + text.encode("utf-8", "surrogatepass")
    written = mutated(rng, data) if rng.random() < 0.15 else data
    path.write_bytes(written)
    return written == text.encode("utf-8", "surrogatepass")


def _with_bases(rng: random.Random, path: Path, text: str) -> str:
    folder = path.parent
    (folder / "base.yml").write_text("seed: 3\n" if "suite" not in text else "{}\n", encoding="utf-8")
    (folder / "loop.yml").write_text(f"_base_: {yaml.safe_dump(path.name).splitlines()[0]}\n", encoding="utf-8")
    for number in range(40):  # two ways to each of the next: 2^40 to the last
        following = f"[d{number + 1}.yml, ./d{number + 1}.yml]" if number < 39 else "[]"
        (folder / f"d{number}.yml").write_text(f"_base_: {following}\n", encoding="utf-8")
    for number in range(1200):
        (folder / f"c{number}.yml").write_text(f"_base_: c{number + 1}.yml\n" if number < 1199 else "{}\n")
        if rng.random() < 0.9:
            break
    (folder / "link.yml").symlink_to("link.yml")
    return f"_base_: {rng.choice(BASES)}\n{text}"


BASES = ("base.yml", "[base.yml, base.yml]", "loop.yml", "r.yml", "d0.yml", "c0.yml", "link.yml", ".", "..", "/",
         "''", "[]",
         "null", "3", "true", "{a: b}", "[[base.yml]]", "[null]", "nowhere.yml", "[base.yml, nowhere.yml]", "/dev/null",
         "${nope}", "${oc.env:HOME}", "'???'", '"\\0"', "'" + "a" * 300 + "'", "emoji64", "../../../../etc/passwd",
         '"base.yml\\n"', "'~/x.yml'")  # fmt: skip


def _override(rng: random.Random, keys: Sequence[str]) -> str:
    value = rng.choice(SCALARS if rng.random() < 0.7 else COLLECTIONS)
    key = rng.choice(keys)
    odd = (f"{key}", f"{key}=", f"={value}", f"{key}[0]={value}", f"{key}.x={value}", f"{key} = {value}",
           f".{key}={value}",
           f"{key}.={value}", f"{key}s={value}", f"_base_={value}", f"++{key}={value}", f"~{key}", f"{key}=={value}",
           "", "=", "猫=猫", "a=b=c", f"{key}\n={value}", f"train.experts={value}")  # fmt: skip
    return rng.choice(odd) if rng.random() < 0.25 else f"{key}={value}"


# ---- what is read ----


def _value_at(recipe, key: str):
    for part in key.split("."):
        recipe = recipe[part] if OmegaConf.is_config(recipe) or isinstance(recipe, dict) else getattr(recipe, part)
    return OmegaConf.to_container(recipe) if OmegaConf.is_config(recipe) else recipe


def _assert_same(key: str, given, found) -> None:
    """What was written is what is used; a whole number may become 1.0."""
    given = OmegaConf.to_container(given, resolve=False) if OmegaConf.is_config(given) else given
    if isinstance(given, dict) and isinstance(found, dict):
        for name in given:  # of a section the rest is defaults
            assert name in found or str(name) in found, f"{key}.{name} is lost"
        return
    if isinstance(given, str) and ("${" in given or given == MISSING) or dataclasses.is_dataclass(found):
        return
    if isinstance(given, (list, tuple)) and isinstance(found, (list, tuple)):
        assert len(given) == len(found), f"{key}: {given!r} became {found!r}"
        return
    if isinstance(given, str) and isinstance(found, str):  # a block of lines is written with its last line break
        given, found = given.rstrip("\n"), found.rstrip("\n")
    same = given == found and isinstance(given, bool) == isinstance(found, bool)
    same = same or (isinstance(given, int) and isinstance(found, float) and float(given) == found)
    same = same or str(given) == str(found) or (isinstance(given, str) and _number(given) == found)
    assert same, f"{key}: {given!r} became {found!r}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
