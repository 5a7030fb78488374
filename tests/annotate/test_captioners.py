"""Captions: counted from boxes in Chinese, by a program, by BLIP and BLIP-2 of random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paddle
import pytest
from paddlenlp.transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    GPTTokenizer,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from annotation_shards import noise, write_shards  # noqa: E402

from ppvilg.annotate import Rejection, open_captioner  # noqa: E402
from ppvilg.annotate.detectors import Detection  # noqa: E402
from ppvilg.commands import main  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *"a cat dog on the table photo of two".split()]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES = {**SMALL, "image_size": 32, "patch_size": 8}


def found(*rows: tuple[str, float, int]) -> list[Detection]:
    """Detections of (label, score, side of the box)."""
    return [Detection(label, score, (0, 0, side, side)) for label, score, side in rows]


@pytest.mark.parametrize(
    ("detections", "caption"),
    [
        (found(("cat", 0.9, 5), ("couch", 0.6, 9), ("cat", 0.8, 3)), "图中有一张沙发和两只猫"),
        (found(("dog", 0.9, 5), ("dog", 0.49, 5)), "图中有一只狗"),
        (found(("zebra", 0.9, 9), ("car", 0.9, 5), ("person", 0.9, 3)), "图中有一匹斑马、一辆汽车和一个人"),
        (found(*[("bird", 0.9, 5)] * 10), "图中有十只鸟"),
        (found(*[("bird", 0.9, 5)] * 11), "图中有许多鸟"),
        (found(("cat", 0.4, 5), ("no such label", 0.9, 5)), ""),
        ([], ""),
    ],
)
def test_a_template_counts_what_is_sure(detections, caption):
    assert open_captioner("template").caption([noise(0)], [detections]) == [caption]


def save_blip(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    text = {**SMALL, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "projection_dim": 8, "bos_token_id": 5,
            "max_position_embeddings": 64, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    eyes = {**EYES, "projection_dim": 8}
    config = BlipConfig(text_config=text, vision_config=eyes, projection_dim=8, image_text_hidden_size=16)
    BlipForConditionalGeneration(config).save_pretrained(str(folder))
    eyes = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(eyes, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(str(folder))


def save_blip_2(folder: Path) -> None:
    characters = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(33, 127)), "Ġ", "ca"]
    (folder / "vocab.json").write_text(json.dumps({text: number for number, text in enumerate(characters)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\n")
    tokenizer = GPTTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<pad>",
                             eos_token="</s>", bos_token="</s>", unk_token="<unk>")  # fmt: skip
    text = {**SMALL, "model_type": "opt", "vocab_size": len(characters), "word_embed_proj_dim": 16, "bos_token_id": 2,
            "max_position_embeddings": 128, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    middle = {**SMALL, "vocab_size": 30, "encoder_hidden_size": 16}
    config = Blip2Config(vision_config=EYES, qformer_config=middle, text_config=text, num_query_tokens=4)
    Blip2ForConditionalGeneration(config).save_pretrained(str(folder))
    Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(str(folder))


@pytest.mark.parametrize("save", [save_blip, save_blip_2])
def test_blip_says_the_same_of_a_picture_whatever_stands_beside_it(tmp_path, save):
    paddle.seed(0)
    save(tmp_path)
    pictures = [noise(number) for number in range(3)]
    captioner = open_captioner(str(tmp_path))
    together = captioner.caption(pictures, [[]] * 3)
    assert all(together) and together == [captioner.caption([each], [[]])[0] for each in pictures]
    again = open_captioner(str(tmp_path))
    assert again.identity == captioner.identity and again.caption(pictures, [[]] * 3) == together
    asked = open_captioner(str(tmp_path), prompt="a photo of")
    assert all(each.startswith("a photo of ") for each in asked.caption(pictures, [[]] * 3))
    assert asked.identity != captioner.identity
    weights = next(tmp_path.glob("*.pdparams"))
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        open_captioner(str(tmp_path))


def test_a_program_sees_what_was_detected(tmp_path):
    program = tmp_path / "captioner.py"
    program.write_text(
        "import json, sys\n"
        "print(json.dumps({'tool': 'mine', 'version': '1'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    question = json.loads(line)\n"
        "    if 'flush' in question: continue\n"
        "    labels = [each['label'] for each in question['objects']]\n"
        "    print(json.dumps({'caption': ' '.join(labels)} if labels else {'error': 'empty'}), flush=True)\n"
    )
    captioner = open_captioner(f"command:{sys.executable} {program}")
    pictures = [noise(0), noise(1)]
    assert captioner.caption(pictures, [found(("cat", 0.9, 5)), []]) == ["cat", Rejection("empty")]
    captioner.close()


def test_generated_captions_are_in_the_sidecar(tmp_path):
    data = write_shards(tmp_path / "data", shards=1, samples=2)
    (tmp_path / "names.yml").write_text("labels:\n  star:\n    zh: [星星]\n    measure: 颗\n", encoding="utf-8")
    command = ["annotate", "--data", str(data), "--output", str(tmp_path / "out"), "--detector",
               "annotation_shards:brightest", "--captioner", "template"]  # fmt: skip
    assert main([*command, "--names", "coco", str(tmp_path / "names.yml")]) == 0
    lines = (tmp_path / "out" / "00000.annotations.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["stages"][1]["kind"] == "template"
    assert [json.loads(line)["captions"] for line in lines[1:]] == [{"generated": "图中有一颗星星"}] * 2


@pytest.mark.parametrize(
    ("spec", "more", "sentence"),
    [
        ("template", {"prompt": "a"}, "takes no prompt"),
        ("nowhere", {}, "no such captioner: nowhere"),
        ("template", {"names": ["nowhere.yml"]}, "no table of names at nowhere.yml"),
    ],
)
def test_mistakes_are_named(spec, more, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_captioner(spec, **more)


def test_another_model_is_no_captioner(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "ernie"}')
    with pytest.raises(ValueError, match="model_type is 'ernie', a captioner's is one of blip, blip-2"):
        open_captioner(str(tmp_path))
