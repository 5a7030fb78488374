#!/usr/bin/env bash
# The clients that the service is tested with, in environments of their own: they do not fit beside each other or beside
# Paddle. tests/serving/test_clients.py looks for them in $PPVILG_CLIENTS, else in output/clients.
#
#   bash tools/clients.sh [FOLDER]
set -euo pipefail
folder=${1:-${PPVILG_CLIENTS:-output/clients}}
python=${PYTHON:-python3}
make() {
    [ -x "$folder/$1/bin/python" ] || "$python" -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet "${@:2}"
}
make baidu "wenxin-api==0.2.1" "erniebot==0.5.9" "webuiapi==0.9.17"
make modern "openai>=1.60" "huggingface_hub>=1" Pillow
make qianfan "qianfan==0.4.12.3"
