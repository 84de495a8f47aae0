"""Times the UNets, whole images and training steps on a GPU beside diffusers: the same random
weights, inputs and precision, in turns. Prints a table and writes DIR/gpu.json.

    gpu.py --diffusion EXAMPLE --step EXAMPLE --models DIR --out DIR [--rows PATTERN ...] [--compiled]

diffusers is used at its best: bf16, channels last, fused attention, cuDNN's own choice of
algorithms by trial (benchmark), AdamW fused; in training bf16 is autocast over f32 weights and the
reference is bf16. It is timed eager, and with --compiled a second time with torch.compile around
the UNets. It runs inside this process and frees the GPU before each run of ours. With --seconds, no
row begins after that time; the rows left out are named. Every row runs once to warm up and is then
timed --repeats times, waiting for the GPU after each; the table has the best. A row is a forward
pass with `b` latents, an image of 50 steps with guidance, or a training step of `p` pairs from
latents at hand.

Operations are those of the networks (two per multiplication with addition), what checkpointing
recomputes excluded; a fraction is relative to a matrix product of 8192 rows in the same precision.
"""

import argparse
import fnmatch
import gc
import json
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import diffusion
import torch
import train_step
from diffusion_configs import build
from diffusion_parity import difference, image_input
from diffusion_reference import added_conditions
from diffusion_reference import run as run_reference
from safetensors.torch import load_file, save_file

STEPS = 50


class Row(NamedTuple):
    name: str
    kind: str  # forward, image or train
    model: str
    side: int  # of the latents
    batch: int  # latents, images or pairs
    precision: str = "bf16"
    checkpointing: bool = False


ROWS = [
    Row("sd15-512-forward-b2-f32", "forward", "sd15", 64, 2, "f32"),
    Row("sd15-512-forward-b2", "forward", "sd15", 64, 2),
    Row("sd15-512-forward-b16", "forward", "sd15", 64, 16),
    Row("sd15-512-forward-b64", "forward", "sd15", 64, 64),
    Row("sd15-512-image-b1", "image", "sd15", 64, 1),
    Row("sd15-512-image-b8", "image", "sd15", 64, 8),
    Row("sd15-512-train-p8", "train", "sd15", 64, 8),
    Row("sd15-512-train-p16", "train", "sd15", 64, 16),
    Row("sd15-512-train-p16-checkpointing", "train", "sd15", 64, 16, "bf16", True),
    Row("sdxl-1024-forward-b2", "forward", "sdxl", 128, 2),
    Row("sdxl-1024-forward-b8", "forward", "sdxl", 128, 8),
    Row("sdxl-1024-image-b1", "image", "sdxl", 128, 1),
    Row("sdxl-1024-train-p2-checkpointing", "train", "sdxl", 128, 2, "bf16", True),
    Row("sdxl-1024-train-p4-checkpointing", "train", "sdxl", 128, 4, "bf16", True),
    # To try this program where there is no GPU: --device cpu --rows 'small-*'.
    Row("small-forward-b2", "forward", "small-sdxl", 8, 2, "f32"),
    Row("small-train-p2-checkpointing", "train", "small-sdxl", 8, 2, "f32", True),
]


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.rates: dict[str, float] = {}
        self.compiled: list[tuple[Row, dict, dict]] = []

    def folder(self, row: Row) -> Path:
        only = () if row.kind == "image" else ("unet", "scheduler")
        return build(self.arguments.models, row.model, self.arguments.device, only)

    def run_tool(self, program: Path, words: list[str], options: dict) -> dict:
        words = [*words, *(f"{key}={value}" for key, value in options.items())]
        gc.collect()
        torch.cuda.empty_cache()
        done = subprocess.run([str(program), *words], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{program} {' '.join(words)} failed")
        return json.loads(done.stdout.splitlines()[-1])

    def matrix_rate(self, precision: str) -> float:
        if precision not in self.rates:
            options = {"precision": precision, "device": self.arguments.device, "repeats": 20}
            report = self.run_tool(self.arguments.diffusion, ["gemm"], options)
            self.rates[precision] = report["operations_per_second"]
        return self.rates[precision]

    def measure(self, row: Row) -> dict:
        folder = self.folder(row)
        config = json.loads((folder / "unet" / "config.json").read_text())
        names = ("input", "ours", "theirs", "compiled")
        files = {name: self.out / f"{row.name}-{name}.safetensors" for name in names}
        options = {
            "model": folder if row.kind == "image" else folder / "unet",
            "input": files["input"],
            "precision": row.precision,
            "device": self.arguments.device,
            "repeats": self.arguments.repeats,
        }
        pixels, metadata = 8 * row.side, None
        if row.kind == "forward":
            operations = diffusion.unet_operations(config, row.batch, row.side)
            inputs = {
                "latents": diffusion.normal(row.batch, config["in_channels"], row.side, row.side),
                "timesteps": torch.linspace(981.0, 1.0, row.batch),
                "text": diffusion.normal(row.batch, 77, config["cross_attention_dim"]),
            } | added_conditions(config, row.batch, pixels)
        elif row.kind == "image":
            inputs, metadata = image_input(folder, [diffusion.PROMPT] * row.batch, "")
            vae = json.loads((folder / "vae" / "config.json").read_text())
            operations = diffusion.image_operations(config, vae, 1, pixels, STEPS) * row.batch
            options |= {"steps": STEPS, "height": pixels, "width": pixels, "sampler": "ddim"}
            options["seeds"] = ",".join(str(seed) for seed in range(row.batch))
        else:
            one = diffusion.unet_operations(config, 1, row.side)
            operations = 2 * row.batch * (one + diffusion.unet_operations(config, 1, row.side, True))
            inputs = train_step.step_input(config, row.batch, row.side)
            options |= {
                "schedule": folder / "scheduler" / "scheduler_config.json",
                "checkpointing": str(row.checkpointing).lower(),
            }
        save_file({name: value.contiguous() for name, value in inputs.items()}, files["input"], metadata)
        rate = self.matrix_rate(row.precision)
        reports = {}
        for side in ("ours", "theirs"):
            self.report(side, row, options | {"output": files[side]}, reports)
        self.compiled.append((row, options | {"output": files["compiled"]}, reports))
        apart = None
        if {"ours", "theirs"} <= reports.keys():
            found, expected = load_file(files["ours"]), load_file(files["theirs"])
            name = {"forward": "output", "image": "images", "train": "grad_norm"}[row.kind]
            apart = difference(found[name], expected[name])[0]
        return {
            "row": row._asdict(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "card": card(self.arguments.device),
            "operations": operations,
            "matrix_rate": rate,
            "difference": apart,
            "reports": reports,
        }

    def report(self, side: str, row: Row, options: dict, reports: dict) -> None:
        try:
            reports[side] = self.run(side, row, options)
        except Exception as error:  # a side that fails leaves the others their figures
            print(f"{row.name}, {side}: {(str(error) or repr(error)).splitlines()[0]}", flush=True)

    def run(self, side: str, row: Row, options: dict) -> dict:
        if side == "ours":
            return self.ours(row, options)
        return self.theirs(row, options | {"compile": str(side == "compiled").lower()})

    def ours(self, row: Row, options: dict) -> dict:
        if row.kind == "train":
            more = {"beta": train_step.BETA, "lr": train_step.LEARNING_RATE}
            return self.run_tool(self.arguments.step, [], options | more)
        return self.run_tool(self.arguments.diffusion, [row.kind], options)

    def theirs(self, row: Row, options: dict) -> dict:
        words = {key: str(value) for key, value in options.items()}
        words["threads"] = str(torch.get_num_threads())
        if self.arguments.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        try:
            if row.kind == "train":
                return train_step.python_step(words | {"layout": "channels last", "optimizer": "fused"})
            return run_reference(row.kind, words | {"channels_last": "true"})
        finally:
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()


def card(device: str) -> str:
    return "CPU" if device == "cpu" else torch.cuda.get_device_name()


def line(result: dict) -> str:
    row, reports = Row(**result["row"]), result["reports"]
    apart = result["difference"]
    cells = [row.name]
    best = {side: min(report["seconds"]) for side, report in reports.items()}
    for side in ("ours", "theirs", "compiled"):
        if side not in best:
            cells += ["", "", "", ""]
            continue
        done = {"forward": 1, "image": STEPS, "train": row.batch}[row.kind] / best[side]
        if row.kind == "image":
            done *= row.batch
        share = result["operations"] / best[side] / result["matrix_rate"]
        peak = (reports[side]["peak_device"] or {"allocated": 0})["allocated"] / 2**30
        cells += [f"{1e3 * best[side]:.1f}", f"{done:.1f}", f"{100 * share:.0f} %", f"{peak:.1f}"]
    cells.append(f"{apart:.0e}" if apart is not None else "")
    for side in ("theirs", "compiled"):
        known = {"ours", side} <= best.keys()
        cells.append(f"{best[side] / best['ours']:.2f}" if known else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--diffusion", type=Path, required=True, help="the built tool `diffusion`")
    parser.add_argument("--step", type=Path, required=True, help="the built tool `step`")
    parser.add_argument("--models", type=Path, required=True, help="folder of checkpoints, 14 GB")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=["sd*"], help="patterns, such as 'sd15-*'")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row after that")
    arguments = parser.parse_args()
    start = time.monotonic()
    torch.backends.cudnn.benchmark = True
    bench = Bench(arguments)
    results = []
    for row in ROWS:
        if any(fnmatch.fnmatch(row.name, pattern) for pattern in arguments.rows):
            if time.monotonic() - start > arguments.seconds:
                print(f"{row.name}: skipped, {arguments.seconds:.0f} s are over", flush=True)
                continue
            results.append(bench.measure(row))
            print(line(results[-1]), flush=True)
            (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    # Last, as compiling takes minutes and may be cut off.
    for row, options, reports in bench.compiled if arguments.compiled else []:
        if time.monotonic() - start > arguments.seconds:
            print(f"{row.name}, compiled: skipped, {arguments.seconds:.0f} s are over", flush=True)
            continue
        bench.report("compiled", row, options, reports)
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in bench.rates.items())
    print(f"\n{card(arguments.device)}; diffusers at torch {torch.__version__}; product {rates}\n")
    print(
        "| row | ours ms | per s | share | GiB | diffusers ms | per s | share | GiB "
        "| compiled ms | per s | share | GiB | difference | speed | beside compiled |\n"
        "|---|" + "---:|" * 15
    )
    print("\n".join(map(line, results)))


if __name__ == "__main__":
    main()
