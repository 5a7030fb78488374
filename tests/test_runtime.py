"""prepare_cpu in fresh processes: the flag is read when Paddle starts, so the one of the tests would prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppvilg._runtime import MKL_CODE_PATH, use_avx2_on_amd

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


@pytest.mark.parametrize(
    ("cpuinfo", "given", "expected"),
    [
        ("vendor_id : AuthenticAMD\nflags : fpu avx avx2 bmi1\n", None, "5"),
        ("vendor_id : AuthenticAMD\nflags : fpu avx avx2 bmi1\n", "4", "4"),
        ("vendor_id : AuthenticAMD\nflags : fpu avx\n", None, None),
        ("vendor_id : GenuineIntel\nflags : fpu avx avx2 avx512f\n", None, None),
        (None, None, None),
    ],
)
def test_mkl_takes_avx2_on_amd_processors_that_have_it(tmp_path, monkeypatch, cpuinfo, given, expected):
    monkeypatch.delenv(MKL_CODE_PATH, raising=False)
    if given:
        monkeypatch.setenv(MKL_CODE_PATH, given)
    file = tmp_path / "cpuinfo"
    if cpuinfo:
        file.write_text(cpuinfo, encoding="utf-8")
    asked = use_avx2_on_amd(file)
    assert os.environ.pop(MKL_CODE_PATH, None) == expected
    assert asked == (expected is not None and given is None)
