"""New words: found in captions, cut out of texts, tokens of a tokenizer that is the old one again without them."""

from __future__ import annotations

import copy

import pytest

from ppvilg.knowledge import NewWord, TextKnowledge, TokenizerWords, check_new_words, find_new_words, mark, tag

FOX, NAME = NewWord("狐狸"), NewWord("sks", "a", 0.5)


@pytest.fixture
def own(tokenizer):
    """A tokenizer that a test may change."""
    return copy.deepcopy(tokenizer)


def state_of(tokenizer) -> dict:
    kept = ("init_kwargs", "added_tokens_encoder", "added_tokens_decoder", "unique_no_split_tokens")
    texts = ["一只狐狸", "sks狐狸 tasks", "[n]猫", "iPhone 15"]
    return {
        "attributes": copy.deepcopy({name: getattr(tokenizer, name) for name in kept}),
        "pieces": [tokenizer.tokenize(text) for text in texts],
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "vocabulary": tokenizer.get_vocab(),
    }


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("一只狐狸", (FOX,), "[m]一只[n]狐狸"),
        ("SKS狐狸坐在树上", (FOX, NAME), "[a]SKS[n]狐狸[v]坐在[n]树上"),
        ("tasks", (NAME,), "[n]tasks"),  # part of another word
        ("一只耳和两只企鹅", (NewWord("一只耳"),), "[n]一只耳和[m]两只[n]企鹅"),  # not a count
        ("是的", (NewWord("是", "v"),), "[v]是的"),  # not a function word
        ("大红和红色", (NewWord("大红", "n"),), "[n]大红和[a]红色"),  # not a colour
        ("狐狸犬和狐狸", (FOX, NewWord("狐狸犬", "a")), "[a]狐狸犬和[n]狐狸"),  # the longest
        ("狐狸", (NewWord("狐狸", ""),), "狐狸"),
        ("[v]狐狸", (FOX,), "[v]狐狸"),  # a mark in the text decides
    ],
)
def test_words_are_cut_out_and_marked_as_they_say(text, words, expected):
    tags = tag(text, words)
    assert "".join(word for word, _ in tags) == text and mark(tags) == expected


def test_a_text_without_a_new_word_is_tagged_as_ever():
    for text in ("左边是一只猫，右边是一棵松树", "三架飞机", "a cat and 3D words", ""):
        assert tag(text, (FOX, NAME)) == tag(text)


def test_a_tokenizer_reads_weighs_and_forgets_words(own):
    before, rows = state_of(own), max(own.get_vocab().values()) + 1
    plain = TextKnowledge(own, 24, key_token_weight=0.1)
    assert plain.unknown_words("一只狐狸 sks") == ("狐", "狸", "sks")
    added = TokenizerWords(own, [FOX, NAME], rows + 3)  # an encoder with three rows more than there are words
    knowledge = TextKnowledge(own, 24, key_token_weight=0.1)
    encoded = knowledge.encode(["一只狐狸 sks", "一只狐狸 sks"], [True, False], tags=[[("一只狐狸 sks", "x")], None])
    ids, weights = encoded.input_ids, encoded.key_token_weights.round(3)
    assert own.convert_ids_to_tokens(ids[0, :9].tolist()) == "[CLS] [m] 一 只 [n] 狐狸 [a] sks [SEP]".split()
    assert list(ids[0, [5, 7]]) == [rows + 3, rows + 4]
    assert list(weights[0, :9]) == pytest.approx([1, 1, 1.1, 1.1, 1, 1.1, 1, 1.5, 1])
    assert own.convert_ids_to_tokens(ids[1, :6].tolist()) == "[CLS] 一 只 狐狸 sks [SEP]".split()
    assert encoded.unknown == [[], []] and knowledge.unknown_words("tasks") == ("tasks",)
    off = TextKnowledge(own, 24, key_token_weight=0.0).encode(["一只狐狸 sks"])
    assert set(off.key_token_weights.flat) == {1.0}
    added.take_out()
    assert state_of(own) == before and TextKnowledge(own, 24).unknown_words("狐狸") == ("狐", "狸")


def test_words_are_saved_with_a_tokenizer(own, tmp_path):
    from paddlenlp.transformers import ErnieTokenizer

    TokenizerWords(own, [FOX], max(own.get_vocab().values()) + 3)
    TokenizerWords(own, [NAME], max(own.get_vocab().values()) + 1)
    own.save_pretrained(str(tmp_path))
    again = ErnieTokenizer.from_pretrained(str(tmp_path))
    texts = ["三只SKS狐狸和tasks", "iPhone 15的手机"]
    first, second = (TextKnowledge(each, 24).encode(texts * 2, [True] * 2 + [False] * 2) for each in (own, again))
    assert (first.input_ids == second.input_ids).all() and (first.key_token_weights == second.key_token_weights).all()
    assert again.get_vocab() == own.get_vocab() and TextKnowledge(again, 24).words == (FOX, NAME)


def test_words_that_captions_have_and_the_vocabulary_lacks(tokenizer):
    found = find_new_words(
        TextKnowledge(tokenizer, 24), ["一只狐狸，一只猫", "两只狐狸和狐狸", "a catalpa", "紫色的猫"]
    )
    assert found == {NewWord("狐狸"): 2, NewWord("catalpa"): 1, NewWord("紫色", "a"): 1}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ({"word": "my dog"}, "without spaces, got 'my dog'"),
        ({"word": ""}, "1 to 32 letters"),
        ({"word": "[n]"}, "1 to 32 letters"),
        ({"word": "狐狸", "mark": "x"}, "mark of '狐狸' must be one of n, a, v, m, f"),
        ({"word": "狐狸", "key_token_weight": float("nan")}, "key_token_weight of '狐狸'"),
    ],
)
def test_words_that_cannot_be(word, said):
    with pytest.raises(ValueError, match=said):
        NewWord(**word)


def test_words_that_are_no_news(tokenizer):
    with pytest.raises(ValueError, match="'猫' is a token of the model already"):
        check_new_words(tokenizer, [FOX, NewWord("猫")])
    with pytest.raises(ValueError, match="'Sks' comes twice"):
        check_new_words(tokenizer, [NAME, NewWord("Sks")])
    check_new_words(tokenizer, [FOX, NewWord("左猫")])  # of known characters
