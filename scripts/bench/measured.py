"""What plain.py and batched.py share: their arguments, and the clock and memory they report."""

import argparse
import json
import resource
import time
from pathlib import Path

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def parse_arguments(description: str, batch_size: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--scorers-dir", type=Path, required=True, help="folder with scorers.toml")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="Parquet file of scores; FILE.json beside it holds the times",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="f32",
        help="type of weights and activations (default f32)",
    )
    if batch_size:
        parser.add_argument(
            "--batch-size", type=int, default=8, help="images of one forward pass (default 8)"
        )
    arguments = parser.parse_args()
    arguments.dtype = DTYPES[arguments.dtype]
    return arguments


class Measured:
    """Wall time from here to `loaded` and on to `finished`; imports come before, in Python's favour."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def loaded(self) -> None:
        self.ready = time.perf_counter()

    def finished(self) -> None:
        self.end = time.perf_counter()

    def report(self, out: Path, pairs: int) -> None:
        result = {
            "pairs": pairs,
            "load_seconds": round(self.ready - self.start, 3),
            "score_seconds": round(self.end - self.ready, 3),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        out.with_name(out.name + ".json").write_text(json.dumps(result, indent=2) + "\n")
        print(
            f"{pairs} pairs: load {result['load_seconds']:.1f} s, score {result['score_seconds']:.1f} s, "
            f"peak memory {result['peak_rss_bytes'] / 2**30:.2f} GiB"
        )
