#!/usr/bin/env bash
# The design of the paper with the miniature models and data, from the committed models to
# docs/experiments.md: labels of four and of five voters, trainings of one budget, images of held-out
# captions, scores, win rates, and what three seeds say about noise. A stopped run resumes.
#
#   EXPERIMENTS=DIR          work folder (default out/experiments)
#   EXPERIMENTS_SPLIT=NAME   captions: test (default) or validation; only test writes the page
#   EXPERIMENTS_JOBS=N       trainings at a time, each on one thread (default: the number of cores)
#   EXPERIMENTS_STEPS=N      another number of steps, and
#   EXPERIMENTS_LIMIT=N      only the first N captions: to try the script; the page is then a copy in
#                            the work folder, which must be one of its own
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
trial=${EXPERIMENTS_STEPS:-}${EXPERIMENTS_LIMIT:-}
if [ -n "$trial" ] && [ -z "${EXPERIMENTS:-}" ]; then
    echo "EXPERIMENTS_STEPS and EXPERIMENTS_LIMIT need EXPERIMENTS=DIR, a work folder of their own" >&2
    exit 2
fi
mkdir -p "$work"

# The rows of the paper's tables and ours: a name, the labels, and the flags. What differs from
# `balanced` is one thing in each.
declare -A flags=(
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
    [unanimous]="--preference unanimous --reference-every 40"
    [margin]="--preference margin --reference-every 40"
    [reference-mix]="--preference consensus --reference-every 40 --reference-mix 0.6"
    [winner-anchor]="--preference consensus --reference-every 40 --winner-anchor 100"
    [lora]="--preference consensus --reference-every 40 --adapter lora --lr 1e-5"
    [five-voters]="--preference consensus --reference-every 40"
)
# Rows of one seed, and rows of three: the run of row NAME with seed N is NAME-sN.
single="hps clip pickscore aesthetic random-scorer vanilla score-sum normalized-sum balanced-frozen dpo-moving"
several="diffusion-dpo balanced five-voters unanimous margin reference-mix winner-anchor lora"
seeds="0 1 2"
runs=()
for name in $several; do
    for seed in $seeds; do runs+=("$name-s$seed"); done
done
for name in $single; do runs+=("$name-s0"); done

label() {
    "$relabel" score --pairs data/sample --scorers "data/mini/$1.toml" --device cpu --out "$work/labels-$1.parquet"
    "$relabel" inspect --voting --json "$work/labels-$1.parquet" >"$work/voting-$1.json"
}
label paper
label scorers
"$train" cache --model data/mini/sd --pairs data/sample --resolution 32 --device cpu --out "$work/latents"

# Networks of this size gain nothing from a second thread: as many trainings as cores.
for run in "${runs[@]}"; do
    name=${run%-s*}
    labels=paper
    [ "$name" != five-voters ] || labels=scorers
    echo "$train run --quiet --config $recipe --model data/mini/sd --cache $work/latents" \
        "--labels $work/labels-$labels.parquet --device cpu --seed ${run##*-s}" \
        "${EXPERIMENTS_STEPS:+--steps $EXPERIMENTS_STEPS}" "${flags[$name]} --out $work/runs/$run"
done | OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 xargs -P "${EXPERIMENTS_JOBS:-$(nproc)}" -d '\n' -I{} sh -c 'echo "{}"; {}'

# The four metrics that decide the labels, and a fifth that only five-voters learns from.
models=(--model base=data/mini/sd)
for run in "${runs[@]}"; do
    models+=(--model "$run=data/mini/sd,unet=$work/runs/$run/pipeline/unet")
done
prompts=(--prompts "data/mini/$split.tsv${EXPERIMENTS_LIMIT:+,limit=$EXPERIMENTS_LIMIT}")
"$evaluate" generate "${models[@]}" "${prompts[@]}" --steps 15 --guidance 1 --scheduler dpmpp-2m \
    --device cpu --out "$work/$split"
"$evaluate" score "${prompts[@]}" --scorers data/mini/scorers.toml --device cpu --out "$work/$split"

# Tables of the models that each is about. Comparisons of seeds need no bootstrap.
scores=$work/$split/scores.parquet
tables() {
    "$evaluate" tables --scores "$scores" --out "$work/tables-$1" "${@:2}" >/dev/null
}
list() { # base, then each NAME with seed N: list N NAME...
    local seed=$1 names=base name
    shift
    for name in "$@"; do names+=",$name-s$seed"; done
    echo "$names"
}
first=base,diffusion-dpo-s0,balanced-s0
tables first --models "$first"
# shellcheck disable=SC2086 # names are words
tables all --models "$(list 0 $several $single)" --baselines base,diffusion-dpo-s0
tables ablation --models base,diffusion-dpo-s0,dpo-moving-s0,balanced-frozen-s0,balanced-s0 --baselines base
for seed in $seeds; do
    # shellcheck disable=SC2086
    tables "seed-$seed" --models "$(list "$seed" $several)" --bootstrap 1
done
"$evaluate" report --scores "$scores" --models "$first" --labels "$work/labels-paper.parquet" --out "$work/tables-first"
# shellcheck disable=SC2086
python3 scripts/experiments/seeds.py --rows $several --seeds $seeds --tables "$work" \
    --voting "$work/voting-paper.json" "$work/voting-scorers.json" --out "$work/seeds.md"
[ "$split" = test ] || exit 0

# The page, the figure of its first table, a contact sheet.
page=docs/experiments.md
folder=docs/experiments
if [ -n "$trial" ]; then
    cp "$page" "$work/page.md"
    page=$work/page.md
    folder=$work/page
fi
mkdir -p "$folder"
"$evaluate" grid --scores "$scores" --models "$first" --count 8 --out "$folder/images.png"
cp "$work/tables-first/figures/winrates-test.png" "$folder/win-rates.png"
python3 scripts/experiments/page.py "$page" \
    "$work/tables-first/tables.md:Win rates=table-1" "$work/tables-first/tables.md:Every cell=cells" \
    "$work/tables-first/tables.md:Best, mean=means" \
    "$work/tables-all/tables.md:Win rates against=table-3" \
    "$work/tables-ablation/tables.md:Win rates against=table-4" \
    "$work/tables-all/tables.md:Mean scores=table-6" \
    "$work/tables-first/tables.md:Selected by one metric=cross" \
    "$work/tables-all/tables.md:Agreement of the metrics=metric-agreement" \
    "$work/seeds.md:Against the base=seeds-base" "$work/seeds.md:Against balanced=seeds-balanced" \
    "$work/seeds.md:Noise=noise" "$work/seeds.md:Rules=rules" "$work/seeds.md:The fifth voter=fifth"
echo "page: $page"
