#!/usr/bin/env python3
"""Compares the memory of `relabel score` and `train run` for two sizes of a set in object storage.

    python scripts/checks/remote_memory.py

The pairs are those of data/sample with a megabyte behind each image, which decoders do not look at:
0.5 GB and 1.3 GB. Prints the most memory of its own that each program held (RssAnon) for each size; ends
with 1 if it grew by more than 128 MB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from remote_data import ROOT, SAMPLE, DataServer, environment, score, train

PAIRS_OF_A_FILE = 128
EXTRA = 1 << 20
SIZES = {"small": 2, "large": 5}
# What a run may hold more for the larger set, in MB.
MOST_GROWTH = 128


def enlarged(folder):
    """Writes files of pairs with row groups of 32, pages of a megabyte and an index of them."""
    rows = [row for path in sorted(SAMPLE.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    schema = pq.read_schema(sorted(SAMPLE.glob("*.parquet"))[0])
    for file in range(max(SIZES.values())):
        some = []
        for number in range(file * PAIRS_OF_A_FILE, (file + 1) * PAIRS_OF_A_FILE):
            row = dict(rows[number % len(rows)])
            for side in "01":
                row[f"jpg_{side}"] += os.urandom(EXTRA)
                row[f"image_{side}_uid"] = f"{number}-{side}"
            row["ranking_id"] = number
            some.append(row)
        pq.write_table(
            pa.Table.from_pylist(some, schema=schema), folder / f"{file}.parquet", compression="none",
            row_group_size=32, write_page_index=True, write_batch_size=1, data_page_size=1 << 20,
            use_dictionary=False,
        )  # fmt: skip


def most_held(command, variables):
    """The peak of RssAnon of a run, in MB."""
    process = subprocess.Popen(command, env=environment(variables), stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]))
        time.sleep(0.002)
    if process.wait():
        sys.exit(f"{' '.join(command[:2])} ended with {process.returncode}")
    return most / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relabel", type=Path, default=ROOT / "target/release/relabel")
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train")
    arguments = parser.parse_args()
    grew = False
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "files").mkdir()
        enlarged(place / "files")
        for size, files in SIZES.items():
            (place / size).mkdir()
            for file in range(files):
                os.link(place / f"files/{file}.parquet", place / f"{size}/{file}.parquet")
        with DataServer({size: place / size for size in SIZES}) as server:
            held = {"relabel": [], "train": []}
            for size, files in SIZES.items():
                labels = place / f"{size}.labels/labels.parquet"
                labels.parent.mkdir()
                command = score(arguments.relabel, f"s3://data/{size}", labels, "--quiet")
                held["relabel"].append(most_held(command, server.variables))
                command = train(
                    arguments.train, f"s3://data/{size}", labels, place / f"{size}-run", "--quiet", "--steps",
                    files * PAIRS_OF_A_FILE // 16, "--batch-size", 16, "--probe-pairs", 0, "--ties", "half",
                    "--data-memory", 64, "--checkpoint-every", 1_000_000,
                )  # fmt: skip
                held["train"].append(most_held(command, server.variables))
        bytes_ = [sum(path.stat().st_size for path in (place / size).iterdir()) / 1e6 for size in SIZES]
        for program, (small, large) in held.items():
            print(f"{program}: {small:.0f} MB for {bytes_[0]:.0f} MB, {large:.0f} MB for {bytes_[1]:.0f} MB")
            grew |= large > small + MOST_GROWTH
    sys.exit(grew)


if __name__ == "__main__":
    main()
