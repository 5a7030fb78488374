"""The filter hook: a function of the operator's that says why a prompt or picture is not drawn or handed out."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from PIL import Image

PictureFilter = Callable[[dict, Image.Image | None], str | None]


def load_filter(name: str | None) -> PictureFilter | None:
    """`module:function`, called as f(settings, None) before and f(settings, picture) after drawing.

    It returns a reason, which the user is told, or None. ValueError: no such function.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the filter {name!r} must be MODULE:FUNCTION, importable from here: {error}") from None
    if not callable(found):
        raise ValueError(f"the filter {name!r} is no function")
    return found
