#!/usr/bin/env python3
"""Images per second of one thread's processor time with Pillow, for comparison with
`cargo bench -p balanceddpo-media --bench decode -- FOLDER`.

Usage: pillow_decode.py FOLDER [SIDE]
Makes eight textured JPEGs of SIDE x SIDE pixels (default 512; quality 90, 4:2:0) in FOLDER if it holds none.
Needs Pillow and numpy; with torch and torchvision also measures the HPS recipes.
"""
import io
import pathlib
import sys
import time

import numpy as np
from PIL import Image

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)[:, None, None]
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)[:, None, None]


def texture(side, seed):
    y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing="ij")
    wave = ((x + seed * 31) * (3 + c) // 4 + y * (5 - c) // 4) % 194
    grain = ((x * 7919) ^ (y * 104729)) % 23
    edge = np.where((x + 2 * y) % 64 < 32, 40, 0)
    return ((wave + grain + edge) % 256).astype(np.uint8)


def decode(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def shrink(image):
    return image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)


def hf(data):
    pixels = np.asarray(shrink(decode(data)), np.float32).transpose(2, 0, 1)
    return (pixels / np.float32(255) - MEAN) / STD


def hps(antialias):
    import torch
    import torchvision.transforms.functional as F
    from torchvision.transforms import InterpolationMode
    torch.set_num_threads(1)
    mean, std = MEAN.ravel().tolist(), STD.ravel().tolist()

    def run(data):
        tensor = F.to_tensor(decode(data).convert("RGB"))
        tensor = F.resize(tensor, (224, 224), InterpolationMode.BICUBIC, antialias=antialias)
        return F.normalize(tensor, mean, std)

    return run


def line(task, inputs, run):
    """The fastest of three rounds of 0.7 s."""
    best = 0.0
    for _ in range(3):
        start, busy, done = time.perf_counter(), time.thread_time(), 0
        while time.perf_counter() - start < 0.7:
            for value in inputs:
                run(value)
                done += 1
        best = max(best, done / (time.thread_time() - busy))
    print(f"bench=pillow set=folder task={task} images_per_second={best:.1f}")


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.jpg")):
        for seed in range(8):
            image = Image.fromarray(texture(side, seed))
            image.save(folder / f"{side}-{seed}.jpg", quality=90, subsampling=2)
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    line("decode", files, decode)
    line("resize", [decode(data) for data in files], shrink)
    line("decode+resize", files, lambda data: shrink(decode(data)))
    line("decode+hf", files, hf)
    try:
        legacy, antialias = hps(False), hps(True)
    except ImportError:
        return
    line("decode+hps-legacy", files, legacy)
    line("decode+hps-antialias", files, antialias)


if __name__ == "__main__":
    main()
