"""Odd inputs in short form; the long one is tests/benchmarks/fuzz_inputs.py."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tests.data.fuzz import GENERATORS

set_hypothesis_home_dir(tempfile.gettempdir() + "/hypothesis")  # not into the folder of the project
EXAMPLES = {"pictures": 300, "listings": 60, "shards": 60, "sidecars": 60}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", GENERATORS)
def test_odd_inputs_are_read_or_named(name):
    @settings(max_examples=EXAMPLES[name], derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(rng=st.randoms(use_true_random=True))
    def run(rng):
        with tempfile.TemporaryDirectory() as folder:
            GENERATORS[name](rng, Path(folder))

    run()
