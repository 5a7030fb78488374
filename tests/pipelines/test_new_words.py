"""Adapters that bring new words: learned in training, read from files, heard while they are on, saved when fused."""

from __future__ import annotations

import copy
import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from ppvilg.knowledge import NewWord
from ppvilg.models.lora import Adapter, AdapterSettings, TaughtWord
from ppvilg.models.lora_files import METADATA, WORD_ROWS, read_adapter, write_adapter
from ppvilg.pipelines import ErnieViLG2Pipeline
from ppvilg.pipelines.adapters import AddedWords, starting_rows

PROMPT = "三只狐狸"
CALL = {"generator": 3, "output_type": "np"}
pytestmark = pytest.mark.filterwarnings("ignore:prompt has words")


@pytest.fixture
def own(tiny):
    """A copy that a test may change."""
    return copy.deepcopy(tiny)


def draw(pipeline, prompt=PROMPT) -> np.ndarray:
    return pipeline(prompt, **CALL).images


def ids_of(pipeline, text=PROMPT) -> list[int]:
    return pipeline.text_knowledge.encode([text]).input_ids[0].tolist()


def state_of(pipeline) -> list:
    weights = [value.numpy() for value in pipeline.text_encoder.state_dict().values()]
    tokenizer = pipeline.tokenizer
    kept = tokenizer.get_vocab(), tokenizer.tokenize(PROMPT + "sks"), dict(tokenizer.init_kwargs)
    return [*weights, *kept, pipeline.text_encoder.config.vocab_size]


def same(first, second) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(first, second, strict=True)
    )


def file_of(pipeline, path, *words, seed=0):
    rows = np.random.default_rng(seed).standard_normal((len(words), 16)).astype(np.float32)
    taught = [TaughtWord(word, "n", None, row) for word, row in zip(words, rows)]
    settings = AdapterSettings(pipeline.unet.num_experts, list(pipeline.unet.boundaries))
    write_adapter(Adapter(settings=settings, words=taught), path)
    return path


def test_only_the_rows_of_new_words_learn_and_a_file_draws_as_they_did(own, tmp_path):
    before, encoder, tokenizer = state_of(own), own.text_encoder, own.tokenizer
    words = [NewWord("狐狸"), NewWord("sks", "a", 0.4)]
    start = starting_rows(tokenizer, encoder, words, ["企鹅", None])
    table = encoder.get_input_embeddings().weight.numpy()
    assert np.allclose(start[0], table[tokenizer.convert_tokens_to_ids(["企", "鹅"])].mean(axis=0), atol=1e-6)
    added = AddedWords(tokenizer, encoder, words, start, learn=True)
    ids = paddle.to_tensor([ids_of(own, "狐狸sks企鹅")])
    optimizer = paddle.optimizer.AdamW(0.1, parameters=encoder.parameters())
    encoder(ids)[0].square().sum().backward()
    assert encoder.get_input_embeddings().weight.grad is None
    optimizer.step()
    optimizer.clear_grad()
    learned = added.taught()
    assert all(np.abs(each.row - row).min() > 0.01 for each, row in zip(learned, start))
    with paddle.no_grad():
        seen = encoder(ids)[0].numpy()
    written = Adapter(settings=AdapterSettings(2, list(own.unet.boundaries)), words=learned)
    write_adapter(written, tmp_path / "fox.safetensors")
    added.take_out()
    assert same([table], [encoder.get_input_embeddings().weight.numpy()]) and same(state_of(own)[-4:], before[-4:])
    own.load_lora_weights(tmp_path / "fox.safetensors")
    with paddle.no_grad():
        assert np.array_equal(encoder(ids)[0].numpy(), seen)
    assert own.text_knowledge.words == tuple(words)
    found = read_adapter(tmp_path / "fox.safetensors", own.unet.experts[0], encoder)
    for one, other in zip(found.words, learned, strict=True):
        assert (one.word, one.mark, one.key_token_weight) == (other.word, other.mark, other.key_token_weight)
        assert np.array_equal(one.row, other.row)


def test_words_are_heard_while_their_adapter_is_on_and_gone_without_a_trace(own, tmp_path):
    before, picture, others = state_of(own), draw(own), draw(own, "一辆红色出租车")
    fox = file_of(own, tmp_path / "fox.safetensors", "狐狸")
    own.load_lora_weights(fox, scale=0)
    assert np.array_equal(draw(own), picture)
    own.set_adapters("fox", [0, 0.5])
    with_fox = draw(own)
    assert np.abs(with_fox - picture).max() > 1e-3 and not own.text_knowledge.unknown_words(PROMPT)
    assert np.array_equal(draw(own, "一辆红色出租车"), others)
    own.load_lora_weights(file_of(own, tmp_path / "cub.safetensors", "小熊", "sks", seed=1), "cub")
    assert np.array_equal(draw(own), with_fox) and [word.word for word in own.text_knowledge.words] == [
        "狐狸",
        "小熊",
        "sks",
    ]
    together = draw(own, "小熊和狐狸")
    own.delete_adapters("fox")
    own.load_lora_weights(fox)  # behind the other now
    assert np.array_equal(draw(own, "小熊和狐狸"), together) and own.get_list_adapters()["text_encoder"] == [
        "cub",
        "fox",
    ]
    copied = copy.deepcopy(own)
    own.disable_lora()
    assert same(state_of(own), before) and np.array_equal(draw(own), picture)
    own.unload_lora_weights()
    assert np.array_equal(draw(copied, "小熊和狐狸"), together)
    copied.unload_lora_weights()
    assert same(state_of(copied), before)


def test_one_word_of_two_adapters_is_refused_while_both_are_on(own, tmp_path):
    first, second = (file_of(own, tmp_path / f"{name}.safetensors", "狐狸", seed=k) for k, name in enumerate("ab"))
    own.load_lora_weights(first)
    heard = state_of(own)
    with pytest.raises(ValueError, match="adapters 'a' and 'b' both teach '狐狸': turn one of them off"):
        own.load_lora_weights(second)
    assert own.get_active_adapters() == ["a"] and same(state_of(own), heard)
    own.load_lora_weights(second, scale=0)
    one = draw(own)
    own.set_adapters("b")
    assert not np.array_equal(draw(own), one)
    with pytest.raises(ValueError, match="both teach"):
        own.enable_lora()
    own.set_adapters("a")
    assert np.array_equal(draw(own), one)


def test_saving_keeps_words_only_where_they_are_fused(own, tmp_path):
    before, picture = state_of(own), draw(own)
    own.load_lora_weights(file_of(own, tmp_path / "fox.safetensors", "狐狸"))
    with_fox = draw(own)
    with pytest.raises(ValueError, match="adapters are on"):
        own.save_pretrained(tmp_path / "no")
    own.disable_lora()
    own.save_pretrained(tmp_path / "plain")
    own.enable_lora()
    own.fuse_lora()
    own.save_pretrained(tmp_path / "fused")
    for folder, expected in (("plain", picture), ("fused", with_fox)):
        for count in (None, 1):
            other = ErnieViLG2Pipeline.from_pretrained(tmp_path / folder, max_resident_experts=count)
            other.set_progress_bar_config(disable=True)
            assert np.array_equal(draw(other), expected), (folder, count)
    with pytest.raises(ValueError, match="fox.safetensors: '狐狸' is a token of the model already"):
        other.load_lora_weights(tmp_path / "fox.safetensors")
    own.unfuse_lora()
    own.unload_lora_weights()
    assert same(state_of(own), before)


def test_streamed_experts_know_words_too(own, saved, tmp_path):
    fox = file_of(own, tmp_path / "fox.safetensors", "狐狸")
    own.load_lora_weights(fox)
    streamed = ErnieViLG2Pipeline.from_pretrained(saved, max_resident_experts=1)
    streamed.set_progress_bar_config(disable=True)
    picture = draw(streamed)
    streamed.load_lora_weights(fox)
    assert np.array_equal(draw(streamed), draw(own))
    streamed.unload_lora_weights()
    assert np.array_equal(draw(streamed), picture)


def test_half_a_table_of_words_in_other_precisions(own, tmp_path):
    own.text_encoder.to(dtype="float64")
    wide = state_of(own)
    own.load_lora_weights(file_of(own, tmp_path / "fox.safetensors", "狐狸"))
    assert own.text_encoder.get_input_embeddings().weight.dtype == paddle.float64
    own.unload_lora_weights()
    assert same(state_of(own), wide)


@pytest.mark.parametrize(
    ("words", "rows", "said"),
    [
        ([{"word": "狐狸", "mark": "n", "key_token_weight": None}], None, "1 new words, for which .* it has none"),
        ([], (1, 16), r"0 new words, .* it has \(1, 16\)"),
        ([{"word": "狐狸", "mark": "n", "key_token_weight": None}], (1, 8), r"needs rows \(1, 16\): it has \(1, 8\)"),
        ([{"word": "狐狸"}], (1, 16), "its new words cannot be read"),
        ([{"word": "狐 狸", "mark": "n", "key_token_weight": None}], (1, 16), "without spaces, got '狐 狸'"),
        ([{"word": "企", "mark": "n", "key_token_weight": None}], (1, 16), "'企' is a token of the model already"),
        ([{"word": "狐狸", "mark": "n", "key_token_weight": None}], "nan", "not finite"),
    ],
)
def test_files_whose_words_are_refused_by_one_sentence(own, tmp_path, words, rows, said):
    file, before = file_of(own, tmp_path / "a.safetensors", "狐狸"), state_of(own)
    told = json.dumps({"settings": vars(AdapterSettings(2, list(own.unet.boundaries))), "alphas": {}, "words": words})
    tensors = (
        {"filler": np.zeros(1, "f4")}
        if rows is None
        else {WORD_ROWS: np.zeros(rows if rows != "nan" else (1, 16), "f4")}
    )
    if rows == "nan":
        tensors = {WORD_ROWS: load_file(file)[WORD_ROWS] * np.nan}
    save_file(tensors, str(tmp_path / "b.safetensors"), metadata={METADATA: told})
    with pytest.raises(ValueError, match=said) as refused:
        own.load_lora_weights(tmp_path / "b.safetensors")
    assert "b.safetensors" in str(refused.value) and same(state_of(own), before) and not own.get_list_adapters()
