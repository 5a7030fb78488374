"""An adapter and its words become part of a bundle: it draws what the pipeline draws with them, within the proof."""

from __future__ import annotations

import numpy as np
import pytest

from ppvilg.export import export_model
from ppvilg.export.tolerances import PICTURE_TOLERANCE
from ppvilg.models.lora import Adapter, AdapterSettings, LowRank, TaughtWord
from ppvilg.models.lora_files import write_adapter
from ppvilg.pipelines import open_pipeline
from tests.bundles import components, tiny  # noqa: F401  (fixtures)

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
PROMPTS = ["三只sks狐狸", "一辆红色出租车"]


def test_a_fused_bundle_draws_what_the_pipeline_draws(tiny, tmp_path):  # noqa: F811
    random = np.random.default_rng(0)

    def change(*shapes) -> LowRank:
        return LowRank(*(random.standard_normal(shape).astype("f4") for shape in shapes), 1.0)

    taught = [TaughtWord(word, "n", 1.0, random.standard_normal(16).astype("f4")) for word in ("狐狸", "sks")]
    adapter = Adapter(
        {f"{BLOCK}.attn2.to_v": change((2, 16), (8, 2)), "conv_in": change((2, 4, 3, 3), (8, 2, 1, 1))},
        {1: {f"{BLOCK}.attn1.to_q": change((2, 8), (8, 2))}},
        {"encoder.layers.0.self_attn.q_proj": change((2, 16), (16, 2))},
        AdapterSettings(2, [0, 50, 100]),
        taught,
    )
    write_adapter(adapter, tmp_path / "a.safetensors")
    tiny.save_pretrained(tmp_path / "model")
    chosen = [(tmp_path / "a.safetensors", 0.5)]
    manifest = export_model(tmp_path / "model", tmp_path / "bundle", ["onednn"], PROMPTS, adapters=chosen)
    eager = open_pipeline(tmp_path / "model", adapters=chosen)
    plain = open_pipeline(tmp_path / "model")
    exported = open_pipeline(tmp_path / "bundle", "onednn")
    pictures = {}
    for name, pipeline in (("eager", eager), ("plain", plain), ("exported", exported)):
        pipeline.set_progress_bar_config(disable=True)
        pictures[name] = pipeline(PROMPTS, generator=1, output_type="np").images
    assert np.abs(pictures["exported"] - pictures["eager"]).mean() < PICTURE_TOLERANCE["float32"]
    assert np.abs(pictures["exported"] - pictures["eager"]).max() < np.abs(pictures["plain"] - pictures["eager"]).max()
    assert exported.text_knowledge.words == eager.text_knowledge.words and not plain.text_knowledge.words
    first, second = (each.text_knowledge.encode(PROMPTS) for each in (exported, eager))
    assert (first.input_ids == second.input_ids).all() and (first.key_token_weights == second.key_token_weights).all()
    assert manifest.components["text_encoder"]["vocab_size"] == plain.text_encoder.config.vocab_size + 2
    with pytest.raises(ValueError, match="as they were exported"):
        exported.load_lora_weights(tmp_path / "a.safetensors")
