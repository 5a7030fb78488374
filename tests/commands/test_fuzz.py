"""Odd command lines and files of prompts in short form; the long one is tests/benchmarks/fuzz_inputs.py."""

import random

import pytest

from tests.commands.fuzz import GENERATORS

EXAMPLES = {"prompt files": 150, "arguments": 40}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GENERATORS)
def test_whatever_is_typed_ends_in_one_sentence_or_begins_the_work(name, tmp_path):
    for number in range(EXAMPLES[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        GENERATORS[name](random.Random(f"{name} {number}"), folder)
