"""The page's files: nothing from elsewhere, nothing inline, every text in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "ppvilg" / "serving" / "page"
FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PAGE)))
def test_nothing_from_elsewhere_and_nothing_inline(path):
    text = path.read_text(encoding="utf-8")
    addresses = set(re.findall(r"\b(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
    assert not {address for address in addresses if "//" in address and not address.startswith("// ")}, addresses
    assert not re.search(r"@import|\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert len(text.splitlines()) <= 400


def test_every_file_of_the_page_is_in_it():
    """Modules that are imported exist, and those that exist are imported; the same for style sheets."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    used = {PAGE / name for name in re.findall(r'(?:href|src)="([^"#]+)"', page)}
    for path in SCRIPTS:
        used |= {(path.parent / name).resolve() for name in re.findall(r'from "(\.[^"]+)"', path.read_text("utf-8"))}
    assert {path.resolve() for path in used} | {PAGE / "index.html"} == set(FILES)


def texts_of(language: str) -> dict[str, str]:
    text = (PAGE / "texts" / f"{language}.js").read_text(encoding="utf-8")
    return {match[1]: match[2] for match in re.finditer(r'^  "?([^":]+?)"?:\s+(.+?),?$', text, re.MULTILINE)}


def test_texts_in_both_languages():
    """The same texts with the same values in them; names of styles are Chinese already."""
    zh, en = texts_of("zh"), texts_of("en")
    assert set(zh) == {key for key in en if not re.match(r"style\..*[^a-z]|style\.low poly", key)}
    for key, text in zh.items():
        values = re.findall(r"\{(\w+)\}", text)
        assert all(re.search(rf"\{{\s*{value}\s*[,}}]", en[key]) for value in values), key


def test_texts_that_are_asked_for_exist():
    zh = texts_of("zh")
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'data-t(?:-label|-placeholder)?="([^"]+)"', markup))
    for path in SCRIPTS:
        asked |= set(re.findall(r'\bt\(\s*"([^"$]+)"', path.read_text(encoding="utf-8")))
    assert asked - set(zh) == set()
