"""Times the diffusion networks beside diffusers: same random weights, inputs, threads and precision,
one process at a time and in turns. Writes DIR/diffusion.md and DIR/diffusion/ROW.json.

diffusers is used as people use it at its best on a CPU: eval mode, inference mode where nothing is
trained, its fused attention, and the faster of both memory layouts. Training
in bf16 is autocast over f32 weights on both sides. Each process runs once to warm up; then every run
counts, and best and median are of all runs of all rounds. Peak memory is of the process (VmHWM).

A fraction is relative to the machine's own rate: a product of two 2048 x 2048 matrices of the same dtype,
measured by our program before and after the row. Operations are counted by torch on the network
itself (two per multiplication with addition), attention included.

A row that was measured is not measured again, so an interrupted run resumes.
"""

import argparse
import fnmatch
import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
PARITY = HERE.parent / "parity"
ROOT = HERE.parent.parent
sys.path.insert(0, str(PARITY))
from diffusion_configs import MODELS, UNET, VAE, build, empty  # noqa: E402
from diffusion_parity import difference, image_input  # noqa: E402
from diffusion_reference import added_conditions  # noqa: E402
from side_by_side import processor  # noqa: E402

MINI = ROOT / "data" / "mini" / "sd"
PROMPT = "a red cat in the snow"
# Timed runs of a process: about as many as fit into these seconds at this rate, on either side.
SECONDS, RATE, MOST_REPEATS = 10.0, 1.2e11, 10


class Row(NamedTuple):
    name: str
    command: str
    model: Path
    precision: str
    operations: Callable[[], int]
    inputs: Callable[[], tuple[dict, dict | None]]
    options: dict = {}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def count(body: Callable) -> int:
    """Operations of what `body` does on the meta device."""
    with FlopCounterMode(display=False) as counter:
        body()
    return counter.get_total_flops()


def unet_operations(config: dict, batch: int, side: int, backward: bool = False) -> int:
    unet = empty(UNET, config)
    added = {
        {"pooled": "text_embeds"}.get(name, name): tensor.to("meta")
        for name, tensor in added_conditions(config, batch, 8 * side).items()
    }

    def body() -> None:
        output = unet(
            torch.empty(batch, unet.config.in_channels, side, side, device="meta"),
            torch.empty(batch, device="meta"),
            torch.empty(batch, 77, unet.config.cross_attention_dim, device="meta"),
            added_cond_kwargs=added,
        ).sample
        if backward:
            output.square().mean().backward()

    with torch.set_grad_enabled(backward):
        return count(body)


def vae_operations(config: dict, command: str, batch: int, side: int) -> int:
    vae = empty(VAE, config)
    inner = side // 2 ** (len(config["block_out_channels"]) - 1)
    with torch.no_grad():
        if command == "vae-encode":
            return count(lambda: vae.encode(torch.empty(batch, 3, side, side, device="meta")))
        latents = torch.empty(batch, vae.config.latent_channels, inner, inner, device="meta")
        return count(lambda: vae.decode(latents))


def image_operations(unet: dict, vae: dict, batch: int, side: int, steps: int) -> int:
    """With guidance; the texts are left out."""
    inner = side // 2 ** (len(vae["block_out_channels"]) - 1)
    denoising = steps * unet_operations(unet, 2 * batch, inner)
    return denoising + vae_operations(vae, "vae-decode", batch, side)


def rows(models: Path, size: str) -> list[Row]:
    name = "sd15" if size == "full" else "small-sd15"
    folder, parts = models / name, MODELS[name]
    unet, vae = parts["unet"].options, parts["vae"].options
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    found = []
    for precision in ("f32", "bf16"):
        for pixels in (256, 512):
            side = pixels // factor

            def forward_inputs(side=side, batch=2, **more):
                text = normal(batch, 77, unet["cross_attention_dim"])
                times = torch.tensor([981.0, 21.0])[:batch]
                latents = normal(batch, 4, side, side)
                return {"latents": latents, "timesteps": times, "text": text} | more, None

            operations = functools.partial(unet_operations, unet, 2, side)
            row = f"forward-{pixels}-b2-{precision}"
            found.append(Row(row, "forward", folder / "unet", precision, operations, forward_inputs))
            for batch in (1, 2) if pixels == 256 else (1,):
                target = normal(batch, 4, side, side)
                found.append(
                    Row(
                        f"backward-{pixels}-b{batch}-{precision}",
                        "backward",
                        folder / "unet",
                        precision,
                        functools.partial(unet_operations, unet, batch, side, backward=True),
                        functools.partial(forward_inputs, batch=batch, target=target),
                    )
                )
            for command, shape in (
                ("vae-encode", (1, 3, pixels, pixels)),
                ("vae-decode", (1, 4, side, side)),
            ):
                tensor = {"vae-encode": "pixels", "vae-decode": "latents"}[command]
                found.append(
                    Row(
                        f"{command}-{pixels}-{precision}",
                        command,
                        folder / "vae",
                        precision,
                        functools.partial(vae_operations, vae, command, 1, pixels),
                        lambda tensor=tensor, shape=shape: ({tensor: normal(*shape)}, None),
                    )
                )
        for pixels in (256, 512):
            row = f"image-{pixels}-{precision}"
            found.append(image_row(row, folder, precision, unet, vae, 1, pixels, steps=4))
    if (MINI / "model_index.json").is_file():
        configs = [json.loads((MINI / part / "config.json").read_text()) for part in ("unet", "vae")]
        side = configs[0]["sample_size"] * 2 ** (len(configs[1]["block_out_channels"]) - 1)
        for precision in ("f32", "bf16"):
            for batch in (1, 16):
                row = f"mini-b{batch}-{precision}"
                found.append(image_row(row, MINI, precision, *configs, batch, side, 20))
    return found


def image_row(
    name: str, model: Path, precision: str, unet: dict, vae: dict, batch: int, side: int, steps: int
) -> Row:
    seeds = ",".join(str(seed) for seed in range(batch))
    options = {"steps": steps, "height": side, "width": side, "seeds": seeds}
    return Row(
        name,
        "image",
        model,
        precision,
        functools.partial(image_operations, unet, vae, batch, side, steps),
        lambda: image_input(model, [PROMPT] * batch, ""),
        options | {"sampler": "dpmpp-2m", "guidance": 7.5},
    )


class Programs:
    """The two programs, and what all runs share."""

    def __init__(self, tool: Path, out: Path, threads: int, device: str) -> None:
        self.tool, self.out = tool, out
        self.common = {"threads": threads, "device": device}
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def run(self, program: list, command: str, options: dict) -> dict:
        arguments = [f"{key}={value}" for key, value in (self.common | options).items()]
        done = subprocess.run(
            [*map(str, program), command, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, program))} {command} {' '.join(arguments)} failed")
        return json.loads(done.stdout.splitlines()[-1])

    def ours(self, command: str, options: dict) -> dict:
        return self.run([self.tool], command, options)

    def theirs(self, command: str, options: dict) -> dict:
        return self.run([sys.executable, PARITY / "diffusion_reference.py"], command, options)

    def matrix_rate(self, precision: str) -> float:
        report = self.ours("gemm", {"precision": precision, "repeats": 9})
        return report["operations_per_second"]

    def measure(self, row: Row, rounds: int) -> dict:
        operations = row.operations()
        repeats = round(SECONDS * RATE / operations)
        tensors, metadata = row.inputs()
        file = self.out / "input.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata)
        options = row.options | {
            "model": row.model,
            "input": file,
            "precision": row.precision,
            "repeats": max(1, min(MOST_REPEATS, repeats)),
        }
        if row.command == "backward":
            options["parameters"] = "conv_in.weight"
        outputs = {side: self.out / f"{side}.safetensors" for side in ("ours", "theirs")}
        rates = [self.matrix_rate(row.precision)]
        layouts = {"rows": {}, "channels last": {"channels_last": "true"}}
        reports: dict[str, list[dict]] = {"ours": []} | {layout: [] for layout in layouts}
        for number in range(rounds):
            mine = self.ours(row.command, options | {"output": outputs["ours"]})
            reports["ours"].append(mine)
            for layout, choice in layouts.items():
                # After the first round, the faster layout alone.
                if number == 0 or layout == min(layouts, key=lambda name: best(reports[name])):
                    other = self.theirs(row.command, options | choice | {"output": outputs["theirs"]})
                    reports[layout].append(other)
            rates.append(self.matrix_rate(row.precision))
        found, expected = load_file(outputs["ours"]), load_file(outputs["theirs"])
        apart = max(difference(found[name], expected[name])[0] for name in expected)
        layout = min(layouts, key=lambda name: best(reports[name]))
        return {
            "row": row.name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": hashlib.sha256(self.tool.read_bytes()).hexdigest()[:12],
            "threads": self.common["threads"],
            "device": self.common["device"],
            "operations": operations,
            "matrix_rate": max(rates),
            "layout": layout,
            "difference": apart,
            "levels": "images" in expected,
            "reports": reports,
        }


def times(reports: list[dict]) -> list[float]:
    return [seconds for report in reports for seconds in report["seconds"]]


def best(reports: list[dict]) -> float:
    return min(times(reports))


def peak(reports: list[dict]) -> int:
    return max(report["peak_rss_bytes"] for report in reports)


def table(results: list[dict]) -> str:
    """Markdown; the ratios stand last."""
    lines = [
        "| row | ours s, best | median | diffusers s, best | median | layout | ours, fraction of product "
        "| diffusers | difference | ours GiB | diffusers GiB | speed, ours/diffusers | memory |",
        "|---|" + "---:|" * 4 + "---|" + "---:|" * 7,
    ]
    for result in results:
        ours, theirs = result["reports"]["ours"], result["reports"][result["layout"]]
        shares, peaks = [], []
        for side in (ours, theirs):
            shares.append(result["operations"] / best(side) / result["matrix_rate"])
            peaks.append(peak(side) / 2**30)
        apart = f"{result['difference']:.0f}/255" if result["levels"] else f"{result['difference']:.0e}"
        cells = [
            result["row"],
            *(f"{of(times(side)):.3f}" for side in (ours, theirs) for of in (min, statistics.median)),
            result["layout"],
            *(f"{100 * share:.0f} %" for share in shares),
            apart,
            *(f"{peak:.2f}" for peak in peaks),
            f"{best(theirs) / best(ours):.2f}",
            f"{peaks[0] / peaks[1]:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(results: list[dict]) -> str:
    """Which rows are slower than diffusers' or take more memory, if any."""
    slower, larger = [], []
    for result in results:
        ours, theirs = result["reports"]["ours"], result["reports"][result["layout"]]
        if best(ours) >= best(theirs):
            slower.append(result["row"])
        if peak(ours) > peak(theirs):
            larger.append(result["row"])
    return (
        f"Slower than diffusers: {', '.join(slower) or 'no row'}. "
        f"More memory: {', '.join(larger) or 'no row'}."
    )


def report(results: list[dict], size: str) -> str:
    threads = sorted({result["threads"] for result in results})
    programs = {result["program"] for result in results}
    rates = {}
    for result in results:
        precision = result["reports"]["ours"][0]["precision"]
        rates[precision] = max(rates.get(precision, 0.0), result["matrix_rate"])
    lines = [
        f"Stable Diffusion 1.5, {size} size, random weights, "
        f"threads {', '.join(map(str, threads))}; {processor()}; diffusers at torch {torch.__version__}.",
        "Matrix product 2048: "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
        + f". Measured {min(result['date'] for result in results)} to "
        f"{max(result['date'] for result in results)}.",
        "",
        table(results),
        "",
        verdict(results),
    ]
    if len(programs) > 1:
        lines += ["", f"Rows are of {len(programs)} builds; BENCH_FRESH=1 measures all again."]
    if not (MINI / "model_index.json").is_file():
        lines += ["", "Rows mini-*: skipped, data/mini/sd is not there."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tool", type=Path, required=True, help="the built tool")
    parser.add_argument("--models", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rows", nargs="*", default=[], help="patterns, such as 'forward-*'")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side (default 3)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    name = "diffusion" if arguments.size == "full" else f"diffusion-{arguments.size}"
    folder = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    build(arguments.models, "sd15" if arguments.size == "full" else "small-sd15")
    programs = Programs(arguments.tool, folder, arguments.threads, arguments.device)
    results = []
    for row in rows(arguments.models, arguments.size):
        saved = folder / f"{row.name}.json"
        wanted = any(fnmatch.fnmatch(row.name, pattern) for pattern in arguments.rows or ["*"])
        if wanted and (arguments.fresh or not saved.exists()):
            print(f"-- {row.name}", flush=True)
            result = programs.measure(row, arguments.rounds)
            partial = saved.with_suffix(".part")
            partial.write_text(json.dumps(result, indent=2) + "\n")
            partial.rename(saved)
            print(table([result]).splitlines()[-1], flush=True)
        if saved.exists():
            results.append(json.loads(saved.read_text()))
    if results:
        text = report(results, arguments.size)
        (arguments.out / f"{name}.md").write_text(text)
        print("\n" + text, end="")


if __name__ == "__main__":
    main()
