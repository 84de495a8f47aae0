#!/usr/bin/env bash
# Builds a program that runs networks, crates/nn/examples/NAME.rs (diffusion or distilbert), and
# prints its path: scripts/parity/example.sh NAME
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
if [ -z "${LIBTORCH:-}" ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
    export LIBTORCH_USE_PYTORCH=1
fi
cargo build --quiet --release --locked -p nn --example "$1" >&2
echo "${CARGO_TARGET_DIR:-$root/target}/release/examples/$1"
