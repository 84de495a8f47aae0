#!/usr/bin/env bash
# Packs the programs with libtorch for CPUs: target/dist/balanceddpo-VERSION-linux-x86_64-cpu.tar.gz.
#
# Called by `make dist`, with patchelf on the PATH. The archive has what the programs load but glibc,
# and runs from any folder of a Linux with glibc 2.35 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=balanceddpo-$version-linux-x86_64-cpu
top=target/dist/$name
rm -rf target/dist
mkdir -p "$top"/{bin,lib/fallback,licenses,data}

torch=$(dirname "$(ldd target/release/relabel | awk '$1 == "libtorch_cpu.so" { print $3 }')")
# PyTorch's build with CUDA has two small libraries of CUDA here, which libtorch_cpu refers to. What
# glibc itself is made of has to be the system's.
ldd "$torch/libtorch_cpu.so" | awk '$2 == "=>" { print $1, $3 }' | while read -r library path; do
    case $library in
    libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libutil.so.*) ;;
    # These two may be of a newer glibc than the programs, so the system's own come first.
    libstdc++.so.* | libgcc_s.so.*) cp -L "$path" "$top/lib/fallback/$library" ;;
    *) cp -L "$path" "$top/lib/$library" ;;
    esac
done
cp -L "$torch/libtorch_cpu.so" "$top/lib"
run_path="\$ORIGIN/../lib:/lib64:/usr/lib64:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:/usr/lib"
run_path+=":\$ORIGIN/../lib/fallback"
for program in relabel train evaluate; do
    strip -o "$top/bin/$program" target/release/$program
    # libtorch.so is what brings the CUDA libraries in.
    patchelf --remove-needed libtorch.so --set-rpath "$run_path" "$top/bin/$program"
done
for library in "$top"/lib/*.so*; do
    [ -z "$(patchelf --print-rpath "$library")" ] || patchelf --set-rpath "\$ORIGIN" "$library"
done

cp scripts/release/dist.md "$top/README.md"
cp LICENSE "$top"
cp -r data/sample data/mini data/NOTICE "$top/data"
cp relabel/scorers/*.toml "$top/data"
scripts/release/pages.sh "$top/share"
packages=$torch/../..
for licence in "$packages"/{torch,nvidia_cuda_runtime,nvidia_cuda_cupti}-*.dist-info; do
    [ -d "$licence" ] || continue
    folder=$top/licenses/$(basename "$licence" .dist-info)
    mkdir -p "$folder"
    find "$licence" -iname '*licen[sc]e*' -type f -exec cp {} "$folder" \;
done

tar --create --gzip --file "target/dist/$name.tar.gz" --directory target/dist --sort=name \
    --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct 2>/dev/null || date +%s)" "$name"
du -sh "$top" "target/dist/$name.tar.gz"
