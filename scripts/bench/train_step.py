"""Times a training step beside the same step written with diffusers and torch: same random weights,
inputs, threads and precision, one process at a time and in turns. Writes DIR/train-step.md and
DIR/train-step/ROW.json.

A step is the prediction of the reference and of the model for both images of each pair, the
Diffusion-DPO loss, gradients, clipping and AdamW; latents and texts are at hand. On the Python side it
is written at its best on a CPU: fused attention, the fused AdamW, the faster of both memory layouts;
in bf16 autocast over f32 weights, and a reference whose weights are bf16. Each process takes one step
to warm up; then every step counts, and best and median are of all steps of all rounds. Peak memory is
of the process (VmHWM).

A row of adapters (lora8) trains those of rank 8 on every attention with PEFT: the base is in the dtype
of the row, the adapters are f32, and the reference is the same network with the adapters turned off, as
in the DPO trainers of diffusers.

The update alone stands in a table of its own, beside torch's fused AdamW and its default loop
(foreach=False, fused=False).

A row that was measured is not measured again, so an interrupted run resumes.
"""

import argparse
import copy
import fnmatch
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from torch.nn.functional import softplus
from transformers import Adafactor

HERE = Path(__file__).resolve().parent
PARITY = HERE.parent / "parity"
sys.path.insert(0, str(PARITY))
from diffusion import verdict  # noqa: E402
from diffusion_configs import MODELS, build  # noqa: E402
from diffusion_parity import difference  # noqa: E402
from diffusion_reference import added_conditions, peak_device  # noqa: E402
from side_by_side import processor  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# So little that networks with random weights do not run away from each other.
BETA, LEARNING_RATE, MAX_NORM = 5000.0, 1e-9, 1.0
TOKENS = 77
OPTIMIZERS = {
    "fused": functools.partial(torch.optim.AdamW, fused=True),
    "loop": functools.partial(torch.optim.AdamW, fused=False, foreach=False),
    "adafactor": functools.partial(Adafactor, scale_parameter=False, relative_step=False),
}
LAYOUTS = ("rows", "channels last")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
RANK = 8
PARTS = ("forward_seconds", "backward_seconds", "clip_seconds", "optimizer_seconds", "seconds")


def python_step(options: dict[str, str]) -> dict:
    """The side of diffusers and torch, in a process of its own; what it reports."""
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    torch.set_num_threads(int(options["threads"]))
    device, dtype = torch.device(options["device"]), DTYPES[options["precision"]]
    layout = torch.channels_last if options["layout"] == "channels last" else torch.contiguous_format

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    start = time.perf_counter()
    unet = UNet2DConditionModel.from_pretrained(options["model"]).train()
    unet.to(device, memory_format=layout)
    if options["checkpointing"] == "true":
        unet.enable_gradient_checkpointing()
    has_adapters = "adapters" in options
    if has_adapters:
        unet.requires_grad_(False).to(dtype)
        add_adapters(unet, load_file(options["adapters"]))
        reference = unet
    else:
        reference = copy.deepcopy(unet).requires_grad_(False).eval().to(dtype)
        reference.disable_gradient_checkpointing()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[options["optimizer"]](parameters, lr=LEARNING_RATE)
    schedule = DDPMScheduler.from_pretrained(Path(options["schedule"]).parent)
    batch = load_file(options["input"], device=str(device))
    if options.get("compile") == "true":
        unet, reference = torch.compile(unet), torch.compile(reference)
    wait()
    report = {"load_seconds": time.perf_counter() - start}

    pairs = len(batch["timesteps"])
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def step() -> tuple[dict, list[float]]:
        times = [time.perf_counter()]
        latents = torch.cat([batch["latents_0"], batch["latents_1"]])
        noise, timesteps, text = (
            torch.cat([batch[name]] * 2) for name in ("noise", "timesteps", "prompt_embeds")
        )
        added = None
        if "time_ids" in batch:
            names = {"text_embeds": "pooled_embeds", "time_ids": "time_ids"}
            added = {name: torch.cat([batch[source]] * 2) for name, source in names.items()}
        noisy = schedule.add_noise(latents, noise, timesteps).to(memory_format=layout)
        with torch.no_grad():
            lowered = {name: value.to(dtype) for name, value in added.items()} if added else None
            if has_adapters:
                unet.disable_adapters()
            expected = reference(
                noisy.to(dtype), timesteps, text.to(dtype), added_cond_kwargs=lowered
            ).sample.float()
            if has_adapters:
                unet.enable_adapters()
        with autocast:
            predicted = unet(noisy, timesteps, text, added_cond_kwargs=added).sample
        model, ref = ((out.float() - noise).square().mean((1, 2, 3)) for out in (predicted, expected))
        gain = model - ref
        z = -0.5 * BETA * (gain[:pairs] - gain[pairs:])
        losses = softplus(z) - batch["label_p"] * z
        loss = (batch["weight_w"] * losses).sum() / batch["weight_w"].sum()
        wait()
        times.append(time.perf_counter())
        loss.backward()
        wait()
        times.append(time.perf_counter())
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        wait()
        times.append(time.perf_counter())
        optimizer.step()
        wait()
        times.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        outputs = {"z": z.detach(), "loss": losses.detach(), "grad_norm": norm.detach()}
        return outputs, [*(b - a for a, b in zip(times, times[1:4] + [times[4]])), times[-1] - times[0]]

    all_times = []
    for _ in range(1 + int(options["repeats"])):
        outputs = None
        outputs, seconds = step()
        all_times.append(seconds)
    report |= {"first_seconds": all_times[0][-1]}
    report |= dict(zip(PARTS, map(list, zip(*all_times[1:]))))
    if output := options.get("output"):
        save_file({name: value.float().contiguous() for name, value in outputs.items()}, output)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    report |= {"peak_rss_bytes": int(peak.split()[1]) * 1024}
    return report | {"peak_device": peak_device(device)}


def add_adapters(unet: UNet2DConditionModel, start: dict[str, torch.Tensor] | None = None) -> dict:
    """Adds adapters of the attention with PEFT, f32, and returns them by their names in a checkpoint."""
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=ATTENTION))
    found = {}
    for name, value in unet.named_parameters():
        if ".lora_" in name:
            value.data = value.data.float()
            name = name.replace(".default.weight", ".weight")
            if start is not None:
                value.data.copy_(start[name])
            found[name] = value
    return found


def step_input(config: dict, pairs: int, side: int) -> dict[str, torch.Tensor]:
    """The tensors of a step of a UNet of this configuration, latents of `side` rows."""
    generator = torch.Generator().manual_seed(1)
    image = (pairs, config["in_channels"], side, side)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "latents_0": normal(*image),
        "latents_1": normal(*image),
        "noise": normal(*image),
        "timesteps": torch.randint(0, 1000, (pairs,), generator=generator),
        "prompt_embeds": normal(pairs, TOKENS, config["cross_attention_dim"]),
        "label_p": torch.ones(pairs),
        "weight_w": torch.ones(pairs),
    }
    return tensors | added_conditions(config, pairs, 8 * side, "pooled_embeds")


class Row(NamedTuple):
    precision: str
    side: int  # of the latents
    pairs: int
    checkpointing: bool
    has_adapters: bool

    @property
    def name(self) -> str:
        checkpointed = "-checkpointing" if self.checkpointing else ""
        adapters = f"-lora{RANK}" if self.has_adapters else ""
        return f"{8 * self.side}px-{self.pairs}-pairs-{self.precision}{adapters}{checkpointed}"


class Bench:
    """The two programs, and what all rows share."""

    def __init__(self, arguments: argparse.Namespace, model: Path, folder: Path) -> None:
        self.arguments, self.model, self.folder = arguments, model, folder
        self.environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        self.common = {
            "model": model / "unet",
            "schedule": model / "scheduler" / "scheduler_config.json",
            "input": folder / "input.safetensors",
            "threads": arguments.threads,
            "device": arguments.device,
            "repeats": arguments.repeats,
        }

    def run(self, program: list, options: dict) -> dict:
        words = [f"{key}={value}" for key, value in (self.common | options).items()]
        done = subprocess.run(
            [*map(str, program), *words], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, program))} {' '.join(words)} failed")
        return json.loads(done.stdout.splitlines()[-1])

    def ours(self, options: dict) -> dict:
        output = {"output": self.folder / "ours.safetensors", "beta": BETA, "lr": LEARNING_RATE}
        rank = {"rank": RANK} if "adapters" in options else {}
        return self.run([self.arguments.tool], options | rank | output)

    def theirs(self, options: dict, layout: str, optimizer: str = "fused") -> dict:
        more = {"output": self.folder / "theirs.safetensors", "layout": layout, "optimizer": optimizer}
        return self.run([sys.executable, __file__, "--step"], options | more)

    def write_input(self, row: Row) -> None:
        config = json.loads((self.model / "unet" / "config.json").read_text())
        tensors = step_input(config, row.pairs, row.side)
        save_file(tensors, self.common["input"])

    def write_adapters(self, file: Path) -> None:
        """Adapters that add something, the same for both sides."""
        torch.manual_seed(2)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(json.loads((self.model / "unet" / "config.json").read_text()))
            shapes = {name: value.shape for name, value in add_adapters(unet).items()}
        numbers = {
            name: torch.randn(shape) * (1 / RANK if ".lora_A." in name else 1e-3)
            for name, shape in shapes.items()
        }
        save_file(numbers, file)

    def measure(self, row: Row) -> dict:
        self.write_input(row)
        options = {"precision": row.precision, "checkpointing": str(row.checkpointing).lower()}
        if row.has_adapters:
            options["adapters"] = self.folder / "adapters.safetensors"
            self.write_adapters(options["adapters"])
        reports: dict[str, list[dict]] = {"ours": []} | {layout: [] for layout in LAYOUTS}
        for number in range(self.arguments.rounds):
            reports["ours"].append(self.ours(options))
            for layout in LAYOUTS:
                # After the first round, the faster layout alone.
                if number == 0 or layout == min(LAYOUTS, key=lambda name: best(reports[name])):
                    reports[layout].append(self.theirs(options, layout))
        layout = min(LAYOUTS, key=lambda name: best(reports[name]))
        found, expected = (load_file(self.folder / f"{side}.safetensors") for side in ("ours", "theirs"))
        reports["loop"] = [self.theirs(options, layout, "loop")]
        return {
            "row": row.name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": self.arguments.threads,
            "device": self.arguments.device,
            "layout": layout,
            "norm_difference": difference(found["grad_norm"], expected["grad_norm"])[0],
            "reports": reports,
        }


def times(reports: list[dict], part: str = "seconds") -> list[float]:
    return [seconds for report in reports for seconds in report[part]]


def best(reports: list[dict], part: str = "seconds") -> float:
    return min(times(reports, part))


def table(results: list[dict]) -> str:
    lines = [
        "| row | ours s, best | median | diffusers s, best | median | layout | difference of gradients' norm "
        "| ours GiB | diffusers GiB | speed, ours/diffusers | memory "
        "| fraction of ours without checkpointing |",
        "|---|" + "---:|" * 4 + "---|" + "---:|" * 6,
    ]
    peak = {
        result["row"]: max(report["peak_rss_bytes"] for report in result["reports"]["ours"]) / 2**30
        for result in results
    }
    for result in results:
        ours, theirs = result["reports"]["ours"], result["reports"][result["layout"]]
        other = max(report["peak_rss_bytes"] for report in theirs) / 2**30
        own = peak[result["row"]]
        plain = peak.get(result["row"].removesuffix("-checkpointing"))
        share = f"{own / plain:.2f}" if result["row"].endswith("-checkpointing") and plain else ""
        cells = [
            result["row"],
            *(f"{of(times(side)):.3f}" for side in (ours, theirs) for of in (min, statistics.median)),
            result["layout"],
            f"{result['norm_difference']:.0e}",
            f"{own:.2f}",
            f"{other:.2f}",
            f"{best(theirs) / best(ours):.2f}",
            f"{own / other:.2f}",
            share,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| the update alone | ours s, best | torch, fused | torch, default loop | speed, ours/fused "
        "| ours/loop |",
        "|---|" + "---:|" * 5,
    ]
    for result in results:
        reports = result["reports"]
        own, fused, loop = (
            best(reports[side], "optimizer_seconds") for side in ("ours", result["layout"], "loop")
        )
        cells = [result["row"], *(f"{seconds:.4f}" for seconds in (own, fused, loop))]
        cells += [f"{fused / own:.2f}", f"{loop / own:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(python_step(dict(part.split("=", 1) for part in sys.argv[2:]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tool", type=Path, required=True, help="the built tool `step`")
    parser.add_argument("--models", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rows", nargs="*", default=[], help="patterns, such as '*-f32'")
    parser.add_argument("--latents", type=int, default=32, help="side of the latents (default 32)")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a step (default 1)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each (default 3)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    name = "train-step" if arguments.size == "full" else f"train-step-{arguments.size}"
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    model = "sd15" if arguments.size == "full" else "small-sd15"
    assert model in MODELS
    bench = Bench(arguments, build(arguments.models, model), folder)
    results = []
    for precision in DTYPES:
        for has_adapters, checkpointing in ((False, False), (False, True), (True, False), (True, True)):
            row = Row(precision, arguments.latents, arguments.pairs, checkpointing, has_adapters)
            saved = folder / f"{row.name}.json"
            wanted = any(fnmatch.fnmatch(row.name, pattern) for pattern in arguments.rows or ["*"])
            if wanted and (arguments.fresh or not saved.exists()):
                print(f"-- {row.name}", flush=True)
                partial = saved.with_suffix(".part")
                partial.write_text(json.dumps(bench.measure(row), indent=2) + "\n")
                partial.rename(saved)
            if saved.exists():
                results.append(json.loads(saved.read_text()))
    if results:
        threads = sorted({result["threads"] for result in results})
        text = (
            f"Stable Diffusion 1.5, {arguments.size} size, random weights, threads "
            f"{', '.join(map(str, threads))}; {processor()}; diffusers at torch {torch.__version__}. "
            f"Measured {min(result['date'] for result in results)} to "
            f"{max(result['date'] for result in results)}.\n\n{table(results)}\n\n{verdict(results)}\n"
        )
        (arguments.out / f"{name}.md").write_text(text)
        print("\n" + text, end="")


if __name__ == "__main__":
    main()
