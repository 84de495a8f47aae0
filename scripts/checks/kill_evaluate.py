#!/usr/bin/env python3
"""Kills processes of `evaluate run` on several ranks and shards, starts them again, and compares every
result with that of one process.

A round takes one way to divide the work, kills one process or all of them at a random instant (twice), and
then runs the command to its end in that way or alone. Exits 1 at the first byte that differs.

    scripts/checks/kill_evaluate.py [--rounds 20] [--seed 0] [--evaluate target/release/evaluate]
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Far above what a start takes.
LIMIT = 300
# How a process says who it is, or torchrun does.
WAYS = ["ranks 2", "shards 2", "ranks 3", "shards 3", "torchrun 2"]


def command(evaluate, out):
    mini = ROOT / "data/mini"
    models = [f"--model={name}={mini}/sd" for name in ("first", "second")]
    sampler = ["--seeds=2", "--steps=8", "--batch-size=4", "--score-batch-size=4"]
    prompts = [f"{mini}/validation.tsv,limit=14", f"{mini}/prompts.txt,limit=6"]
    scorers = f"--scorers={mini}/scorers.toml"
    return [evaluate, "run", "-q", "--device=cpu", *models, *sampler, scorers, f"--out={out}", "--prompts", *prompts]


def start(way, words):
    """The processes of one start, each the first of a group of its own."""
    name, _, count = way.partition(" ")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    starts = []
    if name == "torchrun":
        launcher = ["torchrun", "--standalone", f"--nproc-per-node={count}", "--max-restarts=3", "--no-python"]
        starts.append((launcher + words, {}))
    elif name == "alone":
        starts.append((words, {}))
    elif name == "shards":
        starts = [([*words, f"--shard={index}/{count}"], {}) for index in range(int(count))]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        address = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in map(str, range(int(count))):
            starts.append((words, {**address, "RANK": rank, "LOCAL_RANK": rank}))
    return [
        subprocess.Popen(
            words,
            env={**environment, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for words, variables in starts
    ]


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def kill(process):
    """Kills a program; of torchrun, one of its ranks."""
    if process.poll() is None:
        ranks = children(process.pid) if "torchrun" in process.args[0] else []
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(ranks or [process.pid]), signal.SIGKILL)


def finish(processes):
    """Waits for all; returns whether all ended with 0, and what they said."""
    end, errors = time.monotonic() + LIMIT, []
    for process in processes:
        try:
            errors.append(process.communicate(timeout=max(1, end - time.monotonic()))[1])
        except subprocess.TimeoutExpired:
            for other in processes:
                os.killpg(other.pid, signal.SIGKILL)
            sys.exit(f"{process.args} did not end within {LIMIT} s")
    return all(process.returncode == 0 for process in processes), "".join(errors)


def results(out):
    """Every result. The settings and the store of scores say who computed, and locks stay by design."""
    files = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and not name.endswith(".lock") and not name.startswith(("config.toml", "score-store/")):
            files[name] = path.read_bytes()
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", default=str(ROOT / "target/release/evaluate"))
    parser.add_argument("--work", type=Path, default=ROOT / "out/kill-evaluate")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    out = arguments.work / "out"
    words = command(arguments.evaluate, out)
    ways = [way for way in WAYS if not way.startswith("torchrun") or shutil.which("torchrun")]

    shutil.rmtree(arguments.work, ignore_errors=True)
    began = time.monotonic()
    is_done, said = finish(start("alone", words))
    seconds = time.monotonic() - began
    if not is_done:
        sys.exit(said)
    expected = results(out)
    print(f"one process: {len(expected)} files, {seconds:.1f} s", flush=True)
    for number in range(arguments.rounds):
        shutil.rmtree(out)
        way, kills = ways[number % len(ways)], []
        for _ in range(2):
            processes = start(way, words)
            # Ranks that a dead one has not met wait for it for ten minutes.
            least = 2.5 if way.startswith("ranks") else 0.1
            kills.append(least + random.uniform(0, 1.2 * seconds))
            time.sleep(kills[-1])
            for victim in random.sample(processes, random.choice([1, len(processes)])):
                kill(victim)
            finish(processes)
        last = random.choice([way, "alone"])
        is_done, said = finish(start(last, words))
        found = results(out)
        if not is_done or found != expected:
            differ = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            sys.exit(f"round {number}, {way}, then {last}: other results: {differ[:8]}\n{said}")
        when = ", ".join(f"{second:.1f}" for second in kills)
        print(f"round {number}: {way}, killed after {when} s, then {last}: the same bytes", flush=True)
    shutil.rmtree(arguments.work)


if __name__ == "__main__":
    main()
