"""What is set up before the libraries: fresh processes where a library reads it only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppvilg._runtime import CACHES, MKL_CODE_PATH, find_home, use_avx2_on_amd
from ppvilg.files import caches

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


HOME = """
import os, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ppvilg
print(len(caught), os.path.expanduser("~"), os.environ.get("PPNLP_HOME"))
import matplotlib, paddlenlp.utils.env, visualdl
from ppvilg.knowledge import TextKnowledge
from ppvilg.knowledge.text import tag
tag("三只企鹅")
"""


def test_a_home_that_cannot_be_written_to_is_replaced(tmp_path):
    """As in a container started with -u 1000: no home, or one of somebody else. What the user names stays."""
    (tmp_path / "tmp").mkdir()
    given = tmp_path / "models"
    where = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "HF_"))}
    where |= {"HOME": "/proc/none", "TMPDIR": str(tmp_path / "tmp"), "PPNLP_HOME": str(given), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HOME], cwd=tmp_path, env=where, capture_output=True, text=True, check=True
    )
    own = tmp_path / "tmp" / f"ppvilg-{os.getuid()}"
    assert done.stdout.splitlines()[0] == f"1 {own} {given}"
    assert own.stat().st_mode & 0o777 == 0o700
    assert (given / "models").is_dir() and (own / ".visualdl").is_dir()
    (cache,) = (own / ".cache" / "ppvilg").glob("jieba-*.cache")
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == [own.name]  # nothing that others could share


def test_a_home_that_can_be_written_to_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_home() is None and os.environ["HOME"] == str(tmp_path) and not list(tmp_path.iterdir())


def test_folders_in_an_unwritable_home_that_can_be_written_to_stay_in_use(tmp_path, monkeypatch):
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in CACHES:
        monkeypatch.setenv(variable, "")  # so that what is set below is undone
        monkeypatch.delenv(variable)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    with pytest.warns(UserWarning, match="cannot be written to"):
        other = find_home()
    assert os.environ["HOME"] == str(other) != str(tmp_path)
    assert os.environ["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / ".cache") and "PPNLP_HOME" not in os.environ


def test_a_private_folder_is_never_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    own = caches.private_folder()
    assert own.parent == tmp_path and caches.private_folder() == own
    own.chmod(0o777)
    assert caches.private_folder() != own
    own.rmdir()
    (tmp_path / "elsewhere").mkdir()
    own.symlink_to(tmp_path / "elsewhere")
    assert caches.private_folder() != own
