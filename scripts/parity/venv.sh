#!/usr/bin/env bash
# Makes .venv-parity, the virtual environment of the parity check and the benchmark, when it is
# not there yet, and prints the path of its Python. The marker READY is written last, so an
# installation that was interrupted is repeated.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv="$root/.venv-parity"
if [ ! -e "$venv/READY" ]; then
    {
        echo "making $venv (torch, transformers, open_clip: a few GB, once)"
        "${PYTHON:-python3}" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --upgrade pip
        "$venv/bin/python" -m pip install --quiet -r "$root/scripts/parity/requirements.txt"
        touch "$venv/READY"
    } >&2
fi
echo "$venv/bin/python"
