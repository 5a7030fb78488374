"""A bundle behind the service: what several people share is what each has alone, on the fastest proven back end."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the service's packages are not installed: pip install ppvilg[serve]")

from ppvilg.pipelines import open_pipeline  # noqa: E402
from ppvilg.serving.worker.painter import PipelinePainter  # noqa: E402
from tests.serving.desk import Desk  # noqa: E402

ASKED = [
    {"prompt": "三只企鹅", "num_inference_steps": 4},
    {"prompt": "一辆红色出租车", "num_inference_steps": 7, "seed": 2, "sampler": "euler", "guidance_scale": 1.0},
    {"prompt": "猫", "num_inference_steps": 5, "seed": 3, "height": 24, "sampler": "unipc"},
    {"prompt": "猫", "num_inference_steps": 6, "seed": 4, "word_weights": {"猫": 3.0}},
]


def pixels(desk: Desk, job) -> np.ndarray:
    return np.asarray(desk.picture(job), dtype=int)


def test_pictures_of_a_bundle(tiny, bundle, tmp_path):
    """Within one of 255 levels: an engine's own arithmetic may depend on the batch."""
    tiny.save_pretrained(tmp_path / "tiny")
    dygraph = Desk(tmp_path / "tiny", PipelinePainter(tiny), tmp_path / "dygraph")
    exported = Desk(bundle, PipelinePainter(open_pipeline(bundle)), tmp_path / "exported")
    assert exported.info.is_bundle and exported.info.shapes == dygraph.info.shapes
    alone = []
    for asked in ASKED:
        alone.append(exported.submit(**asked))
        exported.finish(alone[-1])
    together = [exported.submit(f"owner {number}", **asked) for number, asked in enumerate(ASKED)]
    plain = [dygraph.submit(f"owner {number}", **asked) for number, asked in enumerate(ASKED)]
    exported.finish(*together)
    dygraph.finish(*plain)
    for one, shared, own in zip(alone, together, plain):
        assert np.abs(pixels(exported, one) - pixels(exported, shared)).max() <= 1
        assert np.abs(pixels(exported, one) - pixels(dygraph, own)).max() <= 1
