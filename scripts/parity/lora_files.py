"""Loads the adapters that a run left with diffusers, samples with them, and compares the images with those
of the run's merged pipeline; a table; exits 1 beyond one level of 255.

    train run --adapter lora --lora-format diffusers,kohya ... --out RUN
    lora_files.py RUN --model MODEL

Every file of RUN/lora goes through `load_lora_weights`, kohya's form through the converter of diffusers. Images
without the adapters must be further away, so that adapters that were not loaded are found.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

PROMPTS = ["a red cat", "old mill by the sea"]
BOUND = 1


def load(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def images(pipeline: DiffusionPipeline) -> torch.Tensor:
    sampled = pipeline(
        PROMPTS,
        num_inference_steps=5,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type="np",
    ).images
    return torch.from_numpy((sampled * 255).round()).int()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--model", type=Path, required=True, help="the base pipeline")
    arguments = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    merged = images(load(arguments.run / "pipeline"))
    plain = int((images(load(arguments.model)) - merged).abs().max())
    print(f"{'without adapters':<40}{plain:>6} of 255")
    failed = plain <= BOUND
    files = sorted((arguments.run / "lora").glob("*.safetensors"))
    for file in files:
        pipeline = load(arguments.model)
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
        far = int((images(pipeline) - merged).abs().max())
        print(f"{file.name:<40}{far:>6} of 255")
        failed |= far > BOUND
    failed |= not files
    print("FAILED" if failed else "ok", f"(bound {BOUND} of 255)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
