"""Arguments in the forms that people write them: taken, or refused by one sentence that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from ppvilg.pipelines import ErnieViLG2Pipeline
from ppvilg.pipelines.images import save_png

PROMPT = "三只企鹅"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def draw(pipeline, *arguments, **named) -> np.ndarray:
    settings = {"generator": 0, "output_type": "np", "num_inference_steps": 2}
    return pipeline(*(arguments or (PROMPT,)), **{**settings, **named}).images


def test_height_and_width_are_the_second_and_third_as_in_stock_pipelines(pipeline):
    images = pipeline(PROMPT, 24, 16, 2, 3.0, "红色", generator=0, output_type="np").images
    named = {"height": 24, "width": 16, "guidance_scale": 3.0, "negative_prompt": "红色"}
    assert np.array_equal(images, draw(pipeline, **named)) and images.shape == (1, 24, 16, 3)


def test_numbers_of_any_type(pipeline):
    plain = draw(pipeline, guidance_scale=2.0, num_images_per_prompt=2)
    for scale in (np.array(2.0), np.float32(2), paddle.to_tensor(2.0), np.full(4, 2.0), 2):
        assert np.array_equal(draw(pipeline, guidance_scale=scale, num_images_per_prompt=np.int64(2)), plain)


def test_pictures_in_any_form(pipeline, tmp_path):
    image, path = Image.fromarray(PIXELS), tmp_path / "x.png"
    image.save(path)
    expected = draw(pipeline, image=image)
    for form in (path, str(path), [image], PIXELS.astype(np.float32) / 255):
        assert np.array_equal(draw(pipeline, image=form), expected)
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(draw(pipeline, image=grey), draw(pipeline, image=np.stack([grey] * 3, -1)))
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    Image.fromarray(mask).convert("L").save(tmp_path / "mask.png")
    masked = draw(pipeline, image=image, mask_image=mask)
    for form in (mask.astype(np.float32), mask[..., None], paddle.to_tensor(mask), tmp_path / "mask.png"):
        assert np.array_equal(draw(pipeline, image=image, mask_image=form), masked)


def test_pictures_are_seen_as_in_training(pipeline):
    """Turned by EXIF, transparency on white, 16 bit scaled down."""
    phone, exif = Image.new("RGB", (24, 16), "red"), Image.Exif()
    exif[0x112] = 6
    phone.info["exif"] = exif.tobytes()
    assert draw(pipeline, image=phone, strength=0).shape == (1, 24, 16, 3)
    clear = draw(pipeline, image=Image.new("RGBA", (16, 16), (0, 0, 0, 0)), strength=0)
    assert np.array_equal(clear, draw(pipeline, image=Image.new("RGB", (16, 16), "white"), strength=0))
    deep = draw(pipeline, image=Image.fromarray(np.full((16, 16), 20000, np.uint16)), strength=0)
    assert np.array_equal(deep, draw(pipeline, image=Image.new("RGB", (16, 16), (78, 78, 78)), strength=0))


def test_the_size_of_a_picture_is_rounded_down(pipeline):
    assert draw(pipeline, image=Image.new("RGB", (19, 26))).shape == (1, 24, 16, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "https://example.org/cat.png"}, "image: URLs are not fetched"),
        ({"image": b"\x89PNG"}, "image must be a PIL picture, a file.*got bytes"),
        ({"image": []}, "image must be one picture, got 0"),
        ({"image": np.zeros((3, 16, 16), np.float32)}, r"shape \(H, W\) or \(H, W, 3\), got \(3, 16, 16\)"),
        ({"image": np.full((16, 16), np.nan, np.float32)}, r"must be in \[0, 1\]"),
        ({"image": Image.new("RGB", (4000, 3000))}, "4000x3000 pixels needs .* GiB for one attention map"),
        ({"height": 40000, "width": 40000}, "40000x40000 pixels needs"),
        ({"height": "64"}, "height must be a whole number from 1, got height='64'"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt must be a whole number"),
        ({"guidance_scale": "7.5"}, "guidance_scale must be a number, got '7.5'"),
        ({"guidance_scale": [1, None, 1, 1]}, "guidance_scale must be a number, got None"),
        ({"image": Image.new("RGB", (16, 16)), "strength": "0.5"}, "strength must be a number"),
        ({"latents": [1, 2]}, "latents must be a tensor or an array"),
        ({"callback_on_step_end": 3}, "callback_on_step_end must be a function"),
        ({"callback_on_step_end": lambda *_: True}, "must return None or a dict of latents"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "must be a list of latents"),
        ({"prompt_embeds": paddle.zeros([1, 16, 16])}, "give a prompt or prompt_embeds"),
        ({"negative_prompt": "红", "negative_prompt_embeds": paddle.zeros([1, 16, 16])}, "not both"),
        ({"negative_prompt_embeds": paddle.zeros([1, 16, 8])}, r"must have shape \(1, tokens, 16\), got \[1, 16, 8\]"),
        ({"negative_prompt_embeds": paddle.zeros([1, 9, 16])}, "have 16 and 9 tokens"),
    ],
)
def test_refused_by_one_sentence(pipeline, arguments, message):
    calls = []
    hook = pipeline.vae.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        draw(pipeline, **arguments)
    hook.remove()
    assert not calls


def test_embeddings_instead_of_prompts(pipeline):
    told, against = pipeline.encode_prompt([PROMPT]), pipeline.encode_prompt(["红色"], apply=False)
    expected = draw(pipeline, negative_prompt="红色", num_images_per_prompt=2)
    given = pipeline(
        prompt_embeds=told,
        negative_prompt_embeds=against.hidden_states,
        num_images_per_prompt=2,
        generator=0,
        num_inference_steps=2,
        output_type="np",
    )
    assert np.array_equal(given.images, expected)
    alone = pipeline(prompt_embeds=told.hidden_states, generator=0, num_inference_steps=2, output_type="np").images
    assert np.abs(alone - draw(pipeline)).max() > 1e-6  # without key-token weights


def test_no_guidance_at_one_and_below(pipeline):
    encoded, encode = [], pipeline.text_encoder.forward
    pipeline.text_encoder.forward = lambda *given: encoded.append(len(given[-1])) or encode(given[-1])
    try:
        plain = draw(pipeline, guidance_scale=1)
        assert np.array_equal(draw(pipeline, guidance_scale=0), plain) and encoded == [1, 1]
        encoded.clear()
        draw(pipeline, [PROMPT, "红色的车", PROMPT], guidance_scale=3)
        assert encoded == [3, 1]  # the empty prompt once
    finally:
        del pipeline.text_encoder.forward


def test_callbacks_get_the_tensors_they_ask_for(pipeline):
    def look(caller, step, timestep, tensors):
        assert set(tensors) == {"latents", "prompt_embeds", "negative_prompt_embeds"}
        return {"prompt_embeds": paddle.zeros_like(tensors["prompt_embeds"])}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    changed = draw(pipeline, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert np.abs(changed - draw(pipeline)).max() > 1e-3


# ---- files ----


@pytest.mark.parametrize("damage", ["pointer", "cut", "empty"])
def test_a_damaged_weight_file_is_named(pipeline, tmp_path, damage):
    pipeline.save_pretrained(tmp_path)
    file = next((tmp_path / "vae").glob("*.safetensors"))
    data = {"pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "empty": b""}
    file.write_bytes(data.get(damage, file.read_bytes()[:-100]))
    said = {"pointer": "Git LFS pointer", "cut": "cut off or damaged", "empty": "is empty"}[damage]
    with pytest.raises(ValueError, match=f"{file.name}.* {said}|{file.name} {said}"):
        ErnieViLG2Pipeline.from_pretrained(tmp_path)


def test_a_full_disk_leaves_no_picture(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", {})
    assert not list(Path(tmp_path).iterdir())
