#!/usr/bin/env bash
# Builds an example program of the workspace and prints its path.
#
#   example.sh NAME
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
if [ -z "${LIBTORCH:-}" ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
    export LIBTORCH_USE_PYTORCH=1
fi
cargo build --quiet --release --locked --workspace --example "$1" >&2
echo "${CARGO_TARGET_DIR:-$root/target}/release/examples/$1"
