"""Settings of the whole suite, made before anything imports paddle."""

import gc
import importlib
import os
import re

import numpy as np
import pytest

# One thread per process: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# What ppvilg._runtime.prepare_cpu() does for the tools, here without importing paddle for tests that need none.
os.environ.setdefault("FLAGS_use_stride_kernel", "0")
# The same for AMD processors, where Paddle's matrix library is otherwise four times slower.
from ppvilg._runtime import make_matrix_products_exact, use_avx2_on_amd  # noqa: E402

use_avx2_on_amd()
make_matrix_products_exact()



def pytest_collection_finish() -> None:
    """Sets aside what the libraries made: ppdiffusers collects garbage for every network it loads, looking at all."""
    gc.collect()
    gc.freeze()


FROZEN_FOR: list = []  # the module whose tests run


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same for what earlier modules left: late in the suite a collection took a third of a second."""
    if FROZEN_FOR != [item.path]:
        FROZEN_FOR[:] = [item.path]
        gc.freeze()


def pytest_runtest_call() -> None:
    """Undoes what ppdiffusers does to np.bool, without which NumPy's own assertions fail on Python 3.10."""
    np.bool = np.bool_


LIBRARIES: list = []  # what a library of operators defined goes when it goes


def import_or_define(name: str):
    """Import a module; torchvision also where its compiled part does not fit PyTorch, which no test here needs."""
    for _ in range(5):
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            import torch

            LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
            LIBRARIES[-1].define(f"{missing[1]}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    raise AssertionError(f"{name} cannot be imported")


@pytest.fixture(scope="session")
def import_peer():
    """Import a module of another project, or skip where it is not installed."""

    def load(name: str):
        try:
            import_or_define("torchvision")  # which diffusers and transformers import where it is installed
        except ModuleNotFoundError:
            pass
        try:
            return import_or_define(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{name.partition('.')[0]} is not installed ({error})")

    return load
