"""Compares the peak memory that `train plan` predicts on this machine's CPU with that of a run of two
steps, for the rows of the table in docs/train.md: layers of the published sizes with random weights.
Writes DIR/plan-memory.md and DIR/plan-memory/ROW.json, and exits with 1 if a row is off by more than
15 %.

The measured peak is VmHWM of the process, from its start to its end: with weights that are mapped from
files, with the checkpoint and the result. The last two columns say how much of it was memory of the
process's own, and how much pages of mapped files. A row that needs more memory than is free is not run,
and is no success.

A row that was measured is not measured again, so an interrupted run resumes.

With --gpu it prints the table of docs/train.md instead: what `train plan --device cuda` says of each row
of GPU_ROWS, for a card of --memory that need not be here.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
from side_by_side import processor  # noqa: E402

TOLERANCE = 0.15
# Memory that the system and this script need beside the run.
MARGIN = 1 << 30
GIB = 1 << 30
LORA = ["--adapter", "lora", "--rank", "8"]
CHECKPOINTING = ["--grad-checkpointing"]


class Row(NamedTuple):
    """A run: its model, side in pixels, dtype and flags. `pairs` are those of a step, one at a time."""

    name: str
    model: str
    side: int
    dtype: str
    pairs: int
    flags: list[str]


def full(optimizer: str, *more: str) -> list[str]:
    return ["--optimizer", optimizer, *CHECKPOINTING, *more]


ROWS = [
    Row("sd15-lora", "sd15", 512, "f32", 1, LORA),
    Row("sd15-lora-checkpointing", "sd15", 512, "f32", 1, LORA + CHECKPOINTING),
    Row("sd15-lora-bf16-checkpointing", "sd15", 512, "bf16", 1, LORA + CHECKPOINTING),
    Row("sd15-adamw", "sd15", 256, "bf16", 2, full("adamw")),
    Row("sd15-adafactor", "sd15", 256, "bf16", 2, full("adafactor")),
    Row("sd15-adamw8bit", "sd15", 256, "bf16", 2, full("adamw8bit")),
    Row("sd15-adamw8bit-f32", "sd15", 256, "f32", 2, full("adamw8bit")),
    Row("sd15-adafactor-kept", "sd15", 256, "bf16", 2, ["--optimizer", "adafactor"]),
    Row("sd15-adamw8bit-ema", "sd15", 256, "bf16", 2, full("adamw8bit", "--ema", "0.9999")),
    Row("sd15-adamw8bit-mapo", "sd15", 256, "bf16", 2, full("adamw8bit", "--loss", "mapo")),
    Row("sdxl-lora-checkpointing", "sdxl", 256, "bf16", 1, LORA + CHECKPOINTING),
    Row("sdxl-adamw8bit", "sdxl", 256, "bf16", 1, full("adamw8bit")),
]

# For the table of cards: the model, and the flags.
ONE = ["--micro-batch", "1", *CHECKPOINTING]
GPU_ROWS = [
    ("sd15", ["--recipe", "sd15-lora"]),
    ("sd15", ["--recipe", "sd15", *ONE, "--optimizer", "adamw8bit"]),
    ("sd15", ["--recipe", "sd15", *ONE, "--optimizer", "adamw8bit", "--loss", "mapo"]),
    ("sd15", ["--recipe", "sd15", *ONE, "--optimizer", "adamw8bit", "--ema", "0.9999"]),
    ("sd15", ["--recipe", "sd15", *ONE, "--optimizer", "adafactor"]),
    ("sd15", ["--recipe", "sd15", *ONE]),
    ("sdxl", ["--recipe", "sdxl-lora"]),
    ("sdxl", ["--recipe", "sdxl"]),
    ("sdxl", ["--recipe", "sdxl", "--optimizer", "adamw8bit"]),
    ("sdxl", ["--recipe", "sdxl", "--optimizer", "adamw"]),
]


def build_model(models: Path, name: str) -> None:
    """A whole pipeline. What SDXL has in common with Stable Diffusion 1.5 is a link to its folder."""
    sys.path.insert(0, str(HERE.parent / "parity"))
    from diffusion_configs import MODELS, Part, build, build_tokenizer, write_index

    build(models, "sd15")
    if name == "sd15":
        return
    folder = build(models, name)
    shared = ("text_encoder", "tokenizer")
    for part in shared:
        if not (folder / part).exists():
            (folder / part).symlink_to(Path("..", "sd15", part), target_is_directory=True)
    if not (folder / "tokenizer_2").exists():
        build_tokenizer(folder / "tokenizer_2", "!", small=False)
    parts = {part: MODELS["sd15"][part] for part in shared}
    write_index(folder, parts | MODELS[name] | {"tokenizer_2": Part(None, {})})


def status(process: subprocess.Popen) -> dict[str, int]:
    """The memory of a process in bytes; nothing if it has ended."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return {}
    lines = (line.split() for line in text.splitlines() if line.startswith(("Vm", "Rss")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in lines}


def free_memory() -> int:
    text = Path("/proc/meminfo").read_text()
    line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def in_words(flags: list[str] | None) -> str:
    return "none" if flags is None else " ".join(f"`{flag}`" for flag in flags)


def table_of_cards(arguments: argparse.Namespace) -> str:
    """What the plan says of each row, with the flags for the cards that are too small."""
    lines = ["| | peak GiB | fits | smaller cards |", "|---|---:|---:|---|"]
    for model, flags in GPU_ROWS:
        command = [arguments.train, "plan", "--model", arguments.models / model, *flags]
        command += ["--pairs", ROOT / "data/sample", "--labels", arguments.labels]
        command += ["--out", arguments.out / "none", "--device", "cuda", "--memory", arguments.memory]
        output = subprocess.run([*map(str, command), "--json"], check=True, stdout=subprocess.PIPE).stdout
        plan = json.loads(output)["gpu"]
        fits = plan["fits_gigabytes"]
        smaller = [f"{card['gigabytes']} GB: {in_words(card['flags'])}" for card in plan["with_flags"]]
        cells = [f"`{' '.join(flags)}`", f"{plan['peak_memory_bytes'] / GIB:.1f}"]
        cells += [f"{fits[0]} GB" if fits else "none", "; ".join(smaller)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    def command(self, row: Row, command: str, out: Path) -> list[str]:
        arguments = self.arguments
        model = arguments.models / row.model
        words = [arguments.train, command, "--model", model, "--pairs", ROOT / "data/sample"]
        words += ["--labels", arguments.labels, "--out", out, "--device", "cpu", "--dtype", row.dtype]
        words += ["--resolution", row.side, "--batch-size", row.pairs, "--micro-batch", 1]
        words += ["--steps", 2, "--lr", 1e-9, "--warmup-steps", 0, "--keep", 1, "--hflip=false"]
        words += ["--sample-every", 0, "--probe-pairs", 0]
        return [*map(str, words), *row.flags]

    def plan(self, row: Row, out: Path) -> dict:
        command = [*self.command(row, "plan", out), "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def run(self, row: Row, out: Path) -> dict:
        """Runs two steps. The peak is read until the process has ended, 20 times a second."""
        start = time.perf_counter()
        process = subprocess.Popen([*self.command(row, "run", out), "--quiet"])
        peak: dict[str, float] = {}
        while process.poll() is None:
            now = status(process)
            if now.get("VmHWM", 0) > peak.get("VmHWM", 0):
                peak = now | {"seconds": time.perf_counter() - start}
            time.sleep(0.05)
        if process.returncode:
            sys.exit(f"{row.name}: train ended with {process.returncode}")
        return {"seconds": time.perf_counter() - start, "peak": peak}

    def measure(self, row: Row) -> dict:
        subprocess.run(
            [sys.executable, __file__, "--build", row.model, "--models", self.arguments.models],
            check=True,
        )
        with tempfile.TemporaryDirectory(dir=self.arguments.out) as folder:
            out = Path(folder) / "run"
            plan = self.plan(row, out)
            result = {
                "row": row.name,
                "side": row.side,
                "dtype": row.dtype,
                "flags": row.flags,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "free": free_memory(),
                "predicted": plan["peak_memory_bytes"],
                "parts": plan["memory_bytes"],
            }
            if result["predicted"] + MARGIN < result["free"]:
                result |= self.run(row, out)
            return result


def fits(result: dict) -> bool:
    return "peak" in result


def ratio(result: dict) -> float:
    """Measured by predicted."""
    return result["peak"]["VmHWM"] / result["predicted"]


def is_off(result: dict) -> bool:
    return fits(result) and abs(ratio(result) - 1.0) > TOLERANCE


def table(results: list[dict]) -> str:
    lines = [
        "| row | px | dtype | predicted GiB | measured GiB | measured/predicted | own GiB | mapped GiB |",
        "|---|---:|---|" + "---:|" * 5,
    ]
    for result in results:
        cells = [result["row"], str(result["side"]), result["dtype"], f"{result['predicted'] / GIB:.2f}"]
        if fits(result):
            peak = result["peak"]
            numbers = (peak["VmHWM"] / GIB, ratio(result), peak["RssAnon"] / GIB, peak["RssFile"] / GIB)
            cells += [f"{number:.2f}" for number in numbers]
        else:
            cells += [f"does not fit here ({result['free'] / GIB:.1f} GiB are free)", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train")
    parser.add_argument("--labels", type=Path, help="labels of data/sample")
    parser.add_argument("--models", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", nargs="*", default=[], help="patterns, such as 'sd15-*'")
    parser.add_argument("--fresh", action="store_true", help="measure rows again")
    parser.add_argument("--gpu", action="store_true", help="print the table of cards")
    parser.add_argument("--memory", default="12GiB", help="for --gpu (default 12GiB)")
    parser.add_argument("--build", help="build this model, and do nothing else")
    arguments = parser.parse_args()
    if arguments.build:
        build_model(arguments.models, arguments.build)
        return
    if arguments.gpu:
        print(table_of_cards(arguments))
        return
    folder = arguments.out / "plan-memory"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    results = []
    for row in ROWS:
        saved = folder / f"{row.name}.json"
        wanted = any(fnmatch.fnmatch(row.name, pattern) for pattern in arguments.rows or ["*"])
        if wanted and (arguments.fresh or not saved.exists()):
            print(f"-- {row.name}", flush=True)
            result = bench.measure(row)
            print(table([result]), flush=True)
            partial = saved.with_suffix(".part")
            partial.write_text(json.dumps(result, indent=2) + "\n")
            partial.rename(saved)
        if saved.exists():
            results.append(json.loads(saved.read_text()))
    text = (
        f"`train plan` beside `train run`, random weights, {os.cpu_count()} threads; {processor()}. "
        f"Measured {min(result['date'] for result in results)} to "
        f"{max(result['date'] for result in results)}.\n\n{table(results)}\n"
    )
    (arguments.out / "plan-memory.md").write_text(text)
    print("\n" + text, end="")
    off = [result["row"] for result in results if is_off(result)]
    if off:
        sys.exit(f"more than {TOLERANCE:.0%} beside the prediction: {', '.join(off)}")


if __name__ == "__main__":
    main()
