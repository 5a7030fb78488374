"""One way to open whatever a model is."""

from __future__ import annotations

import numpy as np
import pytest

from ppvilg.pipelines import ErnieViLG2Pipeline, open_pipeline


def draw(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("三只企鹅", generator=0, output_type="np").images


def test_folder_streamed_folder_and_bundle_draw_the_same(tiny, saved, bundle):
    expected = draw(tiny)
    assert np.array_equal(draw(open_pipeline(saved, device="cpu")), expected)
    assert np.array_equal(draw(open_pipeline(str(saved), max_resident_experts=1)), expected)
    np.testing.assert_allclose(draw(open_pipeline(bundle)), expected, atol=1 / 255)
    assert isinstance(open_pipeline("emoji64"), ErnieViLG2Pipeline)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "onednn"}, "backend 'onednn' is for bundles, and .* is no bundle"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown"),
        ({"device": "tpu"}, "device must be 'cpu', 'gpu' or 'gpu:N', got 'tpu'"),
        ({"device": "gpu:99"}, "device 'gpu:99' is not there"),
        ({"threads": 0}, "threads must be a whole number from 1, got 0"),
        ({"max_resident_experts": 3}, "max_resident_experts must be a whole number from 1 to 2"),
    ],
)
def test_what_does_not_fit_a_folder(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_pipeline(saved, **arguments)


def test_what_is_no_model(tmp_path, bundle):
    with pytest.raises(FileNotFoundError, match=r"neither a pipeline folder \(no model_index.json\) nor a bundle"):
        open_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'emoji65' is neither a folder nor a model of the zoo \(emoji64\)"):
        open_pipeline("emoji65")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        open_pipeline(bundle, backend="cuda")
