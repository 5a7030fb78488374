"""Settings of the whole suite, made before anything imports paddle."""

import os

# One thread per process: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# What ppvilg._runtime.prepare_cpu() does for the tools, here without importing paddle for tests that need none.
os.environ.setdefault("FLAGS_use_stride_kernel", "0")
# The same for AMD processors, where Paddle's matrix library is otherwise four times slower.
from ppvilg._runtime import use_avx2_on_amd  # noqa: E402

use_avx2_on_amd()
