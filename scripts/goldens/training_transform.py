#!/usr/bin/env python3
"""Goldens for train/src/data/transform.rs: images as torchvision transforms them for training.

The transform of SalesforceAIResearch/DiffusionDPO (5233e75) `train.py`. Writes
train/tests/fixtures/transform.json. Run with Pillow 13.0.0, torch 2.11.0, torchvision 0.26.0.
"""
import hashlib
import json
import pathlib

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

OUT = pathlib.Path(__file__).resolve().parents[2] / "train/tests/fixtures/transform.json"


def formula(height, width):
    """pixel[y,x,c] of the synthetic images that the tests compute."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return (((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) // (1 + c)) & 255).astype(np.uint8)


def sha(tensor):
    """The first eight bytes of the SHA-256 of the f32 numbers: channel, row, column."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


cases = []
for height, width in [(64, 64), (63, 64), (97, 61), (61, 97), (200, 33), (33, 200), (17, 29), (130, 131), (512, 513)]:
    for resolution in (16, 33, 64):
        image = Image.fromarray(formula(height, width))
        # As in the script; the position of the crop is recorded and applied by hand below.
        resized = transforms.Resize(resolution, interpolation=InterpolationMode.BILINEAR)(image)
        end = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        central = end(transforms.CenterCrop(resolution)(resized))
        torch.manual_seed(height * 1000 + width + resolution)
        top, left, _, _ = transforms.RandomCrop.get_params(resized, (resolution, resolution))
        cropped = F.hflip(F.crop(resized, top, left, resolution, resolution))
        cases.append({
            "size": [height, width],
            "resolution": resolution,
            "resized": [resized.height, resized.width],
            "central": sha(central),
            "flipped": sha(end(F.hflip(transforms.CenterCrop(resolution)(resized)))),
            "crop": [top, left],
            "cropped_flipped": sha(end(cropped)),
            "first": [float(value) for value in central.flatten()[:3]],
        })
versions = {"pillow": PIL.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
OUT.parent.mkdir(parents=True, exist_ok=True)
lines = ",\n".join("  " + json.dumps(case) for case in cases)
OUT.write_text(f'{{"versions": {json.dumps(versions)},\n "cases": [\n{lines}\n]}}\n')
