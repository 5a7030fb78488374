"""Six drawing styles of the same objects: what draws them and what captions call them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawingStyle:
    """glyph_set: of `glyphs.draw_glyph`; picture_filter: of `render`, over the finished picture."""

    name: str  # what `style=` says
    words: tuple[str, ...]
    words_en: tuple[str, ...]
    glyph_set: str
    picture_filter: str | None = None


STYLES = (
    DrawingStyle("卡通", ("卡通", "卡通风格"), ("cartoon style",), "noto"),
    DrawingStyle("立体", ("立体", "立体风格", "3d风格"), ("3d style", "3d render"), "3d"),
    DrawingStyle("扁平", ("扁平", "扁平风格", "扁平插画"), ("flat style", "flat illustration"), "flat"),
    DrawingStyle("简笔画", ("简笔画", "线稿"), ("line drawing",), "line"),
    DrawingStyle("像素风格", ("像素风格", "像素画"), ("pixel art style", "pixel art"), "noto", "pixel_art"),
    DrawingStyle("水彩", ("水彩", "水彩画", "水彩风格"), ("watercolor style", "watercolor"), "noto", "watercolour"),
)
USUAL = STYLES[0].name  # of pictures whose caption names no style
SHARES = (0.35, 0.13, 0.13, 0.13, 0.13, 0.13)


def style_by_name(name: str) -> DrawingStyle:
    """The style called `name`; KeyError names the ones there are."""
    for style in STYLES:
        if style.name == name:
            return style
    raise KeyError(f"no style {name!r}; there are: {', '.join(each.name for each in STYLES)}")
