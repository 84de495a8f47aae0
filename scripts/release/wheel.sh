#!/usr/bin/env bash
# Packs the programs of target/release into target/wheel/balanceddpo-VERSION-py3-none-PLATFORM.whl.
#
# Called by `make wheel`, with maturin, auditwheel, patchelf and wheel on the PATH. maturin packs the
# programs of one package, so relabel is its program and train and evaluate are its scripts; pip puts
# all three into `bin`. The platform tag is auditwheel's: the oldest glibc that has every symbol.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=target/wheel
rm -rf $out
mkdir -p $out/src/balanceddpo.data/scripts
cp scripts/release/{pyproject.toml,wheel.md} LICENSE $out/src
cp target/release/{train,evaluate} $out/src/balanceddpo.data/scripts
scripts/release/pages.sh $out/src/balanceddpo.data/data/share
(cd $out/src && maturin build --quiet --release --locked --compatibility linux --auditwheel skip --out ..)

# libtorch is found relative to the program: in a virtual environment, conda's or the user's folder
# (site-packages), in Debian's own Python (dist-packages), or after `pip install --target`.
run_path="\$ORIGIN/../torch/lib"
for minor in 10 11 12 13 14; do
    for packages in site-packages dist-packages; do
        run_path+=":\$ORIGIN/../lib/python3.$minor/$packages/torch/lib"
    done
done
wheel unpack --dest $out/unpacked $out/*.whl
rm $out/*.whl
for program in "$out"/unpacked/*/*.data/scripts/*; do
    strip "$program"
    patchelf --set-rpath "$run_path" "$program"
done
mkdir $out/packed
wheel pack --dest-dir $out/packed $out/unpacked/*
auditwheel repair --plat auto --exclude 'libtorch*.so*' --exclude 'libc10*.so*' --wheel-dir $out $out/packed/*.whl
rm -rf $out/src $out/unpacked $out/packed
du -h $out/*.whl
