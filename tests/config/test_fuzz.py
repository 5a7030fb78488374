"""Odd recipes in short form; the long one is tests/benchmarks/fuzz_inputs.py."""

import random

import pytest

from tests.config.fuzz import GENERATORS

EXAMPLES = {"training recipes": 60, "evaluation recipes": 60}


@pytest.mark.parametrize("name", GENERATORS)
def test_odd_recipes_are_read_as_written_or_refused_by_one_sentence(name, tmp_path):
    for number in range(EXAMPLES[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        GENERATORS[name](random.Random(f"{name} {number}"), folder)
