#!/usr/bin/env bash
# Puts libtorch into a virtual environment of the clone: scripts/setup.sh VENV TORCH_VERSION
#
# Says first what it installs, and names everything that is missing in one list. It installs nothing
# outside VENV unless SETUP_APT=1 allows apt-get (Debian and Ubuntu, as root: for continuous
# integration and containers).
#
#   TORCH=cuda      PyPI's build of torch, for CPUs and NVIDIA GPUs (the default)
#   TORCH=cpu       PyTorch's build for CPUs alone, much smaller
#   LIBTORCH=PATH   a libtorch of your own: none is installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$1 version=$2 flavour=${TORCH:-cuda}
rust=1.95
cpu_index=https://download.pytorch.org/whl/cpu

stop() { # MESSAGE HINT
    echo "setup: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

case $flavour in
cuda) torch="torch==$version" size="2.7 GB to download, 5 GB on disk" needed=10 ;;
cpu) torch="torch==$version+cpu" size="0.2 GB to download, 1 GB on disk" needed=5 ;;
*) stop "TORCH=$flavour: expected cuda or cpu" "make setup TORCH=cpu" ;;
esac

# What the build takes from the system. The package names are those of Debian and Ubuntu.
missing=() packages=()
lacks() { missing+=("$1"); packages+=("$2"); }
command -v c++ >/dev/null || lacks "a C++ compiler" g++
command -v cmake >/dev/null || lacks cmake cmake
command -v nasm >/dev/null || lacks nasm nasm
if ! command -v python3 >/dev/null; then
    lacks "Python 3.10 to 3.14 with venv" python3-venv
elif ! python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))'; then
    stop "$(python3 --version 2>/dev/null || echo python3) has no torch $version" "put Python 3.10 to 3.14 first on the PATH"
else
    python3 -c 'import ensurepip, venv' 2>/dev/null || lacks "venv for $(python3 --version)" python3-venv
fi
if [ ${#packages[@]} -gt 0 ] && [ "${SETUP_APT:-0}" = 1 ]; then
    echo "setup: apt-get install ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    missing=() packages=()
fi
found_rust=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ -z "$found_rust" ] || [ "$(printf '%s\n' $rust "$found_rust" | sort -V | head -n 1)" != $rust ]; then
    missing+=("Rust $rust or newer (found: ${found_rust:-none})")
    needs_rust=1
fi
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: nothing was installed, as these are missing:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    [ ${#packages[@]} -eq 0 ] ||
        echo "hint: sudo apt-get install ${packages[*]}    (Debian, Ubuntu; elsewhere packages of like names)" >&2
    [ -z "${needs_rust:-}" ] || echo "hint: https://rustup.rs installs Rust for you alone, without root" >&2
    exit 1
fi

if [ -n "${LIBTORCH:-}" ]; then
    echo "setup: libtorch of LIBTORCH=$LIBTORCH; the build makes ./target (2 GB, about 15 minutes on two cores, once)"
    exit 0
fi

installed() { "$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true; }
found=$(installed)
# Any build of the version will do, unless the one for CPUs is asked for.
if [ "$found" = "${torch#torch==}" ] || { [ "$flavour" = cuda ] && [ "${found%%+*}" = "$version" ]; }; then
    echo "setup: torch $found is in $venv already"
else
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    echo "setup: this installs"
    echo "  - torch $version ($flavour) and numpy into $venv: $size, once"
    echo "  - the programs into ./target: 2 GB, about 15 minutes on two cores, once"
    echo "and nothing outside $PWD ($free GB free)"
    [ "$flavour" = cpu ] || echo "(without an NVIDIA GPU: make setup TORCH=cpu)"
    [ "$free" -ge $needed ] || stop "$needed GB are needed" "make room, or make setup TORCH=cpu (5 GB)"
    [ "$flavour" = cuda ] ||
        python3 -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=20)" 2>/dev/null ||
        stop "PyTorch's index of builds for CPUs cannot be reached ($cpu_index); nothing was installed" \
            "make setup takes PyPI's build, which runs on CPUs too (5 GB); or install torch $version into $venv yourself"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    arguments=("$torch" numpy)
    [ "$flavour" = cuda ] || arguments+=(--index-url "$cpu_index")
    [ -t 1 ] || arguments+=(--quiet)
    "$venv/bin/python" -m pip install "${arguments[@]}"
fi
# What an earlier build found may belong to another torch.
rm -f "$venv"/.torch-*
touch "$venv/.torch-$version"
