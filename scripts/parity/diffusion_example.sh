#!/usr/bin/env bash
# Builds the program that runs the diffusion networks (crates/nn/examples/diffusion.rs) and prints
# its path.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
if [ -z "${LIBTORCH:-}" ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
    export LIBTORCH_USE_PYTORCH=1
fi
cargo build --quiet --release --locked -p nn --example diffusion >&2
echo "${CARGO_TARGET_DIR:-$root/target}/release/examples/diffusion"
