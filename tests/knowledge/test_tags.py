from __future__ import annotations

import pytest

from ppvilg.knowledge import mark, mark_of, strip_marks, tag

MARKED = [
    "[f]左边是[m]一只[n]猫，[f]右边是[m]一棵[n]松树",
    "[a]蓝色[n]背景[f]上的[m]一辆[a]红色[n]出租车",
    "[m]三只[n]企鹅",
    "[m]一只[n]猫在[m]一棵[n]松树的[f]左边",
    "[f]上面是[m]两个[n]苹果",
    "[a]灰色的[n]猫和[a]棕色的[n]狗",
    "[a]浅蓝色[n]背景[f]上的[m]一只[n]大象",
    "[n]背景是[a]粉红色，有[m]两个[n]甜甜圈",
    "[m]一个[n]冰淇淋，[a]白色[n]背景",
    "[a]红的[n]苹果，[a]绿的[n]梨",
    "[a]五颜六色的[n]彩虹",
    "[m]一幅[a]红色和[a]金色[n]相间的[n]画",
    "[m]一只正在[v]奔跑的[n]狗",
    "[m]一只[n]青蛙[v]坐在[m]一把[n]椅子[f]上",
    "[m]一棵[n]树，[m]三棵[n]树，[m]七辆[n]车，[m]一艘[n]船，[m]一束[n]花",
    "[a]粉色[n]背景[f]上有[m]一头[n]大象",
    "[a]粉色[n]背景[f]上有[m]三架[n]飞机",
    "[m]一个[n]蛋糕和位于其[f]右侧的[m]一颗[n]草莓，[n]背景为[a]黑色",
    "[m]一本[n]书，[m]两个[n]相机，[m]一只[n]火烈鸟",
    "[m]一个[n]拖拉机",
    "[m]3只[n]cat",
    "[m]一个[n]碗，[n]碗，[m]3碗[n]米饭",
    "[n]iPhone [m]15的[n]手机",
    "a [a]red [n]taxi on a [a]blue [n]background",
    "[m]two [n]penguins, on the [f]left a [n]cat.",
    "[n]café[f]里的[n]3D[n]电影",
]


@pytest.mark.parametrize("marked", MARKED)
def test_content_words_get_their_marks(marked):
    text = strip_marks(marked)
    tags = tag(text)
    assert mark(tags) == marked
    assert "".join(word for word, _ in tags) == text


def test_marks_already_in_the_text_are_kept_and_not_doubled():
    assert mark(tag("一只猫，[n]碗")) == "[m]一只[n]猫，[n]碗"
    once = mark(tag("[v]灰色的猫"))
    assert once == "[v]灰色的[n]猫"  # the given mark decides, though 灰色 would be [a]
    assert mark(tag(once)) == once


def test_nothing_to_mark():
    assert tag("") == []
    assert mark([]) == ""
    assert mark(tag("，。 !?")) == "，。 !?"
    assert mark(tag("[PAD]")) == "[PAD]"


@pytest.mark.parametrize(
    ("word", "pos", "expected"),
    [
        ("景色", "n", "[n]"),  # ends in 色 but is no colour
        ("咖啡色", "n", "[a]"),
        ("红", "a", "[a]"),
        ("室内", "s", "[n]"),
        ("夜晚", "t", "[n]"),
        ("是", "v", ""),
        ("的", "uj", ""),
        ("很", "zg", ""),
        ("一幅", "d", "[m]"),
        ("fast", "a", "[a]"),  # a tagger that knows English is believed
        ("fast", "eng", "[n]"),
        (".", "m", ""),
    ],
)
def test_mark_of(word, pos, expected):
    assert mark_of(word, pos) == expected


def test_words_of_other_users_of_jieba_change_nothing():
    import jieba

    before = tag("左边是一只猫")
    jieba.add_word("边是一只", freq=10**9, tag="x")
    try:
        assert tag("左边是一只猫") == before
        assert "甜甜圈" not in jieba.lcut("两个甜甜圈")  # and ours do not reach them
    finally:
        jieba.del_word("边是一只")
