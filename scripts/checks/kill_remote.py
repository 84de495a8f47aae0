#!/usr/bin/env python3
"""Kills programs that read from elsewhere at random, and compares what they end with.

    python scripts/checks/kill_remote.py --rounds 20

The pairs of data/sample lie in object storage as Parquet and as tars, and on a hub; some answers of
the object storage are 503, some break off. Each round takes one way in for `relabel score`, with
labels that go to a file or to the object storage, and every fourth round `train run` with pairs and
labels from there. It kills the program at random moments, starts the same command until it is done,
and compares bytes with those of an undisturbed run on local files. Ends with 1 if any differs.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remote_data import ROOT, SAMPLE, DataServer, as_tars, environment, score, sha256, train, weights

# A start that hangs is an error of its own.
LIMIT = 240
TRAIN_STEPS = ("--steps", 6, "--batch-size", 16, "--checkpoint-every", 2, "--probe-pairs", 0)
WAYS = {
    "s3": "s3://data/sample",
    "tars": "s3://data/tars",
    "hub": "hf://datasets/o/sample",
}


def run(command, variables=None, folder=None):
    """Runs to the end; returns seconds, or ends this program."""
    begin = time.monotonic()
    done = subprocess.run(
        command, env=environment(variables), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, timeout=LIMIT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command[:2])} ended with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - begin


def start_and_kill(command, variables, folder, seconds, numbers):
    """Starts and kills after at most so many seconds; returns whether it was still running."""
    process = subprocess.Popen(
        command, env=environment(variables), cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(timeout=numbers.uniform(0, seconds))
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(numbers.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        process.wait(timeout=LIMIT)
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relabel", type=Path, default=ROOT / "target/release/relabel")
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="starts of a round that are killed")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    relabel, trainer = arguments.relabel.resolve(), arguments.train.resolve()
    numbers = random.Random(arguments.seed)
    differ = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        as_tars(place / "tars")
        local = {"sample": place / "sample.parquet", "tars": place / "tars.parquet"}
        units = ("--quiet", "--unit-pairs", 16)
        scoring = run(score(relabel, SAMPLE, local["sample"], *units))
        run(score(relabel, place / "tars", local["tars"], *units))
        training = run(train(trainer, SAMPLE, local["sample"], place / "alone", "--quiet", *TRAIN_STEPS))
        expected = {name: sha256(path.read_bytes()) for name, path in local.items()}
        expected |= {"s3": expected["sample"], "hub": expected["sample"], "train": weights(place / "alone")}
        print(f"undisturbed: relabel {scoring:.1f} s, train {training:.1f} s")
        labels = place / "labels"
        labels.mkdir()
        (labels / "labels.parquet").write_bytes(local["sample"].read_bytes())
        folders = {"sample": SAMPLE, "tars": place / "tars", "labels": labels}
        with DataServer(folders, faults=True) as server:
            for number in range(arguments.rounds):
                folder = place / f"round-{number}"
                folder.mkdir()
                if number % 4 == 3:
                    how, to = "train", folder / "run"
                    labels = "s3://data/labels/labels.parquet"
                    command = train(trainer, WAYS["s3"], labels, to, "--quiet", *TRAIN_STEPS)
                    seconds = training
                else:
                    how = ["s3", "tars", "hub"][number % 4]
                    to = numbers.choice([folder / "out.parquet", f"s3://data/out/{number}.parquet"])
                    command = score(relabel, WAYS[how], to, *units)
                    seconds = scoring
                # The work folder of labels in object storage is in the current folder.
                killed = sum(
                    start_and_kill(command, server.variables, folder, 1.5 * seconds, numbers)
                    for _ in range(arguments.kills)
                )
                run(command, server.variables, folder)
                if how == "train":
                    found = weights(to)
                elif isinstance(to, Path):
                    found = sha256(to.read_bytes())
                else:
                    found = sha256(server.object(to.removeprefix("s3://data/")) or b"")
                same = found == expected[how]
                left = [path.name for path in folder.iterdir() if path.name.endswith(".work")]
                differ += not same or bool(left)
                verdict = "the same bytes" if same and not left else f"DIFFERS {left}"
                to = "a folder" if how == "train" else "a file" if isinstance(to, Path) else "s3"
                print(f"round {number + 1}: {how} to {to}, {killed} killed, {verdict}", flush=True)
            print(f"object storage: {server.traffic()}")
    print(f"{arguments.rounds - differ} of {arguments.rounds} rounds ended with the same bytes")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
