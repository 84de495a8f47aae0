#!/usr/bin/env bash
# Ten recorded training steps of the product, two reference refreshes among them, computed again with
# diffusers and torch (train_replay.py), and their inputs from the pairs themselves (train_inputs.py).
# One of the runs is that of two ranks, whose records have the names and the inputs of one process.
# Exits 1 beyond the bounds.
#
#   PARITY_OUT=DIR    work folder (default out/parity)
#   TRAIN, RELABEL    the programs (default target/release/{train,relabel})
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=$(scripts/parity/venv.sh)
train=${TRAIN:-$root/target/release/train}
relabel=${RELABEL:-$root/target/release/relabel}
work=${PARITY_OUT:-out/parity}/train
for program in "$train" "$relabel"; do
    [ -x "$program" ] || { echo "parity: $program is missing; run make setup" >&2; exit 1; }
done
mkdir -p "$work"
labels=$work/labels.parquet
[ -e "$labels" ] || "$relabel" score --quiet --pairs data/sample --scorers data/mini/scorers.toml --out "$labels"

# on_ranks N program words...: N processes, as torchrun starts them on one machine.
on_ranks() {
    local world=$1 port rank failed=0 started=()
    shift
    if [ "$world" = 1 ]; then
        "$@"
        return
    fi
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    for rank in $(seq 0 $((world - 1))); do
        env RANK="$rank" WORLD_SIZE="$world" LOCAL_RANK="$rank" MASTER_ADDR=127.0.0.1 \
            MASTER_PORT="$port" OMP_NUM_THREADS=1 "$@" &
        started+=($!)
    done
    for rank in "${started[@]}"; do
        wait "$rank" || failed=1
    done
    return $failed
}

# replay NAME MODEL flags...; RANKS=2 for two ranks, MICRO=2 for another micro-batch than 4, EVERY=1 for a
# checkpoint of every step
replay() {
    local name=$1 model=$2
    shift 2
    on_ranks "${RANKS:-1}" "$train" run --quiet --fresh --model "$model" --pairs data/sample --labels "$labels" --out "$work/$name" \
        --device cpu --dtype f32 --steps 10 --record-steps 10 --checkpoint-every "${EVERY:-10}" --keep 10 \
        --batch-size 8 --micro-batch "${MICRO:-4}" --reference-every 4 --warmup-steps 3 --probe-every 0 \
        --sample-every 0 "$@"
    echo "== ten training steps, $name, ${RANKS:-1} rank(s): product against diffusers and torch, f32 =="
    local failed=0
    "$python" scripts/parity/train_replay.py "$work/$name" --model "$model" || failed=1
    "$python" scripts/parity/train_inputs.py "$work/$name" --model "$model" --pairs data/sample \
        --labels "$labels" || failed=1
    echo
    return $failed
}

# A pipeline like MODEL that predicts the velocity.
with_velocity() {
    local model=$1
    rm -rf "$work/velocity-model"
    cp -r "$model" "$work/velocity-model"
    sed -i 's/"prediction_type": "epsilon"/"prediction_type": "v_prediction"/' \
        "$work/velocity-model/scheduler/scheduler_config.json"
    grep -q v_prediction "$work/velocity-model/scheduler/scheduler_config.json"
}

# The small pipelines of the tests have random weights: their z moves far at small learning rates. And z is
# beta / 2 times a difference of errors that agree to 1e-7: a beta of many hundreds shows that rounding.
fixtures=crates/nn/tests/fixtures/diffusion
status=0
replay sd-adamw "$fixtures/sd" --beta 100 --lr 1e-6 || status=1
RANKS=2 replay sd-two-ranks "$fixtures/sd" --beta 100 --lr 1e-6 || status=1
RANKS=2 MICRO=2 replay sd-sharded "$fixtures/sd" --beta 100 --lr 1e-6 --shard-optimizer || status=1
with_velocity "$fixtures/sd"
replay velocity "$work/velocity-model" --beta 100 --lr 1e-6 || status=1
replay sdxl-adafactor "$fixtures/sdxl" --beta 100 --lr 1e-6 --optimizer adafactor \
    --preference vanilla --grad-checkpointing || status=1
# Adapters: the steps with PEFT, and the files of the result with diffusers.
adapters() {
    local name=$1 model=$2
    shift 2
    EVERY=1 replay "$name" "$model" --beta 100 --adapter lora --lora-format diffusers,kohya --lora-name kohya "$@" || return 1
    echo "== adapters, $name: files of the run in diffusers against its merged pipeline =="
    "$python" scripts/parity/lora_files.py "$work/$name" --model "$model"
}
adapters sd-lora "$fixtures/sd" --lr 1e-4 || status=1
adapters sd-lora-ff "$fixtures/sd" --lr 1e-4 --targets attention+ff --rank 4 --alpha 2 --grad-checkpointing || status=1
adapters sdxl-lora "$fixtures/sdxl" --lr 1e-4 --rank 4 || status=1
if [ -e data/mini/sd/model_index.json ]; then
    replay mini-adamw data/mini/sd --beta 200 --lr 1e-6 || status=1
fi
exit $status
