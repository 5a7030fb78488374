"""Files of models: there, and not only a pointer to them."""

from __future__ import annotations

from pathlib import Path

from ppvilg.files import damage_of


def whole(path: Path) -> Path:
    """The path of a file that is there and is no pointer; FileNotFoundError or ValueError names it and the remedy."""
    if not path.is_file():
        raise FileNotFoundError(damage_of(path))
    sentence = damage_of(path)
    if "cut off or damaged" not in sentence:
        raise ValueError(sentence)
    return path
