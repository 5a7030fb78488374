"""Tiny pipelines for the whole folder: in memory, as a folder, and as a bundle for one back end."""

from __future__ import annotations

import pytest

from tests.bundles import export_tiny, tiny  # noqa: F401  (tiny: a fixture)
from tests.components import CAPTIONS, TIMESTEPS, components  # noqa: F401  (components: a fixture)


@pytest.fixture
def pipeline(components):  # noqa: F811
    """A pipeline over the shared components; tests may swap components and change its config."""
    from ppvilg.pipelines import ErnieViLG2Pipeline

    built = ErnieViLG2Pipeline(
        **components, key_token_weight=0.5, max_length=16, default_num_inference_steps=3, default_guidance_scale=2.0
    )
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):  # noqa: F811
    """The folder of `tiny`; tests must leave it as it is."""
    place = tmp_path_factory.mktemp("saved")
    tiny.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def bundle(tiny, tmp_path_factory):  # noqa: F811
    """The export of `tiny` for one back end, whose arithmetic is not dygraph's; tests must leave it as it is."""
    return export_tiny(tiny, tmp_path_factory, ["onednn"])
