from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from ppvilg.knowledge import (
    MARKS,
    TextKnowledge,
    add_marks,
    build_tokenizer,
    mark,
    strip_marks,
    tag,
    truncation_warning,
)

STOCK_WORDS = "[PAD] [CLS] [SEP] [MASK] [UNK] 灰 色 的 猫 和 只 机 手 ， . , cat ##s i ##phone 15 3 ##d 1 ##5".split()


def stock_tokenizer(folder, words):
    """A vocabulary as published checkpoints have it: no marks, word pieces."""
    from paddlenlp.transformers import ErnieTokenizer

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")
    return ErnieTokenizer.from_pretrained(str(folder))


def tokens_of(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([int(index) for index in ids if index != tokenizer.pad_token_id])


def tiny_encoder(rows):
    from paddlenlp.transformers import ErnieConfig, ErnieModel

    return ErnieModel(
        ErnieConfig(vocab_size=rows, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def test_built_tokenizer_reloads_from_its_folder_without_network(tokenizer_folder, captions, no_network):
    from paddlenlp.transformers import ErnieTokenizer

    loaded = ErnieTokenizer.from_pretrained(str(tokenizer_folder))
    assert loaded.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]) == [0, 1, 2, 3, 4]
    assert loaded.tokenize("[a]灰色的[n]猫") == ["[a]", "灰", "色", "的", "[n]", "猫"]
    for caption in captions:
        assert loaded.unk_token not in loaded.tokenize(caption)
    assert loaded.tokenize("blueish") == ["blue", "##i", "##s", "##h"]  # spelled, not unknown
    assert len(loaded) == loaded.vocab_size == max(loaded.get_vocab().values()) + 1


def test_vocabulary_does_not_depend_on_the_order_of_the_texts(tokenizer_folder, captions, tmp_path):
    build_tokenizer(["[n]猫", *reversed(captions)], tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (tokenizer_folder / "vocab.txt").read_bytes()


def test_no_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no words"):
        build_tokenizer(["", " "], tmp_path)


def test_marks_are_added_once_and_survive_saving(tmp_path, no_network):
    from paddlenlp.transformers import ErnieTokenizer

    tokenizer = stock_tokenizer(tmp_path / "stock", STOCK_WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[user]"]})
    assert add_marks(tokenizer) == 5
    assert add_marks(tokenizer) == 0
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    loaded = ErnieTokenizer.from_pretrained(str(tmp_path / "saved"))
    for each in (tokenizer, loaded):
        assert each.tokenize("[a]灰色的[n]cats[user]") == ["[a]", "灰", "色", "的", "[n]", "cat", "##s", "[user]"]
    assert loaded("[a]灰色的[n]猫")["input_ids"] == tokenizer("[a]灰色的[n]猫")["input_ids"]
    assert add_marks(loaded) == 0


def test_marks_never_share_an_id_with_a_word(tmp_path):
    """ERNIE 3.0's vocabulary has "$" twice, so that its length is one less than its last id plus one."""
    from paddlenlp.transformers import ErnieTokenizer

    tokenizer = stock_tokenizer(tmp_path / "stock", [*STOCK_WORDS, "$", "x", "$", "last"])
    add_marks(tokenizer)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    loaded = ErnieTokenizer.from_pretrained(str(tmp_path / "saved"))
    last = len(STOCK_WORDS) + 3
    for each in (tokenizer, loaded):
        assert each.convert_tokens_to_ids("last") == last
        assert each.convert_tokens_to_ids(list(MARKS.values())) == list(range(last + 1, last + 6))


def test_embedding_grows_and_keeps_its_rows(tmp_path):
    tokenizer = stock_tokenizer(tmp_path / "stock", STOCK_WORDS)
    encoder = tiny_encoder(len(tokenizer))
    before = encoder.get_input_embeddings().weight.numpy()
    add_marks(tokenizer, encoder)
    after = encoder.get_input_embeddings().weight.numpy()
    assert after.shape[0] == encoder.config.vocab_size == len(tokenizer)
    np.testing.assert_array_equal(after[: len(before)], before)
    new = after[len(before) :]
    assert 0.5 * before.std() < new.std() < 2 * before.std()
    assert len(np.unique(new, axis=0)) == len(MARKS)
    add_marks(tokenizer, encoder)
    np.testing.assert_array_equal(encoder.get_input_embeddings().weight.numpy(), after)


def test_embedding_with_spare_rows_is_left_alone(tmp_path):
    tokenizer = stock_tokenizer(tmp_path / "stock", STOCK_WORDS)
    encoder = tiny_encoder(64)
    before = encoder.get_input_embeddings().weight.numpy()
    add_marks(tokenizer, encoder)
    np.testing.assert_array_equal(encoder.get_input_embeddings().weight.numpy(), before)


def test_weights_stand_on_the_pieces_of_content_words(tokenizer):
    encoded = TextKnowledge(tokenizer, 16, key_token_weight=0.5).encode(["蓝色背景上的一只cats", ""])
    tokens = ["[CLS]", "[a]", "蓝", "色", "[n]", "背", "景", "[f]", "上", "的", "[m]", "一", "只", "[n]", "c", "[SEP]"]
    assert tokens_of(tokenizer, encoded.input_ids[0]) == tokens  # cats has four pieces, of which one fits
    expected = [1, 1, 1.5, 1.5, 1, 1.5, 1.5, 1, 1.5, 1, 1, 1.5, 1.5, 1, 1.5, 1]
    np.testing.assert_array_equal(encoded.key_token_weights[0], np.float32(expected))
    assert tokens_of(tokenizer, encoded.input_ids[1]) == ["[CLS]", "[SEP]"]
    np.testing.assert_array_equal(encoded.key_token_weights[1], np.ones(16, np.float32))
    np.testing.assert_array_equal(encoded.attention_mask, [[1] * 16, [1] * 2 + [0] * 14])
    assert encoded.input_ids.dtype == np.int64 and encoded.key_token_weights.dtype == np.float32
    assert encoded.truncated == [True, False]


def test_marked_text_gives_the_ids_of_the_whole_sentence(tokenizer, captions, tmp_path):
    stock = stock_tokenizer(tmp_path / "stock", STOCK_WORDS)
    add_marks(stock)
    texts = [*captions, "3只cat", "iPhone 15的手机", "3D电影 [n]Cats, 1.5", ""]
    for each, text in itertools.product((tokenizer, stock), texts):
        encoded = TextKnowledge(each, 48).encode([text])
        whole = each(mark(tag(text)))["input_ids"]
        assert encoded.input_ids[0, : len(whole)].tolist() == whole
        assert (encoded.input_ids[0, len(whole) :] == each.pad_token_id).all()


def test_word_by_word_equals_whole_sentence_on_any_text(tokenizer):
    """Weights without marks must leave the ids of the plain text, whatever stands beside what."""
    knowledge = TextKnowledge(tokenizer, 64, mark=False)
    alphabet = list("猫一只红色的松树，。 .,-'[]3a5BcéøÅ²カ한가ﬁ① 😀\t\n\u200b\u0301\ufe0f𠀀Ｔ恤")
    alphabet += ["[n]", "[SEP]", "cat", "iPhone"]
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(alphabet, k=draw.randint(1, 12)))
        plain = strip_marks(text)
        assert "".join(word for word, _ in tag(plain)) == plain
        applied, unapplied = knowledge.encode([text, text], apply=[True, False]).input_ids
        assert applied.tolist() == unapplied.tolist(), repr(text)
        assert unapplied[unapplied != tokenizer.pad_token_id].tolist() == tokenizer(plain)["input_ids"], repr(text)


def test_each_mechanism_has_its_switch(tokenizer):
    text = "灰色的猫，[n]碗"
    plain = tokenizer("灰色的猫，碗")["input_ids"]

    def encode(**switches):
        encoded = TextKnowledge(tokenizer, 24, **switches).encode([text])
        return encoded.input_ids[0, : int(encoded.attention_mask.sum())].tolist(), encoded.key_token_weights[0]

    ids, weights = encode(key_token_weight=0.0)
    assert ids == tokenizer("[a]灰色的[n]猫，[n]碗")["input_ids"] and (weights == 1).all()
    ids, weights = encode(mark=False)
    assert ids == plain and (weights != 1).sum() == 4
    ids, weights = encode(mark=False, key_token_weight=0.0)
    assert ids == plain and (weights == 1).all()


def test_unapplied_samples_are_plain(tokenizer):
    knowledge = TextKnowledge(tokenizer, 24)
    for apply in (False, [False, False], np.array([False, False])):
        encoded = knowledge.encode(["灰色的猫", "[n]猫"], apply=apply)
        assert tokens_of(tokenizer, encoded.input_ids[0]) == ["[CLS]", "灰", "色", "的", "猫", "[SEP]"]
        assert tokens_of(tokenizer, encoded.input_ids[1]) == ["[CLS]", "猫", "[SEP]"]
        assert (encoded.key_token_weights == 1).all()
    mixed = knowledge.encode(["猫", "猫"], apply=[True, False])
    assert tokens_of(tokenizer, mixed.input_ids[0]) == ["[CLS]", "[n]", "猫", "[SEP]"]
    assert tokens_of(tokenizer, mixed.input_ids[1]) == ["[CLS]", "猫", "[SEP]"]


def test_all_off_needs_no_marks_in_the_tokenizer(tmp_path):
    stock = stock_tokenizer(tmp_path / "stock", STOCK_WORDS)
    encoded = TextKnowledge(stock, 8, key_token_weight=0.0, mark=False).encode(["灰色的猫"])
    assert encoded.input_ids[0, :6].tolist() == stock("灰色的猫")["input_ids"]
    with pytest.raises(ValueError, match="add_marks"):
        TextKnowledge(stock, 8)


def test_given_tags_are_used_when_they_spell_the_text(tokenizer):
    knowledge = TextKnowledge(tokenizer, 24)
    tags = [("灰色的猫", "v")]
    texts = ["灰色的猫", "灰色的猫，碗", "灰色的猫"]
    given, completed, found = knowledge.encode(texts, tags=[tags, tags, None]).input_ids
    assert tokens_of(tokenizer, given)[1:] == ["[v]", "灰", "色", "的", "猫", "[SEP]"]
    assert tokens_of(tokenizer, completed)[1:] == ["[a]", "灰", "色", "的", "[n]", "猫", "，", "[n]", "碗", "[SEP]"]
    assert tokens_of(tokenizer, found)[1:] == ["[a]", "灰", "色", "的", "[n]", "猫", "[SEP]"]


def test_long_text_is_cut_between_tokens_and_flagged(tokenizer):
    knowledge = TextKnowledge(tokenizer, 7)
    texts = ["一只猫在一棵松树的左边", "三只企鹅", "a red taxi on a blue background"]
    encoded = knowledge.encode(texts, apply=[True, True, False])
    assert tokens_of(tokenizer, encoded.input_ids[0]) == ["[CLS]", "[m]", "一", "只", "[n]", "猫", "[SEP]"]
    assert encoded.truncated == [True, True, True]
    assert encoded.dropped == ["在一棵松树的左边", "鹅", "blue background"]
    warning = truncation_warning(encoded)
    assert "7 tokens" in warning and "在一棵松树的左边" in warning and "blue background" in warning
    assert truncation_warning(knowledge.encode(["猫", ""])) is None


def test_mark_is_not_left_without_its_word(tokenizer):
    encoded = TextKnowledge(tokenizer, 6).encode(["一只猫"])  # [CLS] [m] 一 只 [n] | 猫 [SEP]
    assert tokens_of(tokenizer, encoded.input_ids[0]) == ["[CLS]", "[m]", "一", "只", "[SEP]"]
    assert encoded.dropped == ["猫"]
    assert encoded.key_token_weights.shape == encoded.input_ids.shape == (1, 6)


def test_repeated_captions_come_from_the_cache(tokenizer, captions, monkeypatch):
    knowledge = TextKnowledge(tokenizer, 24)
    first = knowledge.encode(captions)

    def refuse(*args):
        raise AssertionError("not cached")

    monkeypatch.setattr("ppvilg.knowledge.text.tag", refuse)
    monkeypatch.setattr(tokenizer, "tokenize", refuse)
    second = knowledge.encode(captions)
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    second.input_ids[:] = 0  # a caller's change must not reach the cache
    np.testing.assert_array_equal(knowledge.encode(captions).input_ids, first.input_ids)


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(ValueError, match="max_length must be at least 3.*got 2"):
        TextKnowledge(tokenizer, 2)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="key_token_weight"):
            TextKnowledge(tokenizer, 8, key_token_weight=wrong)
    knowledge = TextKnowledge(tokenizer, 8)
    with pytest.raises(TypeError, match="list of strings"):
        knowledge.encode("猫")
    with pytest.raises(ValueError, match="2 texts need as many apply"):
        knowledge.encode(["猫", "狗"], apply=[True])


def test_no_texts_give_an_empty_batch(tokenizer):
    encoded = TextKnowledge(tokenizer, 8).encode([])
    assert encoded.input_ids.shape == encoded.key_token_weights.shape == (0, 8)
