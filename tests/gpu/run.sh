#!/usr/bin/env bash
# The GPU check in one command: what runs, how exactly and how fast on this machine's GPU. --help says what there is.
#
# It needs a Python with torch, transformers, accelerate and safetensors; what else is missing it takes from
# tests/gpu/packed/, which tests/gpu/pack.py fills on a machine with a network. The checkout's own .venv is used where
# there is one; PYTHON=… names another.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi

export PYTHONPATH="$PWD/src:$PWD:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
export CHECK_BEGAN=$(date +%s) TQDM_DISABLE=1 PRIMEKD_ROOT="$PWD"

if [ "${1:-}" = page ]; then
    shift
    exec "$python" -m check.page "$@"
fi

# Wheels that this Python lacks go into a folder of their own; what is installed is left alone.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" tests/gpu/pack.py unpack "$site" || echo "The wheels could not be unpacked; going on with what is installed."
export PYTHONPATH="$PYTHONPATH:$site"
"$python" -m check "$@"
