"""A whole evaluation of one model beside diffusers and the Python scorers: the same prompts, seeds, steps
and reward models, on the miniature pipeline. Writes DIR/evaluation.md.

The Python side is written at its best: 64 images a call of the pipeline, each from a generator of its
own, PNG files, then every image once through each network, in batches (batched.py). Each side is one
process that loads everything itself; they take turns.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy
import pyarrow.parquet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SEEDS, STEPS, GUIDANCE, BATCH = 5, 20, 4.0, 64


def python_side(prompts: list[str], out: Path) -> None:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging
    from open_clip import SimpleTokenizer

    sys.path.insert(0, str(HERE.parent / "parity"))
    sys.path.insert(0, str(HERE))
    from batched import image_features, text_features
    from reference import load_all, read_scorers

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.backends.mha.set_fastpath_enabled(False)
    model = ROOT / "data" / "mini" / "sd"
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    pipeline.set_progress_bar_config(disable=True)
    jobs = [(prompt, seed) for prompt in prompts for seed in range(SEEDS)]
    files: dict[str, bytes] = {}
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in batch]
        images = pipeline(
            [prompt for prompt, _ in batch],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
        ).images
        for number, image in enumerate(images, start):
            file = out / f"{number:05}.png"
            image.save(file)
            files[file.name] = file.read_bytes()
    scorers = read_scorers(ROOT / "data" / "mini", torch.float32)
    load_all(scorers)
    for scorer in scorers:
        vocabulary = scorer.model_folder / "bpe_simple_vocab.txt.gz"
        if vocabulary.exists():  # the miniature one
            length = scorer.tokenizer.context_length
            scorer.tokenizer = SimpleTokenizer(bpe_path=str(vocabulary), context_length=length)
    images = image_features(scorers, files, 8)
    texts = text_features(scorers, prompts, 8)
    scores = {}
    for scorer in scorers:
        text = None
        if scorer.needs_text:
            text = texts[(scorer.tower, scorer.entry.get("tokenizer"))].repeat_interleave(SEEDS, 0)
        with torch.inference_mode():
            scores[scorer.name] = scorer.scores(images[(scorer.tower, scorer.recipe)], text).tolist()
    (out / "scores.json").write_text(json.dumps(scores))


def timed(command: list) -> float:
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluate", type=Path, required=True, help="the program")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python-side", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = ROOT / "data" / "mini" / "prompts.txt"
    prompts = source.read_text().splitlines()[: arguments.prompts]
    if arguments.python_side:
        python_side(prompts, arguments.python_side)
        return
    work = arguments.out / "evaluation"
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        shutil.rmtree(work, ignore_errors=True)
        (work / "python").mkdir(parents=True)
        ours.append(timed([
            arguments.evaluate, "run", "--quiet", "--model", f"mini={ROOT / 'data/mini/sd'}",
            "--prompts", f"{source},limit={arguments.prompts}", "--seeds", SEEDS, "--steps", STEPS,
            "--guidance", GUIDANCE, "--scheduler", "ddim", "--batch-size", BATCH, "--device", "cpu",
            "--scorers", ROOT / "data/mini/scorers.toml", "--out", work / "ours",
        ]))
        theirs.append(timed([
            sys.executable, __file__, "--evaluate", arguments.evaluate, "--out", arguments.out,
            "--prompts", arguments.prompts, "--python-side", work / "python",
        ]))
    table = pyarrow.parquet.read_table(work / "ours" / "scores.parquet").to_pylist()
    expected = json.loads((work / "python" / "scores.json").read_text())
    apart = {
        metric: float(
            numpy.abs(
                numpy.array([row["score"] for row in table if row["metric"] == metric])
                - numpy.array(values)
            ).max()
        )
        for metric, values in expected.items()
    }
    images = arguments.prompts * SEEDS
    text = (
        f"{images} images of 32 px, {STEPS} steps, guidance {GUIDANCE}, scored by five reward models; "
        f"{os.cpu_count()} threads; {datetime.now(timezone.utc):%Y-%m-%d}.\n\n"
        "| side | best s | all s | images/s |\n|---|---:|---|---:|\n"
    )
    for name, seconds in (("evaluate run, with tables and report", ours), ("diffusers and Python scorers", theirs)):
        runs = ", ".join(f"{value:.1f}" for value in seconds)
        text += f"| {name} | {min(seconds):.1f} | {runs} | {images / min(seconds):.1f} |\n"
    text += f"\nSpeed: {min(theirs) / min(ours):.2f}. Largest difference of a score: "
    text += ", ".join(f"{metric} {value:.1e}" for metric, value in apart.items()) + ".\n"
    (arguments.out / "evaluation.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
