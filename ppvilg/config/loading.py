"""The one loader of recipes, whatever their schema."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.nodes import BooleanNode, StringNode

from ppvilg.files import find_shipped, read_text, shipped_recipes

from .limits import ConfigError, check_values, one_line, unknown_key

with warnings.catch_warnings():  # its newer name meant something else in 2.3
    warnings.simplefilter("ignore")
    # ${ppvilg:zoo/emoji64/vae} in a recipe: what comes with this package, wherever it is installed.
    OmegaConf.register_new_resolver("ppvilg", lambda path: str(Path(__file__).parents[1] / path), replace=True)

Schema = TypeVar("Schema")
Origin = tuple[str, Any]  # what a file or override is called in messages, and what it says

_MOST_FILES, _MOST_VALUES = 256, 100_000  # of one recipe; more are a mistake, and would take all memory
# What OmegaConf answers to odd values with. OverflowError: a whole number that no float can be.
_UNREADABLE = (OmegaConfBaseException, TypeError, ValueError, OverflowError, RecursionError)


def load(schema: type[Schema], path: str | Path | None, overrides: Sequence[str] = ()) -> Schema:
    """An instance of the dataclass `schema`: its defaults, then a recipe's ``_base_`` files, the recipe, the overrides.

    Raises:
        ConfigError: unknown key, no value, one of the wrong type, out of its limits, or refused by the dataclass.
        FileNotFoundError: the recipe or one of its bases is not there.
    """
    config = read(schema, path, overrides)
    try:
        return OmegaConf.to_object(config)
    except ValueError as error:
        raise ConfigError(one_line(f"{path}: {error}" if path else error)) from error


def read(schema: type, path: str | Path | None, overrides: Sequence[str] = ()) -> DictConfig:
    """What `load` reads, as OmegaConf's read-only configuration; errors as `load` but for those of the dataclass."""
    origins = [] if path is None else read_with_bases(Path(path))
    config = OmegaConf.structured(schema)
    for origin in origins:
        config = _merge(config, *origin)
    config, given = _merge_overrides(config, overrides)
    origins += given
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            _let_write(config)  # frozen dataclasses do not
            OmegaConf.resolve(config)
            check_values(config)
    except ConfigError as error:
        raise ConfigError(f"{_giver(error.key, origins) or path}: {error}", error.key) from error
    except _UNREADABLE as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{_giver(key, origins) or path}: {f'{key}: ' if key else ''}{_first_line(error)}") from error
    if missing:
        raise ConfigError(f"{path}: no value for {', '.join(missing)}; set it in the recipe or by -o {missing[0]}=...")
    OmegaConf.set_readonly(config, True)
    return config


def read_with_bases(path: Path) -> list[Origin]:
    """The files of a recipe in the order in which they are merged: bases first, later ones over earlier ones."""
    files: list[Origin] = []
    _add_with_bases(path, (), files)
    return files


def _add_with_bases(named: Path, above: tuple[Path, ...], files: list[Origin]) -> None:
    path = _find(named, above)
    if path in above:
        raise ConfigError(f"{path}: _base_ files refer to each other in a circle")
    if len(above) + len(files) >= _MOST_FILES:
        raise ConfigError(f"{above[0]}: _base_ files refer to each other more than {_MOST_FILES} times; join some")
    node = _parse_file(path)
    bases = OmegaConf.to_container(node).get("_base_") or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(each, str) for each in bases):
        raise ConfigError(f"{path}: _base_ is the name of a recipe or a list of names, found {one_line(bases)}")
    for base in bases:
        _add_with_bases(Path(base), (*above, path), files)
    if "_base_" in node.keys():  # noqa: SIM118 (`in node` would deny one without a value)
        del node["_base_"]
    files.append((str(path), node))


def _find(named: Path, above: tuple[Path, ...]) -> Path:
    """The file of a recipe; a name that no file can have is none that is there."""
    by = f" (named as _base_ in {above[-1]})" if above else ""
    path = named
    try:
        path = find_shipped(named, above[-1].parent if above else ".").resolve()
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise FileNotFoundError(f"no recipe at {one_line(named)}{by}: {one_line(error)}") from error
    raise FileNotFoundError(f"no recipe at {path}{by}; with ppvilg come {', '.join(shipped_recipes())}")


def _let_write(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node if OmegaConf.is_dict(node) else ():
        child = node._get_node(key)
        if OmegaConf.is_config(child):
            _let_write(child)


def _parse_file(path: Path) -> DictConfig:
    try:
        text = read_text(path)
        _check_aliases(text)
        node = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OSError, *_UNREADABLE) as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{where}not readable as YAML: {one_line(error)}") from error
    if not OmegaConf.is_dict(node):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, found {type(node).__name__}")
    return node


def _check_aliases(text: str) -> None:
    """ValueError where aliases stand for more than memory holds, or for what they are a part of."""
    sizes: dict[int, float] = {}

    def size(node: yaml.Node | None) -> float:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # until it is known: what holds itself has no size
            inner = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*node.value)
            sizes[id(node)] = 1 + sum(map(size, inner))
        return sizes[id(node)]

    if size(yaml.compose(text, Loader=yaml.SafeLoader)) > _MOST_VALUES:
        raise ValueError(f"its aliases (*name) stand for more than {_MOST_VALUES} values, or for themselves")


def _parse_override(config: DictConfig, override: str) -> Origin:
    """``a.b=value``; a value that is declared as text is taken as it was typed, any other as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[^.\s\[\]]+(\.[^.\s\[\]]+)*", key):
        raise ConfigError(f"override {one_line(repr(override))} is not of the form a.b=value")
    origin = f"-o {one_line(override)}"
    if text in ("", MISSING):
        raise ConfigError(f"{origin}: there is no value behind the =; write null for none")
    if _is_text(config, key) and text not in ("null", "~") and text[0] not in "'\"":
        node = OmegaConf.create()
        OmegaConf.update(node, key, text)
        return origin, node
    try:
        _check_aliases(text)
        return origin, OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, *_UNREADABLE) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}") from error


def _merge_overrides(config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[Origin]]:
    """The configuration with all overrides, and what each says.

    A merge copies the whole configuration, so those that cannot meet (no key below another) are merged in one.
    """
    keys = [f"{override.partition('=')[0]}." for override in overrides]
    apart = not any(a.startswith(b) for i, a in enumerate(keys) for j, b in enumerate(keys) if i != j)
    if apart and len(overrides) > 1:
        origins = [_parse_override(config, override) for override in overrides]
        for origin in origins:
            _check_keys(config, origin[1], "", origin[0])
        try:
            return OmegaConf.merge(config, *(node for _, node in origins)), origins
        except _UNREADABLE:
            pass  # below, one after another, the one at fault is named
    origins = []
    for override in overrides:
        origins.append(_parse_override(config, override))
        config = _merge(config, *origins[-1])
    return config, origins


def _is_text(config: DictConfig, key: str) -> bool:
    """Whether a key is declared as a text."""
    node = config
    for part in key.split("."):
        if not OmegaConf.is_dict(node) or OmegaConf.is_missing(node, part) and part != key.split(".")[-1]:
            return False
        node = node._get_node(part) if part in node.keys() else None
    return isinstance(node, StringNode)


def _merge(config: DictConfig, origin: str, node: DictConfig) -> DictConfig:
    _check_keys(config, node, "", origin)
    try:
        return OmegaConf.merge(config, node)
    except _UNREADABLE as error:  # TypeError: a mapping where a list is declared
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{origin}: {f'{key}: ' if key else ''}{_first_line(error)}") from error


def _check_keys(declared: DictConfig, given: Any, prefix: str, origin: str) -> None:
    """Every given key must be declared, and texts be texts; free-form dictionaries (a component's) end the search."""
    if not OmegaConf.is_dict(given) or not OmegaConf.is_dict(declared):
        return
    free = OmegaConf.get_type(declared) is dict
    known = declared.keys()  # `in declared` would deny keys that have no value yet
    for key in given:
        name = f"{prefix}{key}"
        if key not in known:
            if free:
                continue
            raise ConfigError(f"{origin}: {unknown_key(prefix, key, known)}")
        node = declared._get_node(key)
        value = None if OmegaConf.is_missing(given, key) else given._get_node(key)
        _check_kind(node, value, name, origin)
        if node is not None and value is not None and not OmegaConf.is_missing(declared, key):
            _check_keys(node, value, f"{name}.", origin)


def _check_kind(declared: Any, given: Any, name: str, origin: str) -> None:
    """Text is text, yes and no are yes and no: 0012, 1_0, on and 15 become something else, and nobody would see it."""
    of = declared._metadata.element_type if OmegaConf.is_list(declared) else None
    if OmegaConf.is_list(declared):
        values = list(given._iter_ex(resolve=False)) if OmegaConf.is_list(given) and not given._is_none() else []
    else:
        values = [given]
    for value in values:
        value = value._value() if OmegaConf.is_config(value) or isinstance(value, Node) else value
        if of in (str, int, float, bool) and isinstance(value, (list, dict)):  # which OmegaConf lets pass
            raise ConfigError(f"{origin}: {name}: {one_line(_plain(value))} stands where one value is needed")
        if (isinstance(declared, StringNode) or of is str) and isinstance(value, (bool, int, float)):
            raise ConfigError(f"{origin}: {name}: {one_line(value)} is no text; put it in quotes")
        if isinstance(declared, BooleanNode) and isinstance(value, (int, float)) and not isinstance(value, bool):
            raise ConfigError(f"{origin}: {name}: {one_line(value)} is neither true nor false")


def _plain(value: Any) -> Any:
    """Nodes inside lists and mappings as what they say."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return _plain(value._value()) if isinstance(value, Node) else value


def _giver(key: str | None, origins: Sequence[Origin]) -> str | None:
    """Which file or override gave a key its value."""
    while key:
        for origin, node in reversed(origins):
            if _gives(node, key):
                return origin
        key = re.sub(r"(\.[^.\[]*|\[\d+\])$", "", key) if re.search(r"[.\[]", key) else None
    return None


def _gives(node: DictConfig, key: str) -> bool:
    try:
        return OmegaConf.select(node, key, throw_on_missing=False) is not None
    except _UNREADABLE:  # an interpolation that leads nowhere is a value too
        return True


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
