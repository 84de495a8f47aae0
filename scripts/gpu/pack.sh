#!/usr/bin/env bash
# Builds and strips the programs that check.sh runs on a machine with a GPU, into DIR (default
# out/gpu/programs). They find libtorch of the Python that check.sh is given, so that DIR and the
# repository are all that has to be copied there: at most 64 MB, or this ends with an error.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
out=${1:-out/gpu/programs}
if [ -z "${LIBTORCH:-}" ]; then
    export LIBTORCH_USE_PYTORCH=1 VIRTUAL_ENV="${VIRTUAL_ENV:-$root/.venv}"
    export PATH="$VIRTUAL_ENV/bin:$PATH"
fi
cargo build --release --locked -p balanceddpo-relabel -p balanceddpo-train --bins
cargo build --release --locked -p balanceddpo-tools --bin diffusion --bin step
# The unit tests of nn, among them those that need a GPU.
tests=$(cargo test --release --locked -p balanceddpo-nn --lib --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    executable = json.loads(line).get("executable") if line.startswith("{") else None
    if executable: print(executable)')
mkdir -p "$out"
cp target/release/relabel target/release/train target/release/diffusion target/release/step "$out"
cp "$tests" "$out/nn-tests"
strip "$out"/*
bytes=$(du -sb "$out" | cut -f1)
echo "$out: $((bytes / 1000000)) MB"
[ "$bytes" -le 64000000 ] || { echo "pack: over 64 MB" >&2; exit 1; }
