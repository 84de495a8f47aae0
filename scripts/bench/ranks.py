"""Times `train run` on two ranks of one thread each beside one rank of one thread, with the same global
batch, on this machine's CPU. Writes DIR/ranks.md and DIR/ranks.json.

Two models: the toy pipeline (4 million weights, latents 8 x 8), and the same layers as wide as those of
Stable Diffusion 1.5 (320 and 640 channels, 96 million random weights, latents 32 x 32, as of 256 px).
Stable Diffusion 1.5 itself needs 20 GB of each rank in f32.

Rates are pairs a second of the steps after the first two, by the times in metrics.jsonl: a step of
several ranks takes as long as at its rank 0. `exchange` is the part of a step in which rank 0 waits for
the other and sums gradients with it.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
from side_by_side import processor  # noqa: E402

# Sizes of a weight that do not grow with the channels: kernels, latents, the text.
KEPT = (1, 3, 4, 96)
WARM_UP = 2


class Row(NamedTuple):
    """A model and what a run of it does."""

    name: str
    factor: int
    resolution: int
    batch: int
    micro_batch: int
    steps: int


ROWS = [
    Row("toy", 1, 32, 16, 8, 12),
    Row("toy", 1, 32, 64, 8, 8),
    Row("wide", 5, 128, 16, 1, 4),
]


def read(path: Path) -> dict:
    """The header of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def broadened(source: Path, target: Path, factor: int) -> None:
    """A copy of the pipeline whose UNet has `factor` times the channels, with random weights."""
    shutil.copytree(source, target)
    config_file = target / "unet/config.json"
    config = json.loads(config_file.read_text())
    config["block_out_channels"] = [factor * size for size in config["block_out_channels"]]
    config_file.write_text(json.dumps(config))
    weights = target / "unet/diffusion_pytorch_model.safetensors"
    generator = np.random.default_rng(0)
    header, parts, end = {}, [], 0
    for name, entry in read(weights).items():
        if name == "__metadata__":
            continue
        shape = [size if size in KEPT else factor * size for size in entry["shape"]]
        if len(shape) == 1:
            value = np.full(shape, name.endswith("weight"), np.float32)
        else:
            scale = 1.0 / np.sqrt(np.prod(shape[1:]))
            value = generator.standard_normal(shape, np.float32) * np.float32(scale)
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [end, end + value.nbytes],
        }
        end += value.nbytes
        parts.append(value)
    text = json.dumps(header).encode()
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(part.tobytes())


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(program: Path, row: Row, model: Path, labels: Path, out: Path, ranks: int) -> list[dict]:
    """The metrics of a run on so many ranks, a step each, without the first."""
    command = [program, "run", "--recipe", "mini", "--model", model, "--pairs", ROOT / "data/sample"]
    command += ["--labels", labels, "--out", out, "--device", "cpu", "--lr", "1e-9"]
    command += ["--resolution", str(row.resolution), "--batch-size", str(row.batch)]
    command += ["--micro-batch", str(row.micro_batch), "--steps", str(row.steps)]
    command += ["--sample-every", "0", "--probe-pairs", "0", "--checkpoint-every", "1000000"]
    command += ["--data-threads", "1"]
    port = free_port()
    processes = []
    for rank in range(ranks):
        variables = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        if ranks > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            variables |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            variables |= {"MASTER_PORT": str(port)}
        processes.append(subprocess.Popen(list(map(str, command)), env=variables))
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"{row.name} on {ranks} ranks ended with {codes}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time/step" in line][WARM_UP:]


def measure(program: Path, row: Row, labels: Path, rounds: int) -> dict:
    """Both kinds of run in turns; the median step of each."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    exchange = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ROOT / "data/mini/sd"
        if row.factor > 1:
            broadened(model, folder / "model", row.factor)
            model = folder / "model"
        shapes = [e["shape"] for n, e in read(model / UNET).items() if n != "__metadata__"]
        for turn in range(rounds):
            for ranks in seconds:
                out = folder / f"{turn}-{ranks}"
                lines = run(program, row, model, labels, out, ranks)
                shutil.rmtree(out)
                seconds[ranks] += [line["time/step"] for line in lines]
                if ranks > 1:
                    exchange += [line["time/exchange"] / line["time/step"] for line in lines]
    one, two = (statistics.median(seconds[ranks]) for ranks in (1, 2))
    return row._asdict() | {
        "weights": int(sum(np.prod(shape) for shape in shapes)),
        "one": row.batch / one,
        "two": row.batch / two,
        "exchange": statistics.median(exchange),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


UNET = "unet/diffusion_pytorch_model.safetensors"


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | weights | batch, micro-batch | one rank, pairs/s | two ranks, pairs/s | times | exchange |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row['name']} | {row['weights'] / 1e6:.0f} M | {row['batch']}, {row['micro_batch']} "
            f"| {row['one']:.2f} | {row['two']:.2f} | {row['two'] / row['one']:.2f} "
            f"| {100 * row['exchange']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="the built program `train`")
    parser.add_argument("--labels", type=Path, required=True, help="labels of data/sample")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=sorted({row.name for row in ROWS}))
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind (default 2)")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two ranks of one thread each need two cores")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if row.name in arguments.rows]
    results = [measure(arguments.train, row, arguments.labels, arguments.rounds) for row in rows]
    (arguments.out / "ranks.json").write_text(json.dumps(results, indent=2) + "\n")
    text = f"f32, one thread a rank; {processor()}.\n\n{table(results)}\n"
    (arguments.out / "ranks.md").write_text(text)
    print("\n" + text, end="")


if __name__ == "__main__":
    main()
