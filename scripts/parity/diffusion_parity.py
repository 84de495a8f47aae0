"""Compares the diffusion networks of this project with those of diffusers and transformers: the same
random weights (diffusion_configs.py), the same inputs, f32; one table; exits 1 beyond a bound.

Figures are relative: the largest difference over the largest reference value, and the norm of the
difference over the norm of the reference; of the worst tensor where a case has several. Bounds are
on the first: 1e-4 for outputs and 1e-3 for gradients; 1e-5 between gradients with and without
checkpointing. Images may differ by one level of 255; their second number is the fraction of values
that do. What diffusers makes of a UNet that was saved here must be equal.

References are kept beside the checkpoints and computed again when a script changes.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import diffusion_reference
import torch
from diffusion_configs import MODELS, build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent
OUTPUT_BOUND, GRADIENT_BOUND, LEVELS_BOUND = 1e-4, 1e-3, 1.0
# Gradients of a tensor with three readers are added up in another order: some units in the last place.
CHECKPOINTING_BOUND = 1e-5
GRADIENTS = 12
PROMPTS = ["a red cat in the snow", "old mill by the sea, oil"]
NEGATIVE = "blurry"
SEEDS = [11, 2**40 + 3]
Tensors = dict[str, torch.Tensor]


class Case:
    """One comparison; its folder holds the inputs and what both sides made of them."""

    def __init__(self, parity: "Parity", name: str, command: str, model: str, **options) -> None:
        self.parity, self.name, self.command = parity, name, command
        self.folder = parity.root / "cases" / name.replace(" ", "-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = {key: str(value) for key, value in options.items()}
        self.options["model"] = str(parity.root / model)
        self.options["threads"] = str(parity.threads)
        self.seed = zlib.crc32(name.encode())

    def write(self, inputs: Tensors, metadata: dict[str, str] | None = None) -> "Case":
        file = self.folder / "input.safetensors"
        save_file({key: value.contiguous() for key, value in inputs.items()}, file, metadata)
        self.options["input"] = str(file)
        return self

    def normal(self, *shape: int) -> torch.Tensor:
        self.seed += 1
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))

    def ours(self, name: str = "ours", **changes: str) -> Tensors:
        """Runs the tool; `changes` are options of this run alone."""
        output = self.folder / f"{name}.safetensors"
        options = self.options | changes | {"output": str(output)}
        command = [str(self.parity.tool), self.command]
        command += [f"{key}={value}" for key, value in options.items()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{' '.join(command)}\n{done.stderr}", flush=True)
            return {}
        return load_file(output)

    def theirs(self, name: str = "theirs", fresh: bool = False, **changes: str) -> Tensors:
        """Runs the reference, unless it is there: small ones here, others in their own process."""
        output = self.folder / f"{name}.safetensors"
        options = self.options | changes | {"output": str(output)}
        recipe = hashlib.sha256(self.parity.sources)
        for key, value in sorted(options.items()):
            recipe.update(Path(value).read_bytes() if key == "input" else f"{key}={value}".encode())
        marker = output.with_suffix(".sha256")
        there = output.exists() and marker.exists() and marker.read_text() == recipe.hexdigest()
        if fresh or not there:
            marker.unlink(missing_ok=True)
            if self.name.startswith("small"):
                diffusion_reference.run(self.command, options)
            else:
                arguments = [f"{key}={value}" for key, value in options.items()]
                program = [sys.executable, str(HERE / "diffusion_reference.py"), self.command]
                subprocess.run([*program, *arguments], check=True, stdout=subprocess.DEVNULL)
            marker.write_text(recipe.hexdigest())
        return load_file(output)


class Parity:
    """What all cases share, and the table."""

    def __init__(self, root: Path, tool: Path, threads: int) -> None:
        self.root, self.tool, self.threads = root, tool, threads
        self.failures = 0
        scripts = ["diffusion_configs.py", "diffusion_reference.py"]
        self.sources = b"".join((HERE / script).read_bytes() for script in scripts)
        print(f"{'case':<44} {'largest':>9} {'norm':>9} {'bound':>7} {'seconds':>8}", flush=True)

    def compare(self, name: str, found: Tensors, expected: Tensors, bound: float, start: float):
        """Prints the row of the worst tensor."""
        if found.keys() != expected.keys() or not expected:
            self.failures += 1
            print(f"{name:<44} FAILED: {sorted(found)}, expected {sorted(expected)}", flush=True)
            return
        worst, figures = "", (-1.0, -1.0)
        for key, reference in expected.items():
            one = difference(found[key], reference)
            # NaN counts as the worst.
            if not one[0] <= figures[0]:
                worst, figures = key, one
        fits = figures[0] <= bound
        self.failures += not fits
        note = "" if fits else f"  FAILED in {worst}"
        columns = f"{figures[0]:9.1e} {figures[1]:9.1e} {bound:7.0e}"
        if "images" in expected:
            apart = (found["images"] != expected["images"]).float().mean().item()
            columns = f"{figures[0]:6.0f}/255 {apart:8.2%} {bound:3.0f}/255"
        print(f"{name:<44} {columns} {time.monotonic() - start:8.1f}{note}", flush=True)


def difference(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    if found.shape != expected.shape:
        return float("inf"), float("inf")
    levels = expected.dtype == torch.uint8
    found, expected = found.double(), expected.double()
    apart = found - expected
    largest = 1.0 if levels else expected.abs().max().clamp_min(1e-30).item()
    norm = expected.norm().clamp_min(1e-30).item()
    return apart.abs().max().item() / largest, apart.norm().item() / norm


def unet_case(
    parity: Parity,
    model: str,
    command: str,
    batch: int,
    sides: tuple[int, int],
    label: str = "",
    **options: str,
) -> Case:
    height, width = sides
    name = f"{model} unet {command} {height}x{width} {label}".strip()
    case = Case(parity, name, command, f"{model}/unet", **options)
    unet = MODELS[model]["unet"].options
    inputs = {
        "latents": case.normal(batch, unet.get("in_channels", 4), height, width),
        "timesteps": torch.tensor([981.0, 21.0])[:batch],
        "text": case.normal(batch, 77, unet["cross_attention_dim"]),
    }
    if "addition_embed_type" in unet:
        waves, width_all = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
        inputs["pooled"] = case.normal(batch, width_all - 6 * waves)
        ids = torch.tensor([[1024.0, 768, 0, 32, 1024, 1024], [512, 512, 7, 0, 640, 1024]])
        inputs["time_ids"] = ids[:batch]
    if command == "backward":
        inputs["target"] = case.normal(batch, unet.get("out_channels", 4), height, width)
    return case.write(inputs)


def check_forward(parity: Parity, model: str, batch: int, *sides: tuple[int, int]) -> None:
    for side in sides:
        start = time.monotonic()
        case = unet_case(parity, model, "forward", batch, side)
        parity.compare(case.name, case.ours(), case.theirs(), OUTPUT_BOUND, start)


def spread(folder: Path) -> list[str]:
    """Names of parameters from all over a network."""
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            names += shard.keys()
    names.sort()
    return names[:: max(1, len(names) // GRADIENTS)]


def check_backward(parity: Parity, model: str, batch: int, sides: tuple[int, int]) -> None:
    start = time.monotonic()
    names = ",".join(spread(parity.root / model / "unet"))
    case = unet_case(parity, model, "backward", batch, sides, parameters=names)
    ours = case.ours()
    parity.compare(case.name, ours, case.theirs(), GRADIENT_BOUND, start)
    start = time.monotonic()
    again = case.ours("ours-checkpointing", checkpointing="true")
    parity.compare(f"{case.name}, checkpointing", again, ours, CHECKPOINTING_BOUND, start)


def check_vae(parity: Parity, model: str, batch: int, sides: tuple[int, int]) -> None:
    vae = MODELS[model]["vae"].options
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = sides
    for command in ("vae-encode", "vae-decode"):
        start = time.monotonic()
        case = Case(parity, f"{model} {command} {height}x{width}", command, f"{model}/vae")
        if command == "vae-encode":
            case.write({"pixels": case.normal(batch, 3, height, width).clamp(-1, 1)})
        else:
            channels = vae.get("latent_channels", 4)
            case.write({"latents": case.normal(batch, channels, height // factor, width // factor)})
        parity.compare(case.name, case.ours(), case.theirs(), OUTPUT_BOUND, start)


def check_text(parity: Parity, model: str, part: str) -> None:
    start = time.monotonic()
    case = Case(parity, f"{model} {part}", "text", f"{model}/{part}")
    size = MODELS[model][part].options["vocab_size"]
    generator = torch.Generator().manual_seed(case.seed)
    tokens = torch.randint(1, size - 2, (2, 77), generator=generator)
    # Two lengths: the text, its end, and padding of two kinds.
    for row, (end, padding) in enumerate(((9, size - 1), (60, 0))):
        tokens[row, 0], tokens[row, end], tokens[row, end + 1 :] = size - 2, size - 1, padding
    case.write({"tokens": tokens})
    parity.compare(case.name, case.ours(), case.theirs(), OUTPUT_BOUND, start)


def image_input(folder: Path, prompts: list[str], negative: str) -> tuple[Tensors, dict[str, str]]:
    """Tokens for our side, and the texts themselves for the other."""
    negatives = [negative] * len(prompts)
    tensors = {}
    for index, tokenizer in enumerate(sorted(folder.glob("tokenizer*"))):
        words = CLIPTokenizer.from_pretrained(tokenizer)
        for name, texts in (("prompt", prompts), ("negative", negatives)):
            tokens = words(
                texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            )
            tensors[f"{name}_{index}"] = tokens.input_ids
    return tensors, {"prompts": json.dumps(prompts), "negatives": json.dumps(negatives)}


def image_case(parity: Parity, model: str, what: str, prompts: list[str], **options) -> Case:
    negative = "" if "empty_negative" in options else NEGATIVE
    seeds = ",".join(map(str, SEEDS[: len(prompts)]))
    case = Case(parity, f"{model} image {what}", "image", model, seeds=seeds, **options)
    return case.write(*image_input(parity.root / model, prompts, negative))


def check_images(parity: Parity, model: str, side: int) -> None:
    """Every sampler, with guidance; once more with the negative prompt left out, and unguided."""
    size = {"height": side, "width": side + side // 4, "steps": 20}
    for sampler in diffusion_reference.SAMPLERS:
        start = time.monotonic()
        case = image_case(parity, model, sampler, PROMPTS, sampler=sampler, guidance=7.5, **size)
        parity.compare(case.name, case.ours(), case.theirs(), LEVELS_BOUND, start)
    start = time.monotonic()
    case = image_case(parity, model, "no negative", PROMPTS, empty_negative="true", **size)
    parity.compare(case.name, case.ours(), case.theirs(), LEVELS_BOUND, start)
    start = time.monotonic()
    case = image_case(parity, model, "no guidance", PROMPTS, sampler="euler", guidance=1, **size)
    parity.compare(case.name, case.ours(), case.theirs(), LEVELS_BOUND, start)


def tensors(folder: Path) -> Tensors:
    """All weights of a folder."""
    found: Tensors = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def check_saved(parity: Parity, model: str, sides: tuple[int, int], side: int = 0) -> None:
    """A UNet saved here has the tensors and the configuration it was loaded from, opens in diffusers
    and gives the same there; with `side`, so do images with it, of theirs and of ours."""
    start = time.monotonic()
    original = parity.root / model / "unet"
    saved = parity.root / "cases" / f"{model}-saved"
    shutil.rmtree(saved, ignore_errors=True)
    command = [parity.tool, "save", f"model={original}", f"output={saved}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = (saved / "config.json", original / "config.json")
    if len({json.dumps(json.loads(file.read_text()), sort_keys=True) for file in files}) != 1:
        parity.failures += 1
        print(f"{files[0]} differs from {files[1]}: FAILED", flush=True)
    parity.compare(f"{model} unet saved, weights", tensors(saved), tensors(original), 0.0, start)

    # Weights that lie elsewhere in memory are not always added up in the same order.
    start = time.monotonic()
    case = unet_case(parity, model, "forward", 1, sides, "saved")
    expected, found = case.theirs(), case.theirs("saved", fresh=True, model=str(saved))
    parity.compare(f"{model} unet saved, in diffusers", found, expected, OUTPUT_BOUND, start)
    if side:
        start = time.monotonic()
        size = {"height": side, "width": side, "steps": 5}
        case = image_case(parity, model, "saved", PROMPTS, **size)
        expected, ours = case.theirs(), case.ours()
        found = case.theirs("saved", fresh=True, unet=str(saved))
        parity.compare(f"{model} image with saved, diffusers", found, expected, LEVELS_BOUND, start)
        start = time.monotonic()
        found = case.ours("ours-saved", unet=str(saved))
        parity.compare(f"{model} image with saved, here", found, ours, 0.0, start)
    shutil.rmtree(saved)


def small(parity: Parity) -> None:
    pipelines = ("small-sd15", "small-sd21", "small-sdxl")
    for model in (*pipelines, "small-mixed"):
        build(parity.root, model)
        check_forward(parity, model, 2, (16, 16), (13, 10))
        check_backward(parity, model, 2, (16, 16))
        check_vae(parity, model, 2, (64, 96))
    for model in pipelines:
        for part in MODELS[model]:
            if part.startswith("text_encoder"):
                check_text(parity, model, part)
        check_images(parity, model, 64)
        check_saved(parity, model, (16, 16), side=64)


def full(parity: Parity) -> None:
    checks = {
        "sd15": lambda model: (
            check_forward(parity, model, 1, (64, 64)),
            check_backward(parity, model, 1, (32, 32)),
            check_saved(parity, model, (32, 32)),
            check_vae(parity, model, 1, (256, 256)),
            check_text(parity, model, "text_encoder"),
            full_image(parity, model),
        ),
        "sd21-base": lambda model: (
            check_forward(parity, model, 1, (64, 64)),
            check_text(parity, model, "text_encoder"),
        ),
        "sd21": lambda model: check_forward(parity, model, 1, (64, 64), (96, 96)),
        "sdxl": lambda model: (
            check_forward(parity, model, 1, (64, 64)),
            check_vae(parity, model, 1, (256, 256)),
            check_text(parity, model, "text_encoder_2"),
        ),
    }
    for model, check in checks.items():
        build(parity.root, model)
        check(model)


def full_image(parity: Parity, model: str) -> None:
    start = time.monotonic()
    size = {"height": 256, "width": 256, "steps": 5, "sampler": "dpmpp-2m"}
    case = image_case(parity, model, "256x256, 5 steps", PROMPTS[:1], **size)
    parity.compare(case.name, case.ours(), case.theirs(), LEVELS_BOUND, start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="kept for the next run")
    parser.add_argument("--tool", type=Path, required=True, help="the built tool")
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=threads)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parity = Parity(arguments.out, arguments.tool, arguments.threads)
    {"small": small, "full": full}[arguments.size](parity)
    print(f"{parity.failures} beyond the bounds" if parity.failures else "all within the bounds")
    sys.exit(1 if parity.failures else 0)


if __name__ == "__main__":
    main()
