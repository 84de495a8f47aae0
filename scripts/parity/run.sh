#!/usr/bin/env bash
# Parity with the Python libraries: random checkpoints in the published layouts, the same pairs
# through transformers/open_clip and through the product, the same latents, images and texts
# through diffusers and through our diffusion networks, recorded training steps computed again with
# diffusers and torch, the same prompts through a safety classifier; differences in tables. Exits 1
# beyond the bounds (compare.py, diffusion_parity.py, distilbert_parity.py, train_replay.py).
#
#   PARITY_PARTS="scorers diffusion distilbert train"   what to compare (default: all)
#   PARITY_SIZE=small|vit-l|full|image-reward|siglip|all   which checkpoints (default all; 48 GB on disk, minutes)
#   PARITY_OUT=DIR               work folder, kept for the next run (default out/parity)
#   PARITY_PAIRS=N               pairs at full size (default 16)
#   PARITY_HEAD=FILE             an aesthetic head of LAION's instead of a random one, at full size
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=$(scripts/parity/venv.sh)
relabel="${RELABEL:-$root/target/release/relabel}"
evaluate="${EVALUATE:-$root/target/release/evaluate}"
work=${PARITY_OUT:-out/parity}
sizes=${PARITY_SIZE:-all}
parts=" ${PARITY_PARTS:-scorers diffusion distilbert train} "
for program in "$relabel" "$evaluate"; do
    [ -x "$program" ] || { echo "parity: $program is missing; run make setup" >&2; exit 1; }
done
[ "$sizes" != all ] || sizes="small vit-l full image-reward siglip"

status=0
compare_scorers() {
    local size=$1 folder head pairs
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
    echo "== parity, $size size: product against transformers, open_clip and timm, f32 =="
    "$python" scripts/parity/compare.py --labels "$folder/labels.parquet" --reference "$folder/reference.parquet" \
        --scorers-dir "$folder" || status=1
    echo
}

compare_diffusion() {
    local size=$1
    echo "== parity, $size size: diffusion networks against diffusers and transformers, f32 =="
    "$python" scripts/parity/diffusion_parity.py --size "$size" --out "$work/diffusion" --tool "$tool" ||
        status=1
    echo
}

compare_distilbert() {
    local size=$1
    echo "== parity, $size size: safety classifier against transformers, f32 =="
    "$python" scripts/parity/distilbert_parity.py --size "$size" --out "$work/distilbert" --tool "$tool" \
        --evaluate "$evaluate" || status=1
    echo
}

if [[ $parts == *" scorers "* ]]; then
    for size in $sizes; do
        compare_scorers "$size"
    done
fi
if [[ $parts == *" diffusion "* ]]; then
    tool=$(scripts/parity/tool.sh diffusion)
    for size in $sizes; do
        [[ $size != small && $size != full ]] || compare_diffusion "$size"
    done
fi
if [[ $parts == *" distilbert "* ]]; then
    tool=$(scripts/parity/tool.sh distilbert)
    for size in $sizes; do
        [[ $size != small && $size != full ]] || compare_distilbert "$size"
    done
fi
if [[ $parts == *" train "* ]]; then
    PARITY_OUT=$work scripts/parity/train.sh || status=1
fi
exit $status
