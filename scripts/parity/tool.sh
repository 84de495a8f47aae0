#!/usr/bin/env bash
# Builds a program of tools/ and prints its path.
#
#   tool.sh NAME
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
if [ -z "${LIBTORCH:-}" ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
    export LIBTORCH_USE_PYTORCH=1
fi
cargo build --quiet --release --locked --workspace --bin "$1" >&2
echo "${CARGO_TARGET_DIR:-$root/target}/release/$1"
