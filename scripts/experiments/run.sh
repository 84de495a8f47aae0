#!/usr/bin/env bash
# The design of the paper with the miniature models and data, from the committed models to
# docs/experiments.md: labels, twelve trainings of one budget, images of held-out captions, scores,
# win rates. A stopped run resumes.
#
#   EXPERIMENTS=DIR          work folder (default out/experiments)
#   EXPERIMENTS_SPLIT=NAME   captions: test (default) or validation; only test writes the page
#   EXPERIMENTS_JOBS=N       trainings at a time, each on one thread (default: the number of cores)
#   RELABEL, TRAIN, EVALUATE the programs (default target/release/…)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
relabel=${RELABEL:-target/release/relabel}
train=${TRAIN:-target/release/train}
evaluate=${EVALUATE:-target/release/evaluate}
work=${EXPERIMENTS:-out/experiments}
split=${EXPERIMENTS_SPLIT:-test}
recipe=scripts/experiments/recipe.toml
mkdir -p "$work"

# The rows of the paper's tables: a name, the preference, and the steps between reference updates.
declare -A preference=(
    [balanced]="--preference consensus --reference-every 40"
    [diffusion-dpo]="--preference human --drop-human-ties --reference-every 0"
    [hps]="--preference scorer:hps --reference-every 40"
    [clip]="--preference scorer:clip --reference-every 40"
    [pickscore]="--preference scorer:pickscore --reference-every 40"
    [aesthetic]="--preference scorer:aesthetic --reference-every 40"
    [random-scorer]="--preference random-scorer --reference-every 40"
    [vanilla]="--preference vanilla --reference-every 40"
    [score-sum]="--preference score-sum --reference-every 40"
    [normalized-sum]="--preference normalized-sum --reference-every 40"
    [balanced-frozen]="--preference consensus --reference-every 0"
    [dpo-moving]="--preference human --drop-human-ties --reference-every 40"
)
names="diffusion-dpo balanced hps clip pickscore aesthetic random-scorer vanilla score-sum normalized-sum balanced-frozen dpo-moving"

"$relabel" score --pairs data/sample --scorers data/mini/scorers.toml --device cpu --out "$work/labels.parquet"
"$train" cache --model data/mini/sd --pairs data/sample --resolution 32 --device cpu --out "$work/latents"

# Networks of this size gain nothing from a second thread: as many trainings as cores.
for name in $names; do
    echo "$train run --quiet --config $recipe --model data/mini/sd --cache $work/latents" \
        "--labels $work/labels.parquet --device cpu --out $work/runs/$name ${preference[$name]}"
done | OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 xargs -P "${EXPERIMENTS_JOBS:-$(nproc)}" -d '\n' -I{} sh -c 'echo "{}"; {}'
models=(--model base=data/mini/sd)
for name in $names; do
    models+=(--model "$name=data/mini/sd,unet=$work/runs/$name/pipeline/unet")
done
"$evaluate" run "${models[@]}" --prompts "data/mini/$split.tsv" --scorers data/mini/scorers.toml \
    --steps 15 --guidance 1 --scheduler dpmpp-2m --device cpu --baselines base,diffusion-dpo \
    --labels "$work/labels.parquet" --out "$work/$split"
[ "$split" = test ] || exit 0

# The page: tables of the models that each is about, the figure of the first, a contact sheet.
scores=$work/$split/scores.parquet
tables() {
    "$evaluate" tables --scores "$scores" --out "$work/$1" "${@:2}" >/dev/null
}
tables first --models base,diffusion-dpo,balanced
tables all --baselines base,diffusion-dpo
tables ablation --models base,diffusion-dpo,dpo-moving,balanced-frozen,balanced --baselines base
"$evaluate" report --scores "$scores" --models base,diffusion-dpo,balanced --labels "$work/labels.parquet" --out "$work/first"
mkdir -p docs/experiments
"$evaluate" grid --scores "$scores" --models base,diffusion-dpo,balanced --count 8 --out docs/experiments/images.png
cp "$work/first/figures/winrates-test.png" docs/experiments/win-rates.png
python3 scripts/experiments/page.py docs/experiments.md \
    "$work/first/tables.md:Win rates=table-1" "$work/first/tables.md:Every cell=cells" \
    "$work/first/tables.md:Best, mean=means" \
    "$work/all/tables.md:Win rates against=table-3" "$work/ablation/tables.md:Win rates against=table-4" \
    "$work/all/tables.md:Mean scores=table-6" "$work/first/tables.md:Chosen by one metric=cross"
echo "page: docs/experiments.md"
