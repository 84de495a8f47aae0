#!/usr/bin/env bash
# Makes the project-local virtual environment with libtorch: scripts/setup.sh VENV TORCH_VERSION
#
# Needs: Python 3.10 to 3.14 with venv, a C++ compiler, cmake and nasm (libjpeg-turbo is built from
# source). On Debian and Ubuntu, as root, missing ones are installed; elsewhere they are named.
set -euo pipefail
venv=$1 torch=$2

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v nasm >/dev/null || missing+=(nasm)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "setup: missing ${missing[*]}; hint: install them, for example: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null || {
    echo "setup: cargo is missing; hint: install Rust 1.95 or newer with rustup" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
echo "setup: torch $torch into $venv (some GB, once)"
"$venv/bin/python" -m pip install --quiet "torch==$torch" numpy
# What the build found before may belong to another torch.
rm -f "$venv"/.torch-*
touch "$venv/.torch-$torch"
