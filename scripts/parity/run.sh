#!/usr/bin/env bash
# Parity with the Python libraries: random checkpoints in the published layouts, the same pairs
# through transformers/open_clip and through the product, differences in a table. Exits 1 beyond
# the bounds (compare.py).
#
#   PARITY_SIZE=small|vit-l|full|all   which checkpoints (default all; 15 GB on disk, minutes)
#   PARITY_OUT=DIR               work folder, kept for the next run (default out/parity)
#   PARITY_PAIRS=N               pairs at full size (default 16)
#   PARITY_HEAD=FILE             an aesthetic head of LAION's instead of a random one, at full size
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=$(scripts/parity/venv.sh)
relabel="${RELABEL:-$root/target/release/relabel}"
work=${PARITY_OUT:-out/parity}
sizes=${PARITY_SIZE:-all}
[ -x "$relabel" ] || { echo "parity: $relabel is missing; run make setup" >&2; exit 1; }
[ "$sizes" != all ] || sizes="small vit-l full"

status=0
for size in $sizes; do
    folder="$work/$size"
    mkdir -p "$folder"
    head=()
    if [ "$size" != small ]; then
        pairs=(--pairs "${PARITY_PAIRS:-16}" --pairs-per-prompt 4 --size 512)
        [ "$size" != full ] || [ -z "${PARITY_HEAD:-}" ] || head=(--head "$PARITY_HEAD")
    else
        pairs=(--pairs 64 --pairs-per-prompt 3 --size 160)
    fi
    "$python" scripts/parity/build_checkpoints.py --size "$size" --out "$folder" "${head[@]}"
    "$python" scripts/parity/make_pairs.py "${pairs[@]}" --varied --seed 3 --out "$folder/pairs.parquet"
    "$python" scripts/parity/reference_scores.py --pairs "$folder/pairs.parquet" --scorers-dir "$folder" \
        --out "$folder/reference.parquet"
    "$relabel" score --pairs "$folder/pairs.parquet" --scorers "$folder/scorers.toml" \
        --out "$folder/labels.parquet" --device cpu --dtype f32 --fresh
    echo
    echo "== parity, $size size: product against transformers and open_clip, f32 =="
    "$python" scripts/parity/compare.py --labels "$folder/labels.parquet" --reference "$folder/reference.parquet" \
        --scorers-dir "$folder" || status=1
    echo
done
exit $status
