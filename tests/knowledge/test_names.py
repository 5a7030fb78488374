from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from ppvilg.knowledge import NamesError, NameTable, VisualKnowledge, missing_objects, open_names
from ppvilg.knowledge.names.mentions import simplified
from ppvilg.knowledge.names.reading import find_table, read_table


@dataclass(frozen=True)
class Thing:
    """What the data package's ObjectBox looks like from here."""

    label: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 8.0, 8.0)
    score: float = 1.0


COCO = open_names()
LABELS = [entry.label for entry in read_table(find_table("coco")).entries.values()]


def named(caption: str) -> set[str]:
    return set(COCO.mentioned(caption, LABELS))


def test_all_of_coco_is_there_with_names_and_measure_words():
    assert len(LABELS) == 80
    table = read_table(find_table("coco"))
    assert all(entry.zh and entry.en and entry.measure for entry in table.entries.values())
    assert (COCO.name_of("person"), COCO.name_of("mouse"), COCO.name_of("wine glass")) == ("人", "鼠标", "酒杯")
    assert (COCO.measure_of("horse"), COCO.measure_of("a label that is nowhere")) == ("匹", "个")
    for label in LABELS:  # what completion writes names the object, in both languages
        assert label in named(f"图里有{COCO.name_of(label)}")
        assert label in named(f"there is a {COCO.name_of(label, chinese=False)} here")


@pytest.mark.parametrize(
    ("caption", "labels"),
    [
        ("一只德国牧羊犬坐在草地上", {"dog"}),
        ("两只哈士奇拉着雪橇", {"dog"}),
        ("湖里有一群天鹅", {"bird"}),
        ("猫头鹰站在树枝上", {"bird"}),
        ("轿车旁边停着一辆救护车", {"car"}),
        ("孩子们在公园里放风筝", {"person", "kite"}),
        ("[n]女孩骑在[n]马背上", {"person", "horse"}),
        ("桌上放着笔记本电脑和无线鼠标", {"dining table", "laptop", "mouse"}),
        ("一杯咖啡，一碗面，一瓶水", {"cup", "bowl", "bottle"}),
        ("沙发上的泰迪熊", {"couch", "teddy bear"}),
        ("公园里的长椅", {"bench", "chair"}),
        ("一隻黑貓和一輛計程車", {"cat", "car"}),  # traditional characters
        ("人和马", {"person", "horse"}),  # 人和 is a word of jieba's dictionary
        ("A German shepherd, two buses and some knives", {"dog", "bus", "knife"}),
    ],
)
def test_synonyms_and_kinds_are_mentions(caption, labels):
    assert named(caption) == labels


@pytest.mark.parametrize(
    ("caption", "labels"),
    [
        ("一根热狗", {"hot dog"}),
        ("海狗趴在礁石上", set()),
        ("大熊猫在吃竹子", set()),
        ("两匹斑马", {"zebra"}),
        ("河马和海马", set()),
        ("马上就要下雨的马路", set()),
        ("卫生间里的马桶", {"toilet"}),
        ("蜗牛爬过牛奶盒", set()),
        ("一袋狗粮和一个鸟巢", set()),
        ("苹果树下", set()),
        ("打印机", set()),
        ("远处的电视塔", set()),
        ("机器人、雪人和稻草人", set()),
        ("动人的印象", set()),
        ("地球和气球", set()),
        ("宇宙飞船", set()),
        ("冠军举起奖杯", set()),
        ("飞机和打印机", {"airplane"}),
        ("a hot dog stand near a catalogue", {"hot dog"}),
    ],
)
def test_words_that_look_like_names_are_not(caption, labels):
    assert named(caption) == labels


def test_objects365_lies_over_coco():
    both = open_names(["coco", "objects365"])
    labels = ["Moniter/TV", "Wild Bird", "Swan", "Dog", "Cigar/Cigarette ", "Trophy"]  # as it spells them
    assert both.unknown(labels) == [] and COCO.unknown(labels) == ["Moniter/TV", "Wild Bird", "Swan",
                                                                   "Cigar/Cigarette ", "Trophy"]  # fmt: skip
    assert both.mentioned("天鹅和德国牧羊犬", labels) == ["Wild Bird", "Swan", "Dog"]
    assert both.mentioned("冠军举起奖杯", labels) == ["Trophy"]  # no cup, but a thing of its own here
    assert COCO.name_of("dog", chinese=False) == "dog"
    assert both.name_of("Moniter/TV", chinese=False) == "tv" and both.measure_of("Swan") == "只"


def test_completion_appends_only_what_the_caption_does_not_name():
    knowledge = VisualKnowledge(names=COCO)
    draw = np.random.default_rng(0)

    def caption(text, *labels, kind="zh"):
        return knowledge.choose_caption({kind: text}, [Thing(label) for label in labels], draw, marks=False)[0]

    assert caption("一只德国牧羊犬", "dog", "frisbee") == "一只德国牧羊犬，飞盘"
    assert caption("一根热狗", "hot dog", "dog") == "一根热狗，狗"
    assert caption("A shepherd runs.", "dog", "frisbee", kind="en") == "A shepherd runs, frisbee"
    # labels in Chinese, in other spellings, unknown to the table, and one whose kind is appended already
    assert caption("草地", "狗", "Traffic_Light", "恐龙") == "草地，狗，红绿灯，恐龙"
    assert caption("草地", "牧羊犬", "dog") == "草地，牧羊犬"
    assert missing_objects("草地", [Thing("cat"), Thing("猫")], COCO) == ["cat", "猫"]
    assert caption("草地", "cat", "猫") == "草地，猫"


def test_loss_weights_cover_what_a_kind_mentions():
    boxes = [Thing("dog", (0, 0, 16, 16)), Thing("cat", (16, 16, 32, 32))]
    assert VisualKnowledge(names=COCO).key_objects(boxes, "一只柯基") == boxes[:1]


def test_what_the_recipe_adds_is_written_first_and_counts_anywhere():
    knowledge = VisualKnowledge(names=COCO, synonyms={"cat": ["喵喵"], "ufo": ["飞碟"]})
    names = knowledge.names
    assert names.name_of("cat") == "喵喵" and names.identity != COCO.identity
    assert names.mentioned("喵喵叫", ["cat"]) == ["cat"] and names.mentioned("一只波斯猫", ["cat"]) == ["cat"]
    assert names.unknown(["cat", "ufo", "恐龙", "ufo"]) == ["恐龙"]


def test_a_users_table_lies_over_the_other(tmp_path):
    own = tmp_path / "own.yml"
    own.write_text(
        "labels:\n  dog: {zh: [汪], zh_kinds: [狼青], en: [Hund]}\n  dinosaur: {zh: [恐龙], measure: 条}\n"
        "others: [牧羊犬]\n",
        encoding="utf-8",
    )
    names = open_names(["coco", own])
    assert names.name_of("dog") == "汪" and names.name_of("Hund") == "汪"
    assert names.measure_of("dinosaur") == "条" and names.measure_of("dog") == "只"
    everything = [*LABELS, "dinosaur"]
    assert names.mentioned("狼青和恐龙", everything) == ["dog", "dinosaur"]
    assert names.mentioned("一只牧羊犬", everything) == [] and names.mentioned("一只小狗", everything) == ["dog"]
    assert names.identity != COCO.identity
    assert pickle.loads(pickle.dumps(names)).identity == names.identity
    own.write_text("labels:\n  dinosaur: {zh: [恐龙]}\n", encoding="utf-8")  # another table under the same name
    assert open_names(["coco", own]).identity not in (names.identity, COCO.identity)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labels: {cat: {zh: [猫]}, cat: {zh: [狗]}}", "cat is there twice"),
        ("labels:\n  cat: {zh: [猫]}\n  Cat: {zh: [喵]}\n", "labels.Cat is there twice"),
        ("labels: {cat: {zh: [猫, 猫]}}", "labels.cat.zh: 猫 is there twice"),
        ("labels: {cat: {zh: [猫], zh_kinds: [猫]}}", "labels.cat.zh_kinds: 猫 is in labels.cat.zh too"),
        ("labels: {cat: {zh: [猫], spellings: [kat]}, mau: {spellings: [kat]}}", "kat is in labels.cat.spellings"),
        ("labels: {cat: {zh: [猫]}, kitty: {zh: [猫]}}", "猫 is in labels.cat.zh and in labels.kitty.zh"),
        ("labels: {cat: {zh: [猫]}}\nothers: [猫]", "猫 is in others and in labels.cat.zh"),
        ("labels: {cat: {cn: [猫]}}", "labels.cat.cn is no key"),
        ("labels: {cat: {zh: 猫}}", "labels.cat.zh must be a list"),
        ("labels: {cat: {zh: [on]}}", "labels.cat.zh: a word is a text, found True"),
        ("labels: {no: {zh: [猫]}}", "labels.False: a label is a text"),
        ("labels: {cat: {measure: 只}}", "labels.cat has no words"),
        ("labels: {cat: {zh: [猫], measure: 3}}", "labels.cat.measure"),
        ("labels: [cat]", "labels must be a mapping"),
        ("labels: {cat: {zh: [猫]", "not YAML"),
        ("- 猫", "the keys labels and others"),
        ("names: {}", "names is no key"),
    ],
)
def test_wrong_tables_are_named_with_file_and_key(tmp_path, text, words):
    path = tmp_path / "own.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NamesError) as caught:
        open_names([path])
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_name_of_another_tables_label_is_refused(tmp_path):
    path = tmp_path / "own.yml"
    path.write_text("labels: {kitty: {zh: [猫]}}", encoding="utf-8")
    with pytest.raises(NamesError, match="own.yml: labels.kitty: 猫 is a name of the label 'cat' already"):
        open_names(["coco", path])
    with pytest.raises(FileNotFoundError, match="nowhere.yml.*coco"):
        open_names(["nowhere.yml"])


def test_an_empty_table_knows_nothing():
    assert NameTable().unknown(["cat", "cat"]) == ["cat"]
    assert NameTable().mentioned("一只狗粮袋", ["狗"]) == ["狗"]  # a label without an entry counts wherever it stands


def test_traditional_characters_keep_their_places():
    assert simplified("一隻黑貓在車裡") == "一只黑猫在车里"
