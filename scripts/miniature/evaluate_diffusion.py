"""Measure data/mini/sd: do its images show what their captions name? Generates images of
data/mini/prompts.txt with `evaluate generate`, scores 20 captions for each image with the miniature
CLIP, and writes how often the right one wins into data/mini/report.json, and a contact sheet. Exits
with 1 if the bound does not hold.

    evaluate_diffusion.py [--work DIR] [--sheet FILE.png]
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy
import torch
from composition import MINI, ROOT
from evaluate_models import TransformersModel, rate
from PIL import Image, ImageDraw

SEED = 23
SEEDS = 5
STEPS = 25
GUIDANCE = 4.0
SCHEDULER = "dpmpp-2m"
CANDIDATES = 20
LEAST_RETRIEVAL = 0.60

SHEET_COLUMNS, SHEET_ROWS = 10, 10
SHEET_SIDE, SHEET_LABEL = 96, 14


def generate(work: pathlib.Path) -> list[tuple[str, list[Image.Image]]]:
    """Every prompt and its images, one per seed."""
    command = [
        ROOT / "target" / "release" / "evaluate", "generate", "--quiet",
        "--model", f"sd={MINI / 'sd'}", "--prompts", MINI / "prompts.txt", "--out", work,
        "--seeds", SEEDS, "--steps", STEPS, "--guidance", GUIDANCE, "--scheduler", SCHEDULER,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    prompts = json.loads((work / "manifest.json").read_text())["prompts"]["prompts"]
    return [
        (text, [Image.open(work / "images" / "sd" / name / f"{seed}.png") for seed in range(SEEDS)])
        for name, text in sorted(prompts.items())
    ]


@torch.no_grad()
def ranks(generated: list[tuple[str, list[Image.Image]]]) -> numpy.ndarray:
    """How many of 19 other captions fit each image better than its own, [prompts, seeds]."""
    clip = TransformersModel("clip")
    texts = clip.text([text for text, _ in generated]).numpy()
    images = clip.image([image for _, of_prompt in generated for image in of_prompt]).numpy()
    images = images.reshape(len(generated), SEEDS, -1)
    cosines = images @ texts.T
    generator = numpy.random.default_rng(SEED)
    result = numpy.empty((len(generated), SEEDS), int)
    for index in range(len(generated)):
        others = numpy.delete(numpy.arange(len(generated)), index)
        for seed in range(SEEDS):
            rivals = generator.choice(others, CANDIDATES - 1, replace=False)
            result[index, seed] = (cosines[index, seed, rivals] >= cosines[index, seed, index]).sum()
    return result


def sheet(generated: list[tuple[str, list[Image.Image]]], file: pathlib.Path) -> None:
    """One image of each prompt (seed 0, not selected), with its name."""
    page = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, SHEET_ROWS * (SHEET_SIDE + SHEET_LABEL)), "white")
    text = ImageDraw.Draw(page)
    for position, (caption, images) in enumerate(generated[: SHEET_COLUMNS * SHEET_ROWS]):
        left = position % SHEET_COLUMNS * SHEET_SIDE
        top = position // SHEET_COLUMNS * (SHEET_SIDE + SHEET_LABEL)
        large = images[0].resize((SHEET_SIDE - 8, SHEET_SIDE - 8), Image.Resampling.LANCZOS)
        page.paste(large, (left + 4, top + 4))
        name = caption.removeprefix("a picture of ").split(" ", 1)[1]
        text.text((left + 4, top + SHEET_SIDE - 2), name[:17], fill="black", font_size=10)
    page.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "out" / "miniature-sd")
    parser.add_argument("--sheet", type=pathlib.Path, default=ROOT / "docs" / "miniature-sd.png")
    arguments = parser.parse_args()
    generated = generate(arguments.work)
    positions = ranks(generated)
    measured = {
        "prompts": len(generated),
        "seeds": SEEDS,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "scheduler": SCHEDULER,
        "right_caption_first_of_20": rate(positions == 0),
        "right_caption_first_of_20_best_seed": rate((positions == 0).any(axis=1)),
    }
    print(json.dumps(measured, indent=2))
    sheet(generated, arguments.sheet)
    file = MINI / "report.json"
    report = json.loads(file.read_text())
    report["diffusion"] = measured
    holds = measured["right_caption_first_of_20"] >= LEAST_RETRIEVAL
    report["bounds_hold"]["right caption of 20 for generated images"] = holds
    file.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
