#!/usr/bin/env bash
# Makes .venv-parity, the virtual environment of the parity check and the benchmark, when it is
# not there yet, and prints the path of its Python. The marker READY, a copy of the requirements, is
# written last, so an installation that was interrupted, or that is of other requirements, is repeated.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv="$root/.venv-parity"
if ! cmp -s "$venv/READY" "$root/scripts/parity/requirements.txt"; then
    {
        echo "making $venv (torch, transformers, open_clip: a few GB, once)"
        "${PYTHON:-python3}" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --upgrade pip
        "$venv/bin/python" -m pip install --quiet -r "$root/scripts/parity/requirements.txt"
        cp "$root/scripts/parity/requirements.txt" "$venv/READY"
    } >&2
fi
echo "$venv/bin/python"
