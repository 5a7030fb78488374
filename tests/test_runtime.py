"""prepare_cpu in fresh processes: the flag is read when Paddle starts, so the one of the tests would prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = """
from ppvilg._runtime import prepare_cpu
off = prepare_cpu()
import paddle
print(off, paddle.ones([2, 3]).T.is_contiguous())
"""


def test_stride_kernels_are_off_on_the_cpu_unless_the_environment_says_otherwise():
    environment = {key: value for key, value in os.environ.items() if key != "FLAGS_use_stride_kernel"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SOURCE], cwd=ROOT, env={**environment, **extra}, stdout=subprocess.PIPE, text=True
        )
        for extra in ({}, {"FLAGS_use_stride_kernel": "1"})
    ]
    printed = [process.communicate(timeout=300)[0].strip() for process in started]
    assert printed == ["True True", "False False"]
