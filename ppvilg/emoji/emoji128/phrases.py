"""What captions of the world of 128 pixels are made of: templates, politeness, adjectives, words of the web."""

from __future__ import annotations

NUMBERS = {1: "一", 2: "两", 3: "三", 4: "四", 5: "五"}
NUMBERS_EN = {2: "two", 3: "three", 4: "four", 5: "five"}

ADJECTIVES = ("可爱的", "漂亮的", "好看的")
ADJECTIVES_EN = ("cute", "nice", "pretty")

# How people ask; {core}: what is to be seen.
REQUESTS = (
    "画{core}", "画一张{core}的图", "请画{core}", "帮我画{core}", "我想要{core}", "来一张{core}", "给我画{core}",
    "生成{core}", "图片：{core}", "一张{core}的图片",
)  # fmt: skip
STATEMENTS = ("图里有{core}", "这里有{core}", "画面上是{core}", "图中有{core}")
REQUESTS_EN = ("draw {core}", "a picture of {core}", "please draw {core}", "i want {core}", "an image of {core}")

# One thing, or several of a kind. {a}: noun phrase; {on}: phrase of a background; {bg}: name of a plain colour.
ON_COLOUR = ("{on}的{a}", "{on}的{a}", "{on}有{a}", "{a}，背景是{bg}的", "{a}，{bg}背景", "{bg}的背景上有{a}")
ON_SCENERY = ("{on}的{a}", "{a}在{on}", "{on}有{a}", "{a}，{bg}背景")
MOVING = ("{a}在{on}玩耍", "{a}在{on}休息", "{a}在{on}散步")  # animals

PAIRS = {
    "left": (
        "左边是{a}，右边是{b}", "左边是{a}，右边是{b}", "左边有{a}，右边有{b}", "{a}在{b}的左边", "{b}在{a}的右边",
        "{a}在左，{b}在右",
    ),
    "above": (
        "上面是{a}，下面是{b}", "上面是{a}，下面是{b}", "上面有{a}，下面有{b}", "{a}在{b}的上面", "{b}在{a}的下面",
        "{a}在上，{b}在下",
    ),
}  # fmt: skip
HALF_PAIRS = {"left": ("左边是{}", "右边是{}"), "above": ("上面是{}", "下面是{}")}
LISTS = {"row": "从左到右是{list}", "column": "从上到下是{list}", "free": "{list}"}
CORE_ON = ("{on}，{core}", "{core}，背景是{bg}", "{core}，{bg}背景")

GENERATED = ("图中有{core}，背景为{bg}", "画面上是{core}，背景为{bg}", "这张图片展示了{core}，背景为{bg}")
GENERATED_PAIRS = {"left": "{a}和位于其右侧的{b}", "above": "{a}和位于其下方的{b}"}

PAIRS_EN = {
    "left": (
        "{a} on the left and {b} on the right", "{a} to the left of {b}", "{b} to the right of {a}",
        "on the left {a}, on the right {b}",
    ),
    "above": (
        "{a} at the top and {b} at the bottom", "{a} above {b}", "{b} below {a}", "at the top {a}, at the bottom {b}",
    ),
}  # fmt: skip
LISTS_EN = {"row": "from left to right: {list}", "column": "from top to bottom: {list}", "free": "{list}"}

# {core} and the words of a style.
STYLED = ("{core}，{style}", "{core}，{style}", "{style}，{core}", "{core}（{style}）")
STYLED_EN = ("{core}, {style}", "{core}, {style}", "{style}, {core}", "{core} in {style}")

# What stands around captions on the web and says nothing of the picture.
WEB_WORDS = ("高清壁纸", "图片素材", "免费下载", "超清图片", "4K", "精选图片", "原创", "手机壁纸")
WEB_WORDS_EN = ("HD wallpaper", "stock image", "free download", "4k")
