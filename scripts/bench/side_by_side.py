"""Runs the plain Python way, the batched one and the product on the same pairs, one after another,
and prints a table with the ratios. Reads nothing but what those programs write.

Every run starts with the checkpoints in the page cache; nothing else may run on the machine. Wall
times are of the whole process; Python's time to import and to load is also shown apart, and the
ratios are given with and without it, the second being the harder one for the product.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tomllib

HERE = Path(__file__).resolve().parent
NETWORKS = re.compile(r"networks: ([\d.]+) s of ([\d.]+) s")


def warm(folder: Path) -> None:
    """Reads every checkpoint once."""
    for file in sorted(folder.glob("*/*")):
        if file.is_file():
            with file.open("rb") as handle:
                while handle.read(1 << 24):
                    pass


def run(name: str, command: list[str], folder: Path, out: Path) -> dict:
    """Runs one program alone; wall seconds and peak resident memory of exactly this process."""
    warm(folder)
    print(f"-- {name}: {' '.join(command)}", flush=True)
    log = out / f"{name}.log"
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        sys.exit(f"{name} ended with {process.returncode}:\n{text[-4000:]}")
    result = {
        "name": name,
        "wall_seconds": wall,
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    found = NETWORKS.findall(text)
    if found:
        result["network_seconds"], result["network_of_seconds"] = map(float, found[-1])
    return result


def scores_of(path: Path, scorers: list[str]) -> dict[str, np.ndarray]:
    table = pd.read_parquet(path).sort_values("pair_id")
    return {
        name: table[[f"{name}_score_0", f"{name}_score_1"]].to_numpy(dtype=np.float64)
        for name in scorers
    }


def vote_changes(
    ours: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> tuple[dict[str, int], int]:
    """Votes that differ, by scorer, and consensus labels that differ."""

    def votes(scores: dict[str, np.ndarray]) -> np.ndarray:
        return np.stack(
            [np.where(values[:, 0] >= values[:, 1], 1, -1) for values in scores.values()]
        )

    first, second = votes(ours), votes(other)
    by_scorer = {name: int(count) for name, count in zip(ours, (first != second).sum(axis=1))}
    return by_scorer, int((np.sign(first.sum(axis=0)) != np.sign(second.sum(axis=0))).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--relabel", type=Path, required=True, help="the relabel program")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--scorers-dir", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of outputs, logs and the report"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="of the batched Python way (default 8)"
    )
    parser.add_argument(
        "--skip",
        nargs="*",
        default=[],
        help="runs to leave out; their last result in --out is used",
    )
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    common = ["--pairs", str(arguments.pairs), "--scorers-dir", str(arguments.scorers_dir)]
    batched = [
        sys.executable,
        str(HERE / "batched.py"),
        *common,
        "--batch-size",
        str(arguments.batch_size),
    ]
    ours = [
        str(arguments.relabel),
        "score",
        "--pairs",
        str(arguments.pairs),
        "--scorers",
        str(arguments.scorers_dir / "scorers.toml"),
        "--device",
        "cpu",
        "--fresh",
    ]
    commands = {
        "python-plain-f32": [sys.executable, str(HERE / "plain.py"), *common],
        "python-batched-f32": [*batched],
        "relabel-f32": [*ours, "--dtype", "f32"],
        "relabel-bf16": [*ours, "--dtype", "bf16"],
        "python-batched-bf16": [*batched, "--dtype", "bf16"],
    }
    saved = out / "results.json"
    results = (
        {result["name"]: result for result in json.loads(saved.read_text())}
        if saved.exists()
        else {}
    )
    for name, command in commands.items():
        if name in arguments.skip:
            continue
        file = out / f"{name}.parquet"
        results[name] = run(name, [*command, "--out", str(file)], arguments.scorers_dir, out)
        times = file.with_name(file.name + ".json")
        if name.startswith("python"):
            results[name] |= json.loads(times.read_text()) | {
                "peak_rss_bytes": results[name]["peak_rss_bytes"]
            }
        saved.write_text(json.dumps(list(results.values()), indent=2) + "\n")
    print(report(arguments, results))


def report(arguments: argparse.Namespace, results: dict[str, dict]) -> str:
    entries = tomllib.loads((arguments.scorers_dir / "scorers.toml").read_text(encoding="utf-8"))[
        "scorer"
    ]
    scorers = [entry["name"] for entry in entries]
    pairs = pd.read_parquet(arguments.pairs, columns=["image_0_uid", "image_1_uid", "caption"])
    images = pd.concat([pairs["image_0_uid"], pairs["image_1_uid"]]).nunique()
    lines = [
        f"{len(pairs)} pairs, {images} images ({2 * len(pairs) / images:.2f} uses each), "
        f"{pairs['caption'].nunique()} captions, "
        f"{len(scorers)} scorers; {os.cpu_count()} cores, {processor()}",
        "",
        "| run | wall s | load s | score s | pairs/s | in networks | peak memory GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results.values():
        load, score = (
            result.get("load_seconds"),
            result.get("score_seconds", result["wall_seconds"]),
        )
        share = (
            f"{100 * result['network_seconds'] / result['wall_seconds']:.1f} %"
            if "network_seconds" in result
            else ""
        )
        lines.append(
            f"| {result['name']} | {result['wall_seconds']:.1f} "
            f"| {'' if load is None else f'{load:.1f}'} | {score:.1f} "
            f"| {len(pairs) / score:.3f} | {share} | {result['peak_rss_bytes'] / 2**30:.2f} |"
        )
    lines += ["", "| ratio | whole process | Python without loading |", "|---|---|---|"]
    wall = {name: result["wall_seconds"] for name, result in results.items()}
    score = {
        name: result.get("score_seconds", result["wall_seconds"])
        for name, result in results.items()
    }
    for title, slow, fast in (
        ("plain Python f32 / relabel f32", "python-plain-f32", "relabel-f32"),
        ("batched Python f32 / relabel f32", "python-batched-f32", "relabel-f32"),
        ("relabel f32 / relabel bf16", "relabel-f32", "relabel-bf16"),
        ("plain Python f32 / relabel bf16", "python-plain-f32", "relabel-bf16"),
        ("batched Python bf16 / relabel bf16", "python-batched-bf16", "relabel-bf16"),
    ):
        if slow in wall and fast in wall:
            lines.append(
                f"| {title} | {wall[slow] / wall[fast]:.2f} | {score[slow] / wall[fast]:.2f} |"
            )
    files = {name: arguments.out / f"{name}.parquet" for name in results}
    if "relabel-f32" in files:
        ours = scores_of(files["relabel-f32"], scorers)
        lines.append("")
        for name, file in files.items():
            if name == "relabel-f32":
                continue
            other = scores_of(file, scorers)
            worst = {
                scorer: float(np.abs(ours[scorer] - other[scorer]).max()) for scorer in scorers
            }
            changes, consensus = vote_changes(ours, other)
            largest = ", ".join(f"{scorer} {value:.1e}" for scorer, value in worst.items())
            lines.append(
                f"- {name} against relabel-f32: largest difference {largest}; votes changed {sum(changes.values())} of "
                f"{len(pairs) * len(scorers)} ({', '.join(f'{scorer} {count}' for scorer, count in changes.items())}), "
                f"consensus changed {consensus} of {len(pairs)}"
            )
        spread = ", ".join(f"{scorer} {values.std():.3f}" for scorer, values in ours.items())
        lines.append(f"- spread of the scores (standard deviation): {spread}")
    text = "\n".join(lines) + "\n"
    (arguments.out / "report.md").write_text(text)
    return text


def processor() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
