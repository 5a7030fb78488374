#!/usr/bin/env bash
# From a clean clone to a model that has learnt something: installs, draws with the shipped model, teaches it an object
# that it has never seen, and draws before and after. Run it again to go on after a stop; what is done is not done again.
if [ -z "${BASH_VERSION:-}" ]; then echo "error: this is a script for bash: bash $0" >&2; exit 1; fi
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
source tools/venv.sh

output=output/quickstart
# What the libraries say about their own imports.
export PYTHONWARNINGS="ignore::UserWarning:paddle.utils.cpp_extension.extension_utils,ignore::UserWarning:_distutils_hack"
ranks=$(($(cores) > 1 ? 2 : 1))

echo "[1/4] environment"
ensure_assets
ensure_venv cpu

echo "[2/4] pictures of the shipped model emoji64"
"$python" tools/infer.py --model emoji64 --prompt-file configs/prompts/quickstart.txt --seed 0 --output $output/emoji64

echo "[3/4] a lesson: twenty pictures of a fox, which the model has never seen; an adapter learns from them"
[ -d $output/fox ] || "$python" tools/prepare_data.py --lesson 🦊 --num-samples 20 --output $output/fox
# Two processes with one thread each train faster than one process with two threads.
OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "$python" -m paddle.distributed.launch --nproc_per_node "$ranks" \
    --log_level WARNING --log_dir $output/training/ranks tools/train.py -c configs/lora.yml \
    -o data.train=$output/fox -o output=$output/training

echo "[4/4] the same prompts before and after, judged by a detector: foxes asked for in other words, and the old objects"
OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "$python" tools/evaluate.py -c configs/evaluation/lesson.yml \
    -o lora=$output/training/lora -o output=$output/lesson -o new=24 -o old.single=16 -o processes="$ranks"

echo "pictures: $PWD/$output/emoji64/grid.png (the model), $PWD/$output/lesson/before_after.png (the lesson)"
echo "with your own pictures, ten to thirty, named after what they show (一只狐狸.png, 一只狐狸 (2).png):"
echo "  $python tools/train.py -c configs/lora.yml -o data.train=my_pictures"
echo "  $python tools/infer.py --lora output/lora/lora --prompt 一只狐狸"
