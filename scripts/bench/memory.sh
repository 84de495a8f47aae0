#!/usr/bin/env bash
# Peak memory of `relabel score` on N and on 10 N rows of tiny images with the small models of
# data/mini: the two figures should be alike.
#
#   MEMORY_ROWS=N   the smaller number of rows (default 300)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=$(scripts/parity/venv.sh)
relabel="$root/target/release/relabel"
rows=${MEMORY_ROWS:-300}
work=out/bench/memory
mkdir -p "$work"
for count in "$rows" $((rows * 10)); do
    pairs="$work/pairs-$count.parquet"
    [ -e "$pairs" ] || "$python" scripts/parity/make_pairs.py --pairs "$count" --pairs-per-prompt 16 --size 64 --out "$pairs"
    "$python" - "$relabel" "$pairs" "$work/labels-$count.parquet" <<'PYTHON'
import os, subprocess, sys, time

relabel, pairs, out = sys.argv[1:]
command = [relabel, "score", "--pairs", pairs, "--scorers", "data/mini/scorers.toml", "--out", out, "--device", "cpu", "--fresh", "-q"]
start = time.perf_counter()
process = subprocess.Popen(command)
_, status, usage = os.wait4(process.pid, 0)
if os.waitstatus_to_exitcode(status):
    sys.exit(f"relabel ended with {os.waitstatus_to_exitcode(status)}")
print(f"{pairs}: {time.perf_counter() - start:.1f} s, peak memory {usage.ru_maxrss / 1024:.0f} MiB", flush=True)
PYTHON
done
