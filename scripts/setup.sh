#!/usr/bin/env bash
# Makes the project-local virtual environment with libtorch: scripts/setup.sh VENV TORCH_VERSION
#
# Needs: Python 3.10 to 3.14 with venv, a C++ compiler, cmake and nasm (libjpeg-turbo is built from
# source). What is missing is named, with the command that installs it; SETUP_APT=1 runs that command
# (Debian and Ubuntu, as root: for continuous integration and containers).
set -euo pipefail
venv=$1 torch=$2

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v nasm >/dev/null || missing+=(nasm)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "${SETUP_APT:-0}" = 1 ]; then
        echo "setup: installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "setup: missing ${missing[*]}; nothing was installed" >&2
        echo "hint: sudo apt-get install ${missing[*]}    (Debian, Ubuntu; elsewhere packages of like names)" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null || {
    echo "setup: cargo is missing; hint: install Rust 1.95 or newer with rustup" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
echo "setup: torch $torch into $venv (5 GB on disk with CUDA, once; for a CPU alone see README)"
# A torch of this version that stands there already, PyTorch's build for CPUs for one, is taken as it is.
"$venv/bin/python" -m pip install --quiet "torch==$torch" numpy
# What the build found before may belong to another torch.
rm -f "$venv"/.torch-*
touch "$venv/.torch-$torch"
