"""Times `relabel score` and `train run` with pairs in object storage on this machine beside the same
pairs in local files. Writes DIR/locations.md and DIR/locations.json.

Pairs are JPEGs of 512 px, in pages of a megabyte with an index, as `relabel convert` writes them; the
models are the toy ones, so that reading and decoding weigh as much as they can. `train run` takes one
epoch, and fetches a part of the next one meanwhile, which counts among the bytes. The server
(tools/src/bin/data_server.rs) holds the pairs in memory and takes its part of the same cores. Runs take
turns, and the ratio is that of the medians of whole runs, start and end included.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "checks")]
from remote_data import DataServer, environment, read_elsewhere, score, sha256, train, weights  # noqa: E402
from side_by_side import processor  # noqa: E402


def timed(command: list[str], variables: dict) -> tuple[float, str]:
    """Seconds of a run, and what it wrote to stderr."""
    begin = time.perf_counter()
    done = subprocess.run(
        command, env=environment(variables), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command[:2])} ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stderr


def measure(name: str, command, result, pairs: int, size: int, server: DataServer, rounds: int) -> dict:
    """`command(place, out)` on local files and on object storage in turns. `result(out)` must be equal."""
    seconds: dict[str, list[float]] = {"local": [], "s3": []}
    found, asked = {}, (0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            # Whoever comes second finds a warmer machine.
            for place in sorted(seconds, reverse=turn % 2 == 1):
                out = Path(folder) / f"{place}-{turn}"
                took, errors = timed(command(place, out), server.variables)
                seconds[place].append(took)
                found[place] = result(out)
                if place == "s3":
                    asked = read_elsewhere(errors)
                shutil.rmtree(out, ignore_errors=True)
    if found["local"] != found["s3"]:
        sys.exit(f"{name}: the results differ")
    local, remote = statistics.median(seconds["local"]), statistics.median(seconds["s3"])
    requests, read, retries = asked
    return {
        "command": name,
        "pairs": pairs,
        "local": pairs / local,
        "s3": pairs / remote,
        "ratio": local / remote,
        "seconds": seconds,
        "requests": requests,
        "requests_per_gb": requests / (size / 1e9),
        "bytes_read": read,
        "bytes_of_set": size,
        "retries": retries,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| command | local, pairs/s | object storage, pairs/s | ratio | requests a GB | bytes read / of the set |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row['command']} | {row['local']:.1f} | {row['s3']:.1f} | {row['ratio']:.3f} "
            f"| {row['requests_per_gb']:.0f} | {row['bytes_read'] / row['bytes_of_set']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures both programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--relabel", type=Path, required=True, help="the built program `relabel`")
    parser.add_argument("--train", type=Path, required=True, help="the built program `train`")
    parser.add_argument("--pairs", type=Path, required=True, help="a folder of pairs")
    parser.add_argument("--count", type=int, required=True, help="how many pairs it has")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind (default 5)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = sum(path.stat().st_size for path in arguments.pairs.glob("*.parquet"))
    batch = 16
    steps = arguments.count // batch
    labels = arguments.out / f"{arguments.pairs.name}-labels" / "labels.parquet"
    if not labels.exists():
        timed(score(arguments.relabel, arguments.pairs, labels, "--quiet"), {})
    with DataServer({"pairs": arguments.pairs, "labels": labels.parent}) as server:
        places = {"local": arguments.pairs, "s3": "s3://data/pairs"}
        given = {"local": labels, "s3": "s3://data/labels/labels.parquet"}
        results = [
            measure(
                "relabel score",
                lambda place, out: score(arguments.relabel, places[place], out / "labels.parquet", "-v"),
                lambda out: sha256((out / "labels.parquet").read_bytes()),
                arguments.count, size, server, arguments.rounds,
            ),
            measure(
                "train run",
                lambda place, out: train(
                    arguments.train, places[place], given[place], out, "-v", "--steps", steps,
                    "--batch-size", batch, "--probe-pairs", 0, "--ties", "half",
                    "--data-memory", 64, "--checkpoint-every", 1_000_000,
                ),
                weights,
                steps * batch, size, server, arguments.rounds,
            ),
        ]  # fmt: skip
    (arguments.out / "locations.json").write_text(json.dumps(results, indent=2) + "\n")
    text = (
        f"{arguments.count} pairs, {size / 1e6:.0f} MB; medians of {arguments.rounds} runs each; "
        f"{processor()}.\n\n{table(results)}\n"
    )
    (arguments.out / "locations.md").write_text(text)
    print("\n" + text, end="")


if __name__ == "__main__":
    main()
