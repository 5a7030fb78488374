from __future__ import annotations

import pytest

from ppvilg.knowledge import STYLES, apply_style


def test_the_seventeen_styles_of_the_service():
    assert len(set(STYLES)) == 17
    assert STYLES[0] == "古风" and STYLES[-1] == "探索无限"


def test_style_is_added_to_the_prompt():
    assert apply_style("一只猫", "水彩") == "一只猫，水彩"
    assert apply_style("一只猫", "探索无限") == apply_style("一只猫", None) == "一只猫"
    assert apply_style("", "水彩") == "水彩"


def test_unknown_style_is_refused_with_the_list():
    with pytest.raises(ValueError) as caught:
        apply_style("一只猫", "梵高")
    assert "'梵高'" in str(caught.value)
    assert all(style in str(caught.value) for style in STYLES)
