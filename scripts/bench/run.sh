#!/usr/bin/env bash
# The benchmark: the product beside the Python way people use today, on one machine, one program
# at a time; then the single parts. Figures go to standard output and out/bench/*.md.
#
#   BENCH_PARTS="sides reward siglip five towers decode vote memory diffusion train plan ranks locations evaluation"   what to run (default: all but five)
#   BENCH_SIZE=full|small    checkpoints: the published shapes, or toys to try the script (default full)
#   BENCH_PAIRS=N            pairs (default 32); BENCH_PAIRS_PER_PROMPT=N (default 16, as in Pick-a-Pic)
#   BENCH_BATCH=N            batch size of the batched Python way (default 8)
#   BENCH_REMOTE_PAIRS=N     pairs of `locations`, a multiple of 16 (default 480)
#   BENCH_SKIP="NAME ..."    runs of `sides` to leave out, e.g. "python-batched-bf16"
#   BENCH_ROWS="PATTERN ..." rows of `diffusion`, `train` and `plan` to measure, e.g. "forward-* *-f32" (default: all)
#   BENCH_RANK_ROWS="ROW .." rows of `ranks`: toy, wide (default: both)
#   BENCH_ROUNDS=N           processes of each side in `diffusion` (default 3), `train` and `ranks` (default 2),
#                            `locations` (default 5)
#   BENCH_FRESH=1            measure rows of `diffusion`, `train` and `plan` again that are there
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=$(scripts/parity/venv.sh)
relabel="${RELABEL:-$root/target/release/relabel}"
size=${BENCH_SIZE:-full}
parts=" ${BENCH_PARTS:-sides reward siglip towers decode vote memory diffusion train plan ranks locations evaluation} "
[ -x "$relabel" ] || { echo "bench: $relabel is missing; run make setup" >&2; exit 1; }
mkdir -p out/bench

# Our benches are built by cargo against the libtorch of the project's own virtual environment.
cargo_bench() {
    if [ -z "${LIBTORCH:-}" ]; then
        # shellcheck disable=SC1091
        source "$root/.venv/bin/activate"
        export LIBTORCH_USE_PYTORCH=1
    fi
    cargo bench --quiet "$@"
}

# The scorers of these checkpoints, in Python and here.
sides() {
    local size=$1
    echo "== side by side, $size size =="
    "$python" scripts/parity/build_checkpoints.py --size "$size" --out "out/parity/$size"
    "$python" scripts/parity/make_pairs.py --pairs "${BENCH_PAIRS:-32}" --pairs-per-prompt "${BENCH_PAIRS_PER_PROMPT:-16}" \
        --size 512 --seed 7 --out "out/bench/pairs-$size.parquet"
    # shellcheck disable=SC2086  # a list of names
    "$python" scripts/bench/side_by_side.py --relabel "$relabel" --pairs "out/bench/pairs-$size.parquet" \
        --scorers-dir "out/parity/$size" --out "out/bench/$size" --batch-size "${BENCH_BATCH:-8}" --skip ${BENCH_SKIP:-}
}
if [[ $parts == *" sides "* ]]; then
    sides "$size"
fi
if [[ $parts == *" reward "* ]]; then
    sides image-reward
fi
if [[ $parts == *" siglip "* ]]; then
    sides siglip
fi
if [[ $parts == *" five "* ]]; then
    sides five
fi
if [[ $parts == *" towers "* ]]; then
    echo "== towers: fraction of the machine's matrix-product rate =="
    (cargo_bench -p balanceddpo-nn --bench towers) | tee out/bench/towers.txt
fi
if [[ $parts == *" decode "* ]]; then
    echo "== decoding and preprocessing, one core =="
    mkdir -p out/bench/images
    "$python" scripts/bench/pillow_decode.py out/bench/images | tee out/bench/pillow_decode.txt
    (cargo_bench -p balanceddpo-media --bench decode -- "$root/out/bench/images") | tee out/bench/decode.txt
fi
if [[ $parts == *" vote "* ]]; then
    echo "== relabel vote, a million rows =="
    "$python" scripts/bench/make_large_labels.py --rows 1000000 --out out/bench/million.parquet
    /usr/bin/env time -f "relabel vote: %e s, peak %M KiB" \
        "$relabel" vote --fresh --labels out/bench/million.parquet --out out/bench/million-revoted.parquet
fi
if [[ $parts == *" memory "* ]]; then
    echo "== peak memory against the number of rows =="
    scripts/bench/memory.sh
fi
if [[ $parts == *" diffusion "* ]]; then
    echo "== diffusion networks beside diffusers, $size size =="
    # shellcheck disable=SC2086  # a list of patterns
    "$python" scripts/bench/diffusion.py --tool "$(scripts/parity/tool.sh diffusion)" \
        --models out/parity/diffusion --out out/bench --size "$size" --rounds "${BENCH_ROUNDS:-3}" \
        ${BENCH_FRESH:+--fresh} --rows ${BENCH_ROWS:-}
fi
if [[ $parts == *" train "* ]]; then
    echo "== training steps beside diffusers and torch, $size size =="
    # shellcheck disable=SC2086  # a list of patterns
    "$python" scripts/bench/train_step.py --tool "$(scripts/parity/tool.sh step)" \
        --models out/parity/diffusion --out out/bench --size "$size" --rounds "${BENCH_ROUNDS:-2}" \
        ${BENCH_FRESH:+--fresh} --rows ${BENCH_ROWS:-}
fi
sample_labels() {
    local labels=out/bench/sample-labels.parquet
    [ -e "$labels" ] || "$relabel" score --quiet --pairs data/sample --scorers data/mini/scorers.toml --out "$labels" >&2
    echo "$labels"
}

if [[ $parts == *" plan "* ]]; then
    echo "== peak memory by train plan beside that of train run =="
    # shellcheck disable=SC2086  # a list of patterns
    "$python" scripts/bench/plan_memory.py --train "${TRAIN:-$root/target/release/train}" --labels "$(sample_labels)" \
        --models out/parity/diffusion --out out/bench ${BENCH_FRESH:+--fresh} --rows ${BENCH_ROWS:-}
fi
if [[ $parts == *" ranks "* ]]; then
    echo "== training on two ranks of one thread beside one =="
    labels=$(sample_labels)
    # shellcheck disable=SC2086  # a list of names
    "$python" scripts/bench/ranks.py --train "${TRAIN:-$root/target/release/train}" --labels "$labels" \
        --out out/bench --rounds "${BENCH_ROUNDS:-2}" ${BENCH_RANK_ROWS:+--rows $BENCH_RANK_ROWS}
fi
if [[ $parts == *" locations "* ]]; then
    echo "== pairs in object storage on this machine beside local files =="
    count=${BENCH_REMOTE_PAIRS:-480}
    pairs="out/bench/locations-$count"
    [ -e "$pairs/pairs-00002-of-00003.parquet" ] || "$python" scripts/parity/make_pairs.py --pairs "$count" \
        --pairs-per-prompt 2 --size 512 --seed 11 --files 3 --row-group 160 --page-index --out "$pairs"
    "$python" scripts/bench/locations.py --relabel "$relabel" --train "${TRAIN:-$root/target/release/train}" \
        --pairs "$pairs" --count "$count" --out out/bench --rounds "${BENCH_ROUNDS:-5}"
fi
if [[ $parts == *" evaluation "* ]]; then
    echo "== a whole evaluation beside diffusers and the Python scorers, miniature =="
    "$python" scripts/bench/evaluation.py --evaluate "${EVALUATE:-$root/target/release/evaluate}" --out out/bench \
        --rounds "${BENCH_ROUNDS:-2}"
fi
