"""The forty objects of the emoji world: glyphs of Noto Color Emoji, names of Unicode CLDR, Chinese measure words."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGES = ("fonts-noto-color-emoji", "unicode-cldr-core")
FONT = "fonts/truetype/noto/NotoColorEmoji.ttf"  # Debian's place; other distributions have others below fonts
ANNOTATIONS = "unicode/cldr/common/annotations"
OWN = "~/.local/share"  # needs no root
ADVICE = (
    f"Install both: sudo apt-get install {' '.join(PACKAGES)} (Debian, Ubuntu); sudo pacman -S noto-fonts-emoji "
    f"unicode-cldr-annotations (Arch); cldr-emoji-annotation is Fedora's. Without root, put the font of "
    f"github.com/googlefonts/noto-emoji (fonts/NotoColorEmoji.ttf, which has bitmaps) into {OWN}/fonts and zh.xml and "
    f"en.xml of github.com/unicode-org/cldr (common/annotations) into {OWN}/{ANNOTATIONS}"
)


def find_font(folders: Sequence[Path]) -> Path:
    """NotoColorEmoji.ttf below `fonts` of the first folder that has it with bitmaps (CBDT), else where it should be.

    Folders that may not be read are passed over, such as a home of somebody else.
    """
    for folder in folders:
        if _has_bitmaps(folder / FONT):
            return folder / FONT
        below = (Path(at, Path(FONT).name) for at, _, names in os.walk(folder / "fonts") if Path(FONT).name in names)
        for path in sorted(below):
            if _has_bitmaps(path):
                return path
    return folders[0] / FONT


def _has_bitmaps(font: Path) -> bool:
    try:
        with open(font, "rb") as file:
            return b"CBDT" in file.read(1024)  # the table directory
    except OSError:
        return False


def find_annotations(folders: Sequence[Path]) -> Path:
    """CLDR's folder of annotations in the first folder that has it, else where it should be."""
    found = (folder / ANNOTATIONS for folder in folders if os.path.isfile(folder / ANNOTATIONS / "zh.xml"))
    return next(found, folders[0] / ANNOTATIONS)


_FOLDERS = tuple(Path(os.path.expanduser(name)) for name in ("/usr/share", "/usr/local/share", OWN))
FONT_PATH = find_font(_FOLDERS)
ANNOTATIONS_FOLDER = find_annotations(_FOLDERS)


@dataclass(frozen=True)
class EmojiObject:
    """One drawable object: `name` and `name_en` are what captions say, `measure` counts it in Chinese."""

    emoji: str
    category: str
    name: str
    name_en: str
    plural_en: str
    measure: str
    colour: str | None = None  # its own colour, where one word is the truth


# emoji, category, measure word, own colour. A glyph drawn as a slice or a bunch is counted as one (一块西瓜).
_TABLE = (
    ("🐱", "animal", "只", None),
    ("🐶", "animal", "只", None),
    ("🐼", "animal", "只", None),
    ("🐧", "animal", "只", None),
    ("🐘", "animal", "头", "灰色"),
    ("🐰", "animal", "只", "灰色"),
    ("🐸", "animal", "只", "绿色"),
    ("🐟", "animal", "条", "蓝色"),
    ("🦋", "animal", "只", "橙色"),
    ("🐢", "animal", "只", "绿色"),
    ("🍎", "fruit", "个", "红色"),
    ("🍌", "fruit", "根", "黄色"),
    ("🍉", "fruit", "块", None),
    ("🍇", "fruit", "串", "紫色"),
    ("🍓", "fruit", "颗", "红色"),
    ("🍊", "fruit", "个", None),
    ("🍍", "fruit", "个", "黄色"),
    ("🍕", "food", "块", None),
    ("🍔", "food", "个", None),
    ("🎂", "food", "个", None),
    ("🍦", "food", "支", None),
    ("🍩", "food", "个", None),
    ("🚕", "vehicle", "辆", "黄色"),
    ("🚌", "vehicle", "辆", None),
    ("🚲", "vehicle", "辆", None),
    ("✈", "vehicle", "架", "蓝色"),
    ("🚀", "vehicle", "枚", None),
    ("⛵", "vehicle", "艘", None),
    ("🌲", "plant", "棵", "绿色"),
    ("🌵", "plant", "棵", "绿色"),
    ("🌻", "plant", "朵", None),
    ("🍄", "plant", "个", "红色"),
    ("☀", "sky", "个", "黄色"),
    ("🌙", "sky", "个", "黄色"),
    ("⭐", "sky", "颗", "黄色"),
    ("🌈", "sky", "道", None),
    ("☂", "thing", "把", "紫色"),
    ("⚽", "thing", "个", None),
    ("🎸", "thing", "把", "红色"),
    ("🎁", "thing", "份", None),
)

# Everyday words where CLDR describes the glyph rather than the thing (猫脸 "cat face").
_SHORT_NAMES = {
    "🐱": "猫", "🐶": "狗", "🐰": "兔子", "🐢": "乌龟", "🍎": "苹果", "🎂": "蛋糕", "🍦": "冰淇淋",
    "🌙": "月亮", "☂": "雨伞",
}  # fmt: skip
_SHORT_NAMES_EN = {
    "🐱": "cat", "🐶": "dog", "🐰": "rabbit", "🍎": "apple", "🍉": "slice of watermelon", "🍇": "bunch of grapes",
    "🍊": "orange", "🍕": "slice of pizza", "🎂": "cake", "🍦": "ice cream", "🍩": "donut", "🌲": "pine tree",
    "🌙": "moon", "⚽": "football", "🎁": "gift",
}  # fmt: skip
_PLURALS_EN = {
    "fish": "fish", "butterfly": "butterflies", "slice of watermelon": "slices of watermelon", "cactus": "cacti",
    "bunch of grapes": "bunches of grapes", "strawberry": "strawberries", "slice of pizza": "slices of pizza",
    "bus": "buses",
}  # fmt: skip


@dataclass(frozen=True)
class Background:
    """A plain background: the colour word captions use and its RGB value (soft, so that objects stand out)."""

    name: str
    name_en: str
    rgb: tuple[int, int, int]


BACKGROUNDS = (
    Background("白色", "white", (250, 250, 250)),
    Background("灰色", "gray", (120, 120, 120)),
    Background("黑色", "black", (32, 32, 32)),
    Background("红色", "red", (200, 64, 78)),
    Background("橙色", "orange", (246, 166, 92)),
    Background("黄色", "yellow", (252, 232, 124)),
    Background("绿色", "green", (136, 204, 128)),
    Background("蓝色", "blue", (104, 164, 236)),
    Background("紫色", "purple", (164, 120, 212)),
    Background("粉色", "pink", (252, 190, 212)),
)
COLOURS_EN = {background.name: background.name_en for background in BACKGROUNDS}


def require_assets(font: Path = FONT_PATH, annotations: Path = ANNOTATIONS_FOLDER) -> None:
    """Make sure the font and the CLDR names are there: installs them as root with apt-get, else FileNotFoundError."""
    wanted = (font, annotations / "zh.xml", annotations / "en.xml")
    missing = [path for path in wanted if not path.is_file()]
    if not missing:
        return
    names = ", ".join(map(str, missing))
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"{names} not found: installing {' '.join(PACKAGES)} with apt-get", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", *PACKAGES]
        # An index that was never fetched knows no packages, so a first failure earns one update.
        for command in (install, ["apt-get", "update", "-q"], install):
            failed = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode != 0
            if command is install and not failed:
                break
        missing = [path for path in wanted if not path.is_file()]
        if not missing:
            return
    raise FileNotFoundError(
        f"{', '.join(map(str, missing))} not found; the renderer draws glyphs of Noto Color Emoji and takes names from "
        f"Unicode CLDR. {ADVICE}"
    )


def read_cldr_names(language: str) -> dict[str, str]:
    """Names (CLDR annotations of type "tts") of every emoji in `language`, for example {"🐱": "猫脸"}."""
    tree = ElementTree.parse(ANNOTATIONS_FOLDER / f"{language}.xml")
    return {node.get("cp"): node.text for node in tree.iter("annotation") if node.get("type") == "tts"}


@lru_cache(maxsize=1)
def load_objects() -> tuple[EmojiObject, ...]:
    """The forty objects in a fixed order, named from CLDR or, where CLDR is wordy, from the short tables above."""
    require_assets()
    names, names_en = read_cldr_names("zh"), read_cldr_names("en")
    objects = []
    for emoji, category, measure, colour in _TABLE:
        name_en = _SHORT_NAMES_EN.get(emoji, names_en[emoji])
        objects.append(
            EmojiObject(
                emoji=emoji,
                category=category,
                name=_SHORT_NAMES.get(emoji, names[emoji]),
                name_en=name_en,
                plural_en=_PLURALS_EN.get(name_en, name_en + "s"),
                measure=measure,
                colour=colour,
            )
        )
    return tuple(objects)


def object_by_name(name: str) -> EmojiObject:
    """The object whose Chinese name is `name`; KeyError names the ones there are."""
    for emoji_object in load_objects():
        if emoji_object.name == name:
            return emoji_object
    raise KeyError(f"no object named {name!r}; there are: {', '.join(item.name for item in load_objects())}")


@lru_cache(maxsize=1)
def font_sha256() -> str:
    """SHA-256 of the font file: the pictures are a function of it."""
    require_assets()
    return hashlib.sha256(FONT_PATH.read_bytes()).hexdigest()
