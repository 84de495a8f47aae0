"""Goldens of AdamW in 8 bits: crates/nn/tests/fixtures/optimizers/adamw8bit.json.

The dynamic maps that bitsandbytes publishes, what its `quantize_blockwise` makes of a tensor, and
steps of its update written down in numpy with those maps, one block after the other. bitsandbytes 0.50.2
(its functions run on a CPU), torch 2.11.0:

    pip install --no-deps --target DIR bitsandbytes==0.50.2
    PYTHONPATH=DIR python scripts/goldens/adamw8bit.py
"""

import json
import pathlib

import bitsandbytes.functional as functional
import numpy as np
import torch

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/nn/tests/fixtures/optimizers/adamw8bit.json"
COUNT = 5003
BLOCK = 256
STEPS = 6
BETAS = (0.9, 0.999)
EPSILON = 1e-8
DECAY = 0.01
RATE = 1e-2
EVERY = 61


def numbers(count: int, seed: int) -> np.ndarray:
    """Numbers of many magnitudes, the same in any language."""
    places = np.arange(count, dtype=np.float64)
    return (np.sin(0.37 * places + seed) * 10.0 ** (-(places % 7) / 2.0)).astype(np.float32)


def quantized(values: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, largest = [], []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        most = np.float32(np.max(np.abs(block)))
        fractions = block / most if most > 0 else np.zeros_like(block)
        codes.append(np.abs(fractions[:, None] - code[None, :]).argmin(axis=1).astype(np.uint8))
        largest.append(most)
    return np.concatenate(codes), np.array(largest, dtype=np.float32)


def restored(codes: np.ndarray, largest: np.ndarray, code: np.ndarray) -> np.ndarray:
    return code[codes] * np.repeat(largest, BLOCK)[: len(codes)]


def main() -> None:
    maps = [functional.create_dynamic_map(signed).numpy() for signed in (True, False)]
    values = numbers(1000, 3)
    codes, state = functional.quantize_blockwise(
        torch.from_numpy(values), code=torch.from_numpy(maps[0]), blocksize=BLOCK
    )
    weights = numbers(COUNT, 1)
    zeros = [int(np.flatnonzero(one == 0.0)[0]) for one in maps]
    blocks = -(-COUNT // BLOCK)
    moments = [(np.full(COUNT, zero, np.uint8), np.zeros(blocks, np.float32)) for zero in zeros]
    rows = []
    for step in range(1, STEPS + 1):
        gradient = numbers(COUNT, 10 + step)
        first = restored(*moments[0], maps[0]) * np.float32(BETAS[0]) + np.float32(1 - BETAS[0]) * gradient
        second = restored(*moments[1], maps[1]) * np.float32(BETAS[1])
        second = second + np.float32(1 - BETAS[1]) * gradient * gradient
        corrections = [1 - beta**step for beta in BETAS]
        weights = weights * np.float32(1 - RATE * DECAY)
        divisor = np.sqrt(second) / np.float32(np.sqrt(corrections[1])) + np.float32(EPSILON)
        weights = weights - np.float32(RATE / corrections[0]) * (first / divisor)
        moments = [quantized(first, maps[0]), quantized(second, maps[1])]
        rows.append([float(weight) for weight in weights[::EVERY]])
    golden = {
        "signed": [float(number) for number in maps[0]],
        "unsigned": [float(number) for number in maps[1]],
        "codes": codes.numpy().tolist(),
        "largest": state.absmax.numpy().astype(float).tolist(),
        "rate": RATE,
        "every": EVERY,
        "weights": rows,
        "first": moments[0][0][::EVERY].tolist(),
        "second": moments[1][0][::EVERY].tolist(),
        "first_largest": moments[0][1].astype(float).tolist(),
        "second_largest": moments[1][1].astype(float).tolist(),
    }
    OUT.write_text(json.dumps(golden) + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
