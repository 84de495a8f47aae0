#!/usr/bin/env bash
# What only a GPU can show, in at most eight minutes on one GPU. Run scripts/gpu/pack.sh first.
#
#   GPU_PROGRAMS=DIR   what pack.sh made (default out/gpu/programs)
#   GPU_OUT=DIR        results: one JSON file a part, and table.md (default out/gpu)
#   GPU_WORK=DIR       random models, 40 GB at full size (default GPU_OUT/models)
#   GPU_SECONDS=N      start nothing after this time (default 480)
#   GPU_DEVICE=cuda    cpu tries the script itself where there is no GPU, with GPU_SIZE=small
#   GPU_SIZE=full      small: tiny random models
#   PYTHON=python3     a Python with torch 2.11.0 and the libraries of scripts/parity/requirements.txt;
#                      its libtorch is the one that the programs use
#
# Exits 1 if a check failed or could not be run; a part that was skipped is named with its reason.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=${PYTHON:-python3}
libraries=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONDONTWRITEBYTECODE=1
out=${GPU_OUT:-out/gpu}
exec "$python" scripts/gpu/check.py --programs "${GPU_PROGRAMS:-out/gpu/programs}" --out "$out" \
    --work "${GPU_WORK:-$out/models}" --seconds "${GPU_SECONDS:-480}" --device "${GPU_DEVICE:-cuda}" \
    --size "${GPU_SIZE:-full}"
