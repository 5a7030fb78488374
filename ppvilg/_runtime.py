"""Process-wide settings that are worth having before the libraries are imported, or before the first tensor."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

STRIDE_FLAG = "FLAGS_use_stride_kernel"
MKL_CODE_PATH = "MKL_DEBUG_CPU_TYPE"
MKL_REPRODUCIBLE = "MKL_CBWR"


# Where the libraries keep things below the home, by the variable that says otherwise; VisualDL and Paddle have none.
CACHES = {
    "PPNLP_HOME": ".paddlenlp",
    "HF_HOME": ".cache/huggingface",
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
}


def find_home() -> Path | None:
    """Give this process another home where HOME cannot be written to (containers started with -u); None: it can.

    paddlenlp, ppdiffusers, VisualDL, Matplotlib and Paddle itself make folders in the home while they are imported.
    Folders in it that can be written to, and those that the environment names, stay in use.
    """
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return None
    from ppvilg.files import can_write, private_folder  # pictures come with it, which few programs need at once

    for variable, folder in CACHES.items():
        if variable not in os.environ and can_write(os.path.join(home, folder)):
            os.environ[variable] = os.path.join(home, folder)
    other = private_folder()
    os.environ["HOME"] = str(other)
    warnings.warn(f"the home {home} cannot be written to: caches go to {other} (set HOME to choose)", stacklevel=2)
    return other


def use_avx2_on_amd(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Let Paddle's matrix library use AVX2 on AMD processors; returns whether this process asked for it.

    Paddle ships the MKL of 2019, which takes SSE code wherever the maker is not Intel, at a quarter of the speed. The
    variable is read at the first matrix product, so importing ppvilg before computing is early enough; a value in the
    environment wins. PyTorch and NumPy do not read it.
    """
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, where Paddle does not come with this library
        return False
    if MKL_CODE_PATH not in os.environ and "AuthenticAMD" in text and " avx2" in text:
        os.environ[MKL_CODE_PATH] = "5"  # the AVX2 path
        return True
    return False


def make_matrix_products_exact(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Let Paddle's matrix library give a row the same bits in any batch and with any number of threads.

    Otherwise it sums in another order for one row than for many, and a picture drawn alone differs in its last bits
    from the same picture in a batch. On Intel processors only: elsewhere this mode is slow.
    Returns whether this process asked for it; a value in the environment wins.
    """
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if MKL_REPRODUCIBLE in os.environ or "GenuineIntel" not in text or " avx2" not in text:
        return False
    os.environ[MKL_REPRODUCIBLE] = "AVX512,STRICT" if " avx512f" in text else "AVX2,STRICT"
    return True


def prepare_cpu() -> bool:
    """Turn Paddle's stride kernels off when this process computes on the CPU; returns whether they are off now.

    With them every reshape or transpose is a view that the next matmul copies; without, attention forward and backward
    takes less than half the time. Call it at the top of a program, before the first tensor is made: Paddle refuses
    strided tensors made earlier. GPUs keep Paddle's default, and FLAGS_use_stride_kernel in the environment wins.
    """
    import paddle

    if STRIDE_FLAG not in os.environ and paddle.get_device() == "cpu":
        paddle.set_flags({STRIDE_FLAG: False})
    return not paddle.get_flags([STRIDE_FLAG])[STRIDE_FLAG]
