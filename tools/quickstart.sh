#!/usr/bin/env bash
# From a clean clone to pictures: installs, draws with the shipped model, trains a small one from scratch, draws with it.
# Run it again to go on after a stop; what is done already is not done again.
if [ -z "${BASH_VERSION:-}" ]; then echo "error: this is a script for bash: bash $0" >&2; exit 1; fi
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
source tools/venv.sh

output=output/quickstart
# What the libraries say about their own imports.
export PYTHONWARNINGS="ignore::UserWarning:paddle.utils.cpp_extension.extension_utils,ignore::UserWarning:_distutils_hack"
ranks=$(($(cores) > 1 ? 2 : 1))

draw() { # draw MODEL FOLDER: the pictures and grid.png of an earlier run make room
    rm -rf "$2"
    "$python" tools/infer.py --model "$1" --prompt-file configs/prompts/quickstart.txt --seed 0 --output "$2"
}

echo "[1/5] environment"
ensure_assets
ensure_venv cpu

echo "[2/5] pictures of the shipped model emoji64"
draw emoji64 $output/emoji64

echo "[3/5] picture-text data: emoji scenes"
"$python" tools/prepare_data.py --output $output/data --num-samples 10000 --num-validation 500

echo "[4/5] training from scratch for a few minutes: autoencoder, denoiser, experts"
# Two processes with one thread each train faster than one process with two threads.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
"$python" -m paddle.distributed.launch --nproc_per_node "$ranks" --log_level WARNING \
    --log_dir $output/training/ranks tools/train.py -c configs/quickstart.yml

echo "[5/5] pictures of the model just trained"
draw $output/training/experts $output/trained

echo "pictures: $PWD/$output/emoji64/grid.png (shipped model), $PWD/$output/trained/grid.png (the short run)"
