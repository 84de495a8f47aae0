"""Computes what a run recorded of its pairs again, from the labels, the images and the captions
themselves, with torchvision, diffusers and transformers; one table; exits 1 beyond a bound.

    train run --model MODEL --pairs PAIRS --labels LABELS --record-steps 10 ... --out RUN
    train_inputs.py RUN --model MODEL --pairs PAIRS --labels LABELS

train_replay.py takes latents, texts and labels from the records. Here they must be those of the pair
that the record names, without flips and with central crops:

- `label_p` is what the labels file says of the pair;
- the noise that a latent must have had, (latent / scale - mean) / std, is standard normal
  where mean and std are what diffusers' autoencoder makes of that image. The other image of
  the pair, as a control, must not do;
- every row of `prompt_embeds` (and `pooled_embeds`) is the text encoders' of the caption, or of the
  empty text where the caption was dropped.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import duckdb
import tomllib
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import safe_open
from torchvision.transforms import v2
from transformers.utils import logging as transformers_logging

# Of thousands of standard normal numbers the root mean square is within a few per cent of 1, and none
# is beyond 6.
NOISE_BOUND, LARGEST_NOISE, TEXT_BOUND = 0.05, 6.5, 1e-4


def labelled(labels: Path, pairs: Path) -> dict[str, dict]:
    """Votes, caption and images of every pair with votes, by name."""
    query = f"""
        select l.pair_id, l.caption, l.consensus, l.vote_sum, p.jpg_0, p.jpg_1
        from (select * from '{labels}') l
        join (select *, file_row_number as row, parse_filename(filename) as file
              from read_parquet('{pairs}/*.parquet', filename = true, file_row_number = true)) p
        on l.source_file = p.file and l.source_row = p.row
        where l.status = 'ok'
    """
    found = duckdb.sql(query).df()
    return {row["pair_id"]: row for row in found.to_dict("records")}


class Inputs:
    """What a step is made of, computed here."""

    def __init__(self, model: Path, resolution: int | None) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(model, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.vae: AutoencoderKL = self.pipeline.vae
        side = resolution or self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        self.transform = v2.Compose([
            v2.Resize(side, interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ])

    @torch.no_grad()
    def noise(self, latent: torch.Tensor, image: bytes) -> torch.Tensor:
        """The noise of a sample of an image's posterior, if the latent is one."""
        pixels = self.transform(Image.open(io.BytesIO(image)).convert("RGB"))
        posterior = self.vae.encode(pixels[None]).latent_dist
        return (latent / self.vae.config.scaling_factor - posterior.mean[0]) / posterior.std[0]

    @torch.no_grad()
    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features of every token, and SDXL's pooled ones."""
        encoded = self.pipeline.encode_prompt(
            caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return encoded[0][0], encoded[2][0] if len(encoded) > 2 else None


def vote_fraction(pair: dict, voters: int) -> float:
    return (voters + pair["vote_sum"]) / (2 * voters)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    arguments = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    settings = tomllib.loads((arguments.run / "config.toml").read_text())
    pairs = labelled(arguments.labels, arguments.pairs)
    columns = duckdb.sql(f"describe select * from '{arguments.labels}'").df()["column_name"]
    voters = sum(name.endswith("_vote") for name in columns)
    inputs = Inputs(arguments.model, settings.get("resolution"))
    empty, empty_pooled = inputs.text("")
    wrong_labels, dropped, rows = 0, 0, 0
    noises, of_the_other, text_apart = [], [], 0.0
    for file in sorted((arguments.run / "record").glob("step-*.safetensors")):
        with safe_open(file, "pt") as record:
            tensors = {name: record.get_tensor(name) for name in record.keys()}
            names = json.loads(record.metadata()["pair_ids"])
        for row, name in enumerate(names):
            pair = pairs[name]
            expected = {"consensus": (1 + pair["consensus"]) / 2,
                        "vanilla": vote_fraction(pair, voters)}[settings["preference"]]
            wrong_labels += float(tensors["label_p"][row]) != expected
            images = [pair["jpg_0"], pair["jpg_1"]]
            for side in (0, 1):
                latent = tensors[f"latents_{side}"][row]
                noises.append(inputs.noise(latent, images[side]))
                of_the_other.append(inputs.noise(latent, images[1 - side]))
            hidden, pooled = inputs.text(pair["caption"])
            apart = [far(tensors["prompt_embeds"][row], text) for text in (hidden, empty)]
            if "pooled_embeds" in tensors:
                both = (pooled, empty_pooled)
                there = [far(tensors["pooled_embeds"][row], text) for text in both]
                apart = [max(pair) for pair in zip(apart, there)]
            text_apart = max(text_apart, min(apart))
            dropped += apart[1] < apart[0]
            rows += 1
    noise = torch.stack(noises)
    spread, largest = float(noise.square().mean().sqrt()), float(noise.abs().max())
    control = float(torch.stack(of_the_other).square().mean().sqrt())
    print(f"{rows} pairs: {wrong_labels} labels differ; noise of the posteriors {spread:.4f} "
          f"(largest {largest:.2f}; with the other image of the pair {control:.2f}); texts "
          f"{text_apart:.1e} apart, {dropped} captions dropped")
    good = (
        rows > 0
        and wrong_labels == 0
        and abs(spread - 1) <= NOISE_BOUND
        and largest <= LARGEST_NOISE
        and control > 1 + NOISE_BOUND
        and text_apart <= TEXT_BOUND
        and 0 < dropped < rows
    )
    print("ok" if good else "FAILED")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
