#!/usr/bin/env python3
"""Kills processes of `relabel score` at random and compares the labels with those of one process.

    python scripts/checks/kill_relabel.py --program target/release/relabel --rounds 20

Each round takes shards, ranks with bare variables, or torchrun in turn. It kills some of the
processes at random moments, starts the same command until the labels are there, and compares the
SHA-256 of the file. Prints a line a round; ends with 1 if any differs.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A start that hangs is an error of its own.
LIMIT = 300
MOST_STARTS = 30


def environment(**more):
    """The caller's variables without those of launchers, one thread a process."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "RELABEL_", "TORCHELASTIC_", "MASTER_"))
        and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RUNKIT_FAULT")
    }
    return kept | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"} | more


def command(program, out):
    sample, scorers = ROOT / "data/sample", ROOT / "data/mini/scorers.toml"
    return [
        str(program), "score", "--quiet", "--pairs", str(sample), "--scorers", str(scorers),
        "--out", str(out), "--unit-pairs", "16",
    ]  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_shards(base, world):
    return [
        subprocess.Popen([*base, "--shard", f"{index}/{world}"], env=environment(), **QUIET) for index in range(world)
    ]


def start_ranks(base, world):
    port = str(free_port())
    return [
        subprocess.Popen(
            base,
            env=environment(
                RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            ),
            **QUIET,
        )
        for rank in range(world)
    ]  # fmt: skip


def start_torchrun(base, world):
    torchrun = shutil.which("torchrun") or str(ROOT / ".venv/bin/torchrun")
    launcher = [torchrun, "--nproc-per-node", str(world), "--max-restarts", "3",
                "--master-port", str(free_port()), "--no-python"]  # fmt: skip
    return [subprocess.Popen([*launcher, *base], env=environment(), **QUIET)]


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def children(process):
    """The processes that this one has started: the ranks of torchrun."""
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def kill_one(processes, how, numbers):
    """Kills a process at random; of torchrun one of its ranks, never the agent."""
    victim = numbers.choice(processes).pid
    if how == "torchrun":
        ranks = children(victim)
        if not ranks:
            return False
        victim = numbers.choice(ranks)
    try:
        os.kill(victim, numbers.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    except ProcessLookupError:
        return False
    return True


def one_start(how, base, world, numbers, seconds):
    """Starts all processes, kills at most one, waits for all; returns whether one was killed."""
    start = {"shards": start_shards, "ranks": start_ranks, "torchrun": start_torchrun}[how]
    processes = start(base, world)
    try:
        killed = False
        if seconds is not None:
            # Ranks of a dead one that they never met wait for it for five minutes.
            least = 2 if how == "ranks" else 0
            time.sleep(least + numbers.uniform(0, seconds))
            killed = kill_one(processes, how, numbers)
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT)
            if seconds is None and process.returncode:
                sys.exit(f"{how}: ended with {process.returncode}:\n{errors}")
        return killed
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/relabel")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="starts of a round that are killed")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    numbers = random.Random(arguments.seed)
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "alone.parquet"
        begin = time.monotonic()
        alone = subprocess.run(command(arguments.program, out), env=environment(), **QUIET)
        seconds = time.monotonic() - begin
        if alone.returncode:
            sys.exit(f"one process ended with {alone.returncode}:\n{alone.stderr}")
        expected = sha256(out)
        print(f"one process: {seconds:.1f} s, {expected[:12]}")
        for round_ in range(arguments.rounds):
            how = ["shards", "ranks", "torchrun"][round_ % 3]
            world = numbers.choice([2, 3])
            out = Path(place) / f"round-{round_}" / "labels.parquet"
            base = command(arguments.program, out)
            # torchrun itself takes some seconds to start.
            longest = 2 * seconds + (6 if how == "torchrun" else 0)
            kills = sum(one_start(how, base, world, numbers, longest) for _ in range(arguments.kills))
            starts = 0
            while not out.exists() and starts < MOST_STARTS:
                one_start(how, base, world, numbers, None)
                starts += 1
            same = out.exists() and sha256(out) == expected
            left = [path.name for path in out.parent.iterdir() if path.name.endswith(".work")]
            differ += not same or bool(left)
            verdict = "the same bytes" if same and not left else f"DIFFERS {left}"
            print(f"round {round_ + 1}: {how} of {world}, {kills} killed, {verdict}", flush=True)
    print(f"{arguments.rounds - differ} of {arguments.rounds} rounds ended with the same bytes")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
