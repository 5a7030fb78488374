"""Scores of pictures with their prompts: equal to transformers' for the same small random weights; the whole suite."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppvilg.evaluation.metrics.scorer import ImageTextScorer, prepare
from ppvilg.evaluation.suites.clip_score import ClipScoreRecipe, ClipScoreSuite, summarise

ENGLISH = ["the cat", "a red car and the other dog", "x" * 200]
CHINESE = ["一只猫", "蓝色背景上的两只狗", "车" * 100]
LETTERS = "一只猫狗两在蓝色的背景上，红车辆"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def pictures(count: int = 3) -> list[Image.Image]:
    """Noise of several shapes, one smaller than what a model takes."""
    rng, shapes = np.random.default_rng(0), [(40, 56), (64, 32), (20, 20)]
    return [Image.fromarray(rng.integers(0, 255, (*shapes[i % 3], 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def peers(import_peer):
    """transformers, importable."""
    import_peer("torch")
    return import_peer("transformers")


def vocabulary_files(folder: Path) -> tuple[dict[str, int], Path, Path]:
    """A byte pair vocabulary with two merges."""
    printable = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256))]
    printable += [chr(256 + i) for i in range(256 - len(printable))]
    words = [*printable, *(each + "</w>" for each in printable), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n", encoding="utf-8")
    return vocabulary, folder / "vocab.json", folder / "merges.txt"


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def english_peer(library, folder: Path):
    import torch

    vocabulary, *files = vocabulary_files(folder)
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = {**TOWER, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 40}
    torch.manual_seed(0)
    config = library.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24, initializer_factor=5.0)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = library.CLIPProcessor(library.CLIPImageProcessor(**size), library.CLIPTokenizer(*map(str, files)))
    return library.CLIPModel(config).eval(), processor


def chinese_peer(library, folder: Path):
    import torch

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 40}
    torch.manual_seed(0)
    towers = {"text_config": text, "vision_config": VISION}
    config = library.ChineseCLIPConfig(**towers, projection_dim=24, initializer_factor=5.0)
    size = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    tokenizer = library.BertTokenizer(str(folder / "vocab.txt"))
    processor = library.ChineseCLIPProcessor(library.ChineseCLIPImageProcessor(**size), tokenizer)
    return library.ChineseCLIPModel(config).eval(), processor


@pytest.mark.parametrize(
    ("kind", "build", "texts"), [("clip", english_peer, ENGLISH), ("chinese_clip", chinese_peer, CHINESE)]
)
def test_equal_to_transformers(kind, build, texts, peers, tmp_path):
    import torch

    (tmp_path / "files").mkdir()
    model, processor = build(peers, tmp_path / "files")
    model.save_pretrained(tmp_path / "model", safe_serialization=True)
    processor.save_pretrained(tmp_path / "model")
    settings = {"padding": True, "truncation": True, "max_length": 40, "return_tensors": "pt"}
    with torch.no_grad():
        output = model(**processor(text=texts, images=pictures(), **settings))
        expected = (output.logits_per_image / model.logit_scale.exp()).numpy()
    before = {path.name for path in (tmp_path / "model").iterdir()}
    scorer = ImageTextScorer(kind, tmp_path / "model")
    found = scorer.embed_images(pictures()) @ scorer.embed_texts(texts).T
    assert expected.std() > 0.01 and np.abs(found - expected).max() <= 1e-4
    assert scorer.similarities(pictures(), texts, batch_size=2) == pytest.approx(np.diag(expected), abs=1e-4)
    assert {path.name for path in (tmp_path / "model").iterdir()} == before  # nothing is written into it


@pytest.fixture(scope="module")
def ernie_vil(tmp_path_factory) -> Path:
    """Folder of a small random ErnieViL, saved by PaddleNLP."""
    import paddle
    from paddlenlp.transformers import ErnieViLConfig, ErnieViLImageProcessor, ErnieViLModel, ErnieViLTokenizer

    folder = tmp_path_factory.mktemp("ernie_vil")
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *dict.fromkeys(LETTERS)]
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 40, "task_type_vocab_size": 3}
    paddle.seed(0)
    model = ErnieViLModel(ErnieViLConfig(text_config=text, vision_config=VISION))
    model.save_pretrained(str(folder / "model"))
    ErnieViLTokenizer(str(folder / "words.txt")).save_pretrained(str(folder / "model"))
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    ErnieViLImageProcessor(**size).save_pretrained(str(folder / "model"))
    return folder / "model"


def test_ernie_vil(ernie_vil):
    """The cosines are those behind the model's own logits."""
    import paddle

    scorer = ImageTextScorer("ernie_vil", ernie_vil, allow_pickle=True)
    pixels = np.stack([prepare(image, scorer.processor.image_processor) for image in pictures()])
    assert pixels.shape == (3, 3, 32, 32)
    tokens = scorer.processor(text=CHINESE[:2], padding=True, return_tensors="pd")
    with paddle.no_grad():
        output = scorer.model(pixel_values=paddle.to_tensor(pixels), **tokens)
    expected = (output.logits_per_image / scorer.model.temperature.exp()).numpy()
    found = scorer.embed_images(pictures()) @ scorer.embed_texts(CHINESE[:2]).T
    assert np.abs(found - expected).max() <= 1e-4 and expected.std() > 1e-4


def recipe_for(output: Path, ernie_vil: Path, **changes) -> ClipScoreRecipe:
    settings = {"scorer": "ernie_vil", "weights": str(ernie_vil), "num_inference_steps": 2, "allow_pickle": True}
    return ClipScoreRecipe(output=str(output), **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(model, ernie_vil, tmp_path_factory) -> tuple[Path, dict, Path]:
    folder = tmp_path_factory.mktemp("clipscore")
    lines = ["一只猫", "两只狗", "红色的车", "蓝色的背景", "一辆车"]
    (folder / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {"model": model, "prompts": str(folder / "prompts.txt"), "count": 5, "draw_size": [64, 64]}
    report = ClipScoreSuite(recipe_for(folder / "output", ernie_vil, **settings)).run()
    return folder / "output", report, folder / "prompts.txt"


def test_suite(finished):
    output, report, _ = finished
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    cosine, score = (report["results"][name] for name in ("cosine", "clip_score"))
    assert cosine["count"] == 5 and cosine["interval"][0] <= cosine["mean"] <= cosine["interval"][1]
    assert len(report["hashes"]["scorer"]) == len(report["hashes"]["model"]) == 64
    scores = [json.loads(line) for line in (output / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["text"] for entry in scores][:2] == ["一只猫", "两只狗"]
    assert np.mean([entry["cosine"] for entry in scores]) == pytest.approx(cosine["mean"])
    assert np.mean([max(2.5 * entry["cosine"], 0) for entry in scores]) == pytest.approx(score["mean"])
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 10 and "<svg" in page and not re.search(r"(src|href|url)=?[(\"]+https?:", page)


def test_pictures_that_were_drawn(finished, ernie_vil, tmp_path):
    """Pictures of an earlier run are scored with its prompts; nothing is drawn."""
    output, report, _ = finished
    again = ClipScoreSuite(recipe_for(tmp_path / "out", ernie_vil, pictures=str(output / "pictures"))).run()
    assert again["results"] == report["results"] and again["generated"] == report["generated"]
    shutil.copytree(output / "pictures", tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures" / "00002")
    with pytest.raises(ValueError, match="do not pair up: there is no picture for number 00002"):
        ClipScoreSuite(recipe_for(tmp_path / "b", ernie_vil, pictures=str(tmp_path / "pictures"))).run()
    (tmp_path / "pictures" / "00001" / "samples" / "0000.png").write_bytes(b"no picture")
    shutil.copytree(output / "pictures" / "00002", tmp_path / "pictures" / "00002")
    with pytest.raises(ValueError, match="00001/samples/0000.png is not a picture"):
        ClipScoreSuite(recipe_for(tmp_path / "b", ernie_vil, pictures=str(tmp_path / "pictures"))).run()


def test_what_is_refused(finished, ernie_vil, tmp_path):
    output, _, prompts = finished
    with pytest.raises(ValueError, match="holds a ernie_vil model, scorer=clip was asked for"):
        ImageTextScorer("clip", ernie_vil)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        ImageTextScorer("clip", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageTextScorer("clip", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="scorer='vit': use clip, chinese_clip or ernie_vil"):
        recipe_for(tmp_path, ernie_vil, scorer="vit", prompts=str(prompts))
    with pytest.raises(ValueError, match="give prompts= for the model to draw"):
        recipe_for(tmp_path, ernie_vil)
    with pytest.raises(ValueError, match="prompt 0 has no text='prompt_en'"):
        ClipScoreSuite(recipe_for(tmp_path, ernie_vil, pictures=str(output / "pictures"), text="prompt_en"))
    with pytest.raises(FileNotFoundError, match="has no evaluation_metadata.jsonl"):
        ClipScoreSuite(recipe_for(tmp_path, ernie_vil, pictures=str(tmp_path)))
    with pytest.raises(ValueError, match="2 pictures and 1 texts do not pair up"):
        ImageTextScorer("ernie_vil", ernie_vil, allow_pickle=True).similarities(pictures(2), ["一只猫"])
    shutil.copytree(ernie_vil, tmp_path / "damaged")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text(encoding="utf-8"))
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks vision_model.transformer.layers.2.* in the shape"):
        ImageTextScorer("ernie_vil", tmp_path / "damaged", allow_pickle=True)


def test_no_pickle_is_loaded_unasked(ernie_vil, tmp_path):
    """Safetensors come first; a pickle is opened where the recipe allows it, and PyTorch's never."""
    import paddle
    from safetensors.numpy import save_file

    with pytest.raises(ValueError, match="model_state.pdparams is a pickle, which can run code: set allow_pickle=true"):
        ImageTextScorer("ernie_vil", ernie_vil)
    with pytest.raises(ValueError, match="of that name is a pickle, .* set allow_pickle=true"):
        ImageTextScorer("ernie_vil", "PaddlePaddle/ernie_vil-2.0-base-zh")
    shutil.copytree(ernie_vil, tmp_path / "model")
    pickled = tmp_path / "model" / "model_state.pdparams"
    save_file(paddle.load(str(pickled), return_numpy=True), str(tmp_path / "model" / "model.safetensors"))
    pickled.write_bytes(b"not opened")
    found = ImageTextScorer("ernie_vil", tmp_path / "model")
    assert found.sha256 == ImageTextScorer("ernie_vil", ernie_vil, allow_pickle=True).sha256
    weights = tmp_path / "model" / "model.safetensors"
    for content, message in ((weights.read_bytes()[:5000], "is cut off or damaged"), (LFS, "Git LFS pointer")):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=f"model.safetensors {message}|model.safetensors is a {message}"):
            ImageTextScorer("ernie_vil", tmp_path / "model")
    weights.rename(tmp_path / "model" / "pytorch_model.bin")
    pickled.unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, .* convert it by python -c"):
        ImageTextScorer("ernie_vil", tmp_path / "model", allow_pickle=True)


def test_prefix_of_the_paper(finished, ernie_vil, tmp_path):
    """Hessel et al. score "A photo depicts" and the caption: one blank between them."""
    output, report, _ = finished
    given = {"pictures": str(output / "pictures"), "text_prefix": "两只 "}
    again = ClipScoreSuite(recipe_for(tmp_path / "out", ernie_vil, **given)).run()
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text("utf-8").splitlines()]
    assert scores[0]["text"] == "两只 一只猫" and again["results"] != report["results"]


def test_prompts_are_the_units():
    prompts = [{"number": 0}, {"number": 0}, {"number": 1}]
    results = summarise(prompts, np.array([0.2, 0.4, -0.5]))
    assert results["cosine"]["count"] == 2 and results["cosine"]["mean"] == pytest.approx(-0.1)
    assert results["clip_score"]["mean"] == pytest.approx(2.5 * 0.3 / 2)
