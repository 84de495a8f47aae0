#!/usr/bin/env bash
# BalancedDPO without a data set: each round generates images of the training prompts with the model
# of the round before, scores them, makes pairs of them and trains on these. At the end the base and
# the model of every round are compared on prompts that no round has seen.
#
# Every command resumes: killed at any moment, the same command finishes with the same bytes. Another
# setting needs another folder. `make iterate` sets the variables; docs/own-pairs.md explains them.
#
#   ITERATE=DIR           work folder                ROUNDS=N         rounds
#   MODEL=DIR             the base                   SCORERS=FILE     the voters
#   TRAIN_PROMPTS=FILE    prompts to make pairs of   PROMPTS=FILE     held-out prompts
#   SEEDS=N               images of each prompt      CHOOSE=WHICH     which of them become pairs
#   SAMPLER="FLAGS"       how images are generated   DEVICE=D         auto, cpu, cuda
#   RECIPE=NAMES          recipes of train           ROUND="FLAGS"    more flags of train
#   EVALUATE, TRAIN       the programs (default target/release/...)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
evaluate=${EVALUATE:-target/release/evaluate}
train=${TRAIN:-target/release/train}
: "${ITERATE:?}" "${ROUNDS:?}" "${MODEL:?}" "${SCORERS:?}" "${TRAIN_PROMPTS:?}" "${PROMPTS:?}"
: "${SEEDS:?}" "${CHOOSE:?}" "${RECIPE:?}" "${DEVICE:=auto}"
read -ra sampler <<<"${SAMPLER:-}"
read -ra flags <<<"${ROUND:-}"

model=$MODEL
models=(--model "base=$MODEL")
for ((round = 1; round <= ROUNDS; round++)); do
    folder=$ITERATE/round-$round
    echo "round $round of $ROUNDS: $model"
    # Other seeds in each round than in the others and in the comparison, whose seeds begin with 0.
    "$evaluate" generate --model "policy=$model" --prompts "$TRAIN_PROMPTS" --out "$folder" \
        --seeds "$SEEDS" --base-seed "${round}000" "${sampler[@]}" --device "$DEVICE"
    "$evaluate" score --prompts "$TRAIN_PROMPTS" --scorers "$SCORERS" --out "$folder" --device "$DEVICE"
    "$evaluate" pairs --scores "$folder/scores.parquet" --choose "$CHOOSE" --out "$folder/pairs"
    "$train" run --recipe "$RECIPE" "${flags[@]}" --model "$model" --pairs "$folder/pairs" \
        --labels "$folder/pairs/labels.parquet" --out "$folder/run" --device "$DEVICE"
    model=$folder/run/pipeline
    models+=(--model "round-$round=$model")
done
"$evaluate" run "${models[@]}" --prompts "$PROMPTS" --scorers "$SCORERS" --baselines base \
    "${sampler[@]}" --out "$ITERATE/eval" --device "$DEVICE"
