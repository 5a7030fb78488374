"""Picture styles of the ERNIE-ViLG service, as words added to the prompt."""

from __future__ import annotations

NO_STYLE = "探索无限"

STYLES = (
    "古风",
    "油画",
    "水彩",
    "卡通",
    "二次元",
    "浮世绘",
    "蒸汽波艺术",
    "low poly",
    "像素风格",
    "概念艺术",
    "未来主义",
    "赛博朋克",
    "写实风格",
    "洛丽塔风格",
    "巴洛克风格",
    "超现实主义",
    NO_STYLE,
)


def apply_style(prompt: str, style: str | None) -> str:
    """Prompt with the style's name after it; None and 探索无限 change nothing; ValueError on a name not in STYLES."""
    if style is None or style == NO_STYLE:
        return prompt
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of: {'、'.join(STYLES)}")
    return f"{prompt}，{style}" if prompt else style
