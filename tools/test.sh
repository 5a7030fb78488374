#!/usr/bin/env bash
# Lint and tests from a clean clone: makes .venv, installs, runs. Arguments go to pytest: bash tools/test.sh -k knowledge
# WITH_PEERS=1 also installs PyTorch and diffusers, so that the tests that compare with them run.
if [ -z "${BASH_VERSION:-}" ]; then echo "error: this is a script for bash: bash $0" >&2; exit 1; fi
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
source tools/venv.sh

echo "[1/3] environment"
ensure_assets  # here rather than in the tests, where two processes would install at once
ensure_venv "cpu,test,serve,postgres,onnx,openvino${WITH_PEERS:+,peers}"
echo "[2/3] ruff"
"$python" -m ruff check --output-format concise .
echo "[3/3] pytest"
# One thread per process, one process per core: Paddle's tiny kernels gain nothing from threads.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# A test that hangs or a process that dies ends the run with its name; neither keeps it waiting.
"$python" -m pytest -q -n "${TEST_PROCESSES:-2}" --dist loadfile --max-worker-restart 0 --timeout 600 --durations 15 "$@"
echo "tests passed: $PWD"
