"""Limits of a recipe's values, declared beside their types and checked in one place."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf

LIMITS = "limits"  # key of a field's metadata


class ConfigError(ValueError):
    """A recipe that cannot be used; the message names the key, the value and what would be accepted.

    key: where one value is at fault, so that whoever read the recipe can say which file gave it.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Limits:
    """What a value must be, and in a list or mapping each of its values."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    options: tuple = ()
    keys: tuple = ()  # of a mapping; none: any

    def complaint(self, value: Any) -> str | None:
        """What the value should be, or None when it is."""
        if self.options:
            return None if value in self.options else f"use {_listed(self.options)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "must be a number"
        bounds = (
            (self.least, value.__ge__, "at least"),
            (self.above, value.__gt__, "more than"),
            (self.most, value.__le__, "at most"),
            (self.below, value.__lt__, "less than"),
        )
        asked = [(bound, compare(bound), words) for bound, compare, words in bounds if bound is not None]
        if all(holds for _, holds, _ in asked):
            return None
        return "must be " + " and ".join(f"{words} {bound:g}" for bound, _, words in asked)


def bounded(
    default: Any = None,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    keys: Sequence[str] = (),
) -> Any:
    """A field of numbers within limits: one, a list, or a mapping of some of `keys`; None where the type allows it."""
    return _field(default, Limits(least, most, above, below, keys=tuple(keys)))


def choice(default: Any, options: Sequence) -> Any:
    """A field that holds one of `options`, or a list of some of them."""
    return _field(default, Limits(options=tuple(options)))


def _field(default: Any, limits: Limits) -> Any:
    metadata = {LIMITS: limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checked:
    """A recipe whose values are within their limits however it was made; ConfigError when they are not."""

    def __post_init__(self) -> None:
        check_values(self)


def check_values(config: Any, prefix: str = "") -> None:
    """Every number of a recipe is finite and every value within the limits of its field; ConfigError names the first.

    config: an instance of a dataclass, or what OmegaConf made of one.
    """
    schema = OmegaConf.get_type(config) if OmegaConf.is_config(config) else type(config)
    for each in fields(schema):
        value = config[each.name] if OmegaConf.is_config(config) else getattr(config, each.name)
        kind = OmegaConf.get_type(value) if OmegaConf.is_config(value) else type(value)
        if is_dataclass(kind):
            check_values(value, f"{prefix}{each.name}.")
            continue
        limits = each.metadata.get(LIMITS)
        for key in value if limits is not None and limits.keys and value is not None else ():
            if key not in limits.keys:
                raise ConfigError(unknown_key(f"{prefix}{each.name}.", key, limits.keys), f"{prefix}{each.name}.{key}")
        for key, scalar in _scalars(value, f"{prefix}{each.name}"):
            _check_scalar(key, scalar, limits)


def _check_scalar(key: str, value: Any, limits: Limits | None) -> None:
    shown = one_line(value if isinstance(value, (int, float)) else repr(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={shown}: must be a finite number", key)
    complaint = limits.complaint(value) if limits is not None and value not in (None, MISSING) else None
    if complaint:
        raise ConfigError(f"{key}={shown}: {complaint}", key)


def _scalars(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of everything inside lists and mappings, keys as overrides write them."""
    if isinstance(value, Mapping) or OmegaConf.is_dict(value):
        for name, inner in value.items():
            yield from _scalars(inner, f"{key}.{name}")
    elif isinstance(value, (list, tuple)) or OmegaConf.is_list(value):
        for i, inner in enumerate(value):
            yield from _scalars(inner, f"{key}[{i}]")
    else:
        yield key, value


def one_line(text: object, length: int = 400) -> str:
    """A text of any length on one line of a message, its middle left out where it is longer than that."""
    words = " ".join(str(text).split())
    half = length // 2
    return words if len(words) <= length else f"{words[:half]} ... {words[-half:]}"


def unknown_key(prefix: str, key: Any, known: Iterable) -> str:
    """Sentence about a key that nobody declared: the closest one that is, or all of them."""
    names, key = sorted(str(name) for name in known), one_line(key)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(names)}"
    return f"unknown key {prefix}{key}; {hint}"


def _listed(options: Sequence) -> str:
    names = [str(option) for option in options]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
