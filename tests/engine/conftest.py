"""A tiny world, and one undisturbed run of it that the tests of this folder compare with."""

from __future__ import annotations

import importlib.util
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest

# The helper beside this file under a name that every test file can import.
_specification = importlib.util.spec_from_file_location("engine_tiny", Path(__file__).with_name("tiny.py"))
tiny = sys.modules["engine_tiny"] = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(tiny)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(training folder, validation folder, recipe file)."""
    folder = tmp_path_factory.mktemp("world")
    return (*tiny.write_world(folder), tiny.write_recipe(folder / "recipe.yml"))


@pytest.fixture(scope="session")
def make_recipe(world):
    """make_recipe(output, "a.b=value", ...) -> Recipe of the tiny world."""
    from ppvilg.config import load_config

    def make(output, *overrides, recipe=world[2]):
        places = [f"output={output}", f"data.train={world[0]}", f"data.validation={world[1]}"]
        return load_config(recipe, [*places, *overrides])

    return make


@pytest.fixture(scope="session")
def make_run(make_recipe):
    """make_run(output, "a.b=value", ...) -> Run of the tiny world with pipelines."""
    from ppvilg.engine import Run

    return lambda output, *overrides: Run(make_recipe(output, *overrides))


@pytest.fixture(scope="session")
def command(world):
    """command(output, "a.b=value", ...) -> arguments of a Python that trains in the tiny world."""

    def build(output, *overrides):
        places = [f"output={output}", f"data.train={world[0]}", f"data.validation={world[1]}"]
        options = [part for override in [*places, *overrides] for part in ("-o", override)]
        return [str(tiny.ROOT / "tools" / "train.py"), "-c", str(world[2]), *options]

    return build


@pytest.fixture(scope="session")
def finished(make_run, tmp_path_factory):
    """Output folder of an undisturbed run. Read only."""
    output = tmp_path_factory.mktemp("finished") / "out"
    make_run(output).run()
    return output


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind():
    """A module of tests leaves its process as it was: what is left could end it in the middle of another module."""

    def state():
        from paddle import distributed as dist

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("ppvilg")}
        return {"handlers": handlers, "threads": threads, "ranks": dist.is_initialized(),
                "largest file": resource.getrlimit(resource.RLIMIT_FSIZE)}  # the alarm is pytest-timeout's

    before = state()
    yield
    assert state() == before
