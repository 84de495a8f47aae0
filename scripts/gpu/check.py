"""The parts of check.sh, the most telling first. Each writes OUT/NAME.json as soon as it is done.

kernels   the tests of the GPU kernels (crates/nn/src/shim/kernels.rs) and of NCCL (nccl.rs)
zero      z is exactly 0 and the loss ln 2 where model and reference are equal: at the start and after
          the reference is updated, with and without gradient checkpointing, f32 and bf16, all weights and
          adapters
lora      steps of adapters of rank 8 in bf16: pairs a second and the peak of GPU memory
relabel   the four published scorers at full size with random weights in bf16, TF32 and f32: images a second
ranks     `train run` under torchrun with one rank, whose sums go through NCCL, beside the same run without:
          losses of the steps, and the fraction of a step that the sums take
sdxl      SDXL training and sampling beside diffusers, eager and compiled (scripts/bench/gpu.py)
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts" / "parity"), str(ROOT / "scripts" / "bench")]

# What f32 rounding does to ln 2.
LN2_BOUND = 1e-7
MODELS = {"full": ["sd15", "sdxl"], "small": ["small-sd15", "small-sdxl"]}
SIDES = {"sd15": 64, "sdxl": 128, "small-sd15": 8, "small-sdxl": 8}
PAIRS = {"full": 512, "small": 8}
ROWS = {
    "full": ["sdxl-1024-train-p4-checkpointing", "sdxl-1024-image-b1", "sdxl-1024-forward-b2"],
    "small": ["small-*"],
}


# Model, pairs of a step, gradient checkpointing.
ADAPTERS = {
    "full": [("sd15", 1, True), ("sd15", 4, False), ("sdxl", 1, True), ("sdxl", 4, True)],
    "small": [("small-sd15", 1, True), ("small-sdxl", 2, False)],
}
RANK = 8
# What bf16 and the order of sums on a GPU do to a loss near ln 2 in a few steps.
LOSS_BOUND = 1e-3
TRAIN = {
    "full": ["--resolution", 512, "--batch-size", 8, "--micro-batch", 4, "--dtype", "bf16"],
    "small": ["--resolution", 32, "--batch-size", 8, "--micro-batch", 4, "--dtype", "f32"],
}
TRAIN_STEPS = 6


class Check:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.start = time.monotonic()
        self.lines: list[str] = []
        self.failed = False
        arguments.out.mkdir(parents=True, exist_ok=True)
        arguments.work.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.arguments.seconds - (time.monotonic() - self.start)

    def run(self, program: str, *words: str, **options) -> subprocess.CompletedProcess:
        """One of the programs; ended when the time is over."""
        command = [str(self.arguments.programs.resolve() / program), *words]
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, timeout=max(self.left(), 1), **options)

    def part(self, name: str, body) -> None:
        """Runs a part and records what came of it, whatever that is."""
        start = time.monotonic()
        if self.left() <= 0:
            result = {"status": "skipped", "reason": f"{self.arguments.seconds:.0f} s are over"}
        else:
            try:
                result = body()
            except Exception as error:  # a part that fails leaves the others their turn
                result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        result |= {"seconds": round(time.monotonic() - start, 1), "card": card(self.arguments.device)}
        result["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        (self.arguments.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        self.failed |= result["status"] == "failed"
        self.lines.append(f"| {name} | {result['status']} | {result['seconds']} | {told(result)} |")
        print(self.lines[-1], flush=True)

    def kernels(self) -> dict:
        if not self.arguments.device.startswith("cuda"):
            return {"status": "skipped", "reason": "no GPU"}
        done = self.run("nn-tests", "--ignored", "on_a_gpu")
        count = sum(line.endswith("... ok") for line in done.stdout.splitlines())
        status = "done" if done.returncode == 0 and count else "failed"
        return {"status": status, "passed": count, "reason": done.stdout[-2000:] if status == "failed" else ""}

    def zero(self) -> dict:
        import torch
        import train_step
        from diffusion_configs import build
        from safetensors.torch import save_file

        rows, worst = [], 0.0
        for model in MODELS[self.arguments.size]:
            folder = build(self.arguments.work, model, self.arguments.device, ("unet", "scheduler"))
            config = json.loads((folder / "unet" / "config.json").read_text())
            inputs = self.arguments.out / "input.safetensors"
            tensors = train_step.step_input(config, 1, SIDES[model])
            save_file({name: value.contiguous() for name, value in tensors.items()}, inputs)
            if self.arguments.device.startswith("cuda"):
                torch.cuda.empty_cache()
            for precision, rank in (("f32", 0), ("bf16", 0), ("f32", RANK), ("bf16", RANK)):
                options = {
                    "rank": rank,
                    "model": folder / "unet",
                    "schedule": folder / "scheduler" / "scheduler_config.json",
                    "input": inputs,
                    "device": self.arguments.device,
                    "precision": precision,
                    "optimizer": "adafactor",
                    "zero": "true",
                }
                done = self.run("step", *(f"{key}={value}" for key, value in options.items()))
                if done.returncode != 0:
                    raise RuntimeError(f"step of {model} in {precision} failed")
                for row in json.loads(done.stdout.splitlines()[-1])["zero"]:
                    rows.append({"model": model, "precision": precision, "rank": rank} | row)
                    apart = abs(row["loss"] - math.log(2))
                    worst = max(worst, apart if row["z"] == 0.0 else math.inf)
        status = "done" if rows and worst <= LN2_BOUND else "failed"
        return {"status": status, "rows": rows, "reason": "" if status == "done" else f"worst {worst}"}

    def lora(self) -> dict:
        import train_step
        from diffusion_configs import build
        from safetensors.torch import save_file

        rows = []
        for model, pairs, checkpointing in ADAPTERS[self.arguments.size]:
            folder = build(self.arguments.work, model, self.arguments.device, ("unet", "scheduler"))
            config = json.loads((folder / "unet" / "config.json").read_text())
            inputs = self.arguments.out / "input.safetensors"
            tensors = train_step.step_input(config, pairs, SIDES[model])
            save_file({name: value.contiguous() for name, value in tensors.items()}, inputs)
            options = {
                "model": folder / "unet",
                "schedule": folder / "scheduler" / "scheduler_config.json",
                "input": inputs,
                "device": self.arguments.device,
                "precision": "bf16",
                "rank": RANK,
                "checkpointing": str(checkpointing).lower(),
                "repeats": 5,
            }
            done = self.run("step", *(f"{key}={value}" for key, value in options.items()))
            if done.returncode != 0:
                raise RuntimeError(f"steps of adapters of {model} failed")
            report = json.loads(done.stdout.splitlines()[-1])
            rate = pairs / statistics.median(report["seconds"])
            rows.append({
                "model": model,
                "pairs": pairs,
                "checkpointing": checkpointing,
                "pairs_per_second": rate,
                "peak_device": report["peak_device"],
            })
        return {"status": "done", "rows": rows, "note": "latents and texts at hand, no encoders"}

    def relabel(self) -> dict:
        size, work = self.arguments.size, self.arguments.work / "scorers"
        build = [sys.executable, "scripts/parity/build_checkpoints.py", "--size", size, "--out", work]
        pairs = work / "pairs.parquet"
        side = "512" if size == "full" else "96"
        make = [sys.executable, "scripts/parity/make_pairs.py", "--pairs", PAIRS[size], "--varied"]
        make += ["--pairs-per-prompt", 4, "--size", side, "--out", pairs]
        for command in (build, make):
            subprocess.run(list(map(str, command)), check=True, timeout=max(self.left(), 1))
        rows = []
        # A CPU has no TF32.
        tf32 = ["tf32"] if self.arguments.device.startswith("cuda") else []
        for precision in ("bf16", *tf32, "f32"):
            labels = self.arguments.out / f"labels-{precision}.parquet"
            words = ["score", "--quiet", "--fresh", "--pairs", pairs, "--scorers", work / "scorers.toml"]
            words += ["--out", labels, "--dtype", precision, "--device", self.arguments.device]
            start = time.monotonic()
            # 3: some rows have no votes, which the random images of these pairs should not cause.
            done = self.run("relabel", *map(str, words))
            seconds = time.monotonic() - start
            if done.returncode != 0:
                raise RuntimeError(f"relabel score in {precision} ended with {done.returncode}")
            rate = 2 * PAIRS[size] / seconds
            rows.append({"precision": precision, "seconds": seconds, "images_per_second": rate})
        return {"status": "done", "rows": rows, "note": "whole processes, loading included"}

    def ranks(self) -> dict:
        from diffusion_configs import build

        size, device, out = self.arguments.size, self.arguments.device, self.arguments.out
        model = ROOT / "data/mini/sd"
        if size == "full":
            model = build(self.arguments.work, "sd15", device)
        labels = out / "sample-labels.parquet"
        words = ["score", "--quiet", "--fresh", "--pairs", "data/sample", "--out", labels, "--device", device]
        if self.run("relabel", *map(str, [*words, "--scorers", "data/mini/scorers.toml"])).returncode != 0:
            raise RuntimeError("relabel score of data/sample failed")
        words = ["--quiet", "--fresh", "--model", model, "--pairs", "data/sample", "--labels", labels]
        words += ["--steps", TRAIN_STEPS, "--checkpoint-every", TRAIN_STEPS, "--keep", 1, "--probe-every", 0]
        words += ["--sample-every", 0, "--lr", 1e-6, "--warmup-steps", 1, "--optimizer", "adafactor"]
        words += ["--device", device, *TRAIN[size]]
        train = str(self.arguments.programs.resolve() / "train")
        # The launcher of this Python's torch, which a rank alone would not need: the variable makes the
        # process groups all the same.
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        starts = {"one process": [], "NCCL, one rank": [*torchrun, "--no-python"]}
        rows, losses = [], []
        for name, start in starts.items():
            run = out / "ranks-run"
            shutil.rmtree(run, ignore_errors=True)
            command = list(map(str, [*start, train, "run", *words, "--out", run]))
            environment = os.environ | {"NN_GROUP_OF_ONE": "1"}
            subprocess.run(command, check=True, timeout=max(self.left(), 1), env=environment)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in lines if "time/step" in line]
            losses.append([step["loss"] for step in steps])
            seconds = statistics.median(step["time/step"] for step in steps[2:])
            exchange = statistics.median(step.get("time/exchange", 0.0) for step in steps[2:])
            rows.append({"start": name, "seconds": seconds, "exchange_seconds": exchange})
        shutil.rmtree(run, ignore_errors=True)
        worst = max(abs(one - other) for one, other in zip(*losses, strict=True))
        status = "done" if len(losses[0]) == TRAIN_STEPS and worst <= LOSS_BOUND else "failed"
        reason = "" if status == "done" else f"losses differ by {worst}"
        return {"status": status, "rows": rows, "loss_apart": worst, "reason": reason}

    def sdxl(self) -> dict:
        command = [sys.executable, "scripts/bench/gpu.py", "--compiled", "--repeats", "3"]
        command += ["--diffusion", self.arguments.programs / "diffusion"]
        command += ["--step", self.arguments.programs / "step", "--models", self.arguments.work]
        command += ["--out", self.arguments.out, "--device", self.arguments.device]
        command += ["--seconds", max(self.left() - 60, 1), "--rows", *ROWS[self.arguments.size]]
        results = self.arguments.out / "gpu.json"
        results.unlink(missing_ok=True)
        try:
            subprocess.run(list(map(str, command)), check=True, timeout=max(self.left(), 1))
        except subprocess.TimeoutExpired:
            if not results.exists():
                raise
            print("sdxl: the time is over; gpu.json holds what was measured", flush=True)
        return {"status": "done", "rows": json.loads(results.read_text())}


def card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def told(result: dict) -> str:
    """A result in the last column of the table."""
    if result.get("reason"):
        return result["reason"].splitlines()[-1][:160]
    if "passed" in result:
        return f"{result['passed']} tests"
    if not result["rows"]:
        return ""
    if "z" in result["rows"][0]:
        return f"{len(result['rows'])} times z = 0 and loss = ln 2"
    if "start" in result["rows"][0]:
        return ", ".join(f"{row['start']} {row['seconds']:.3f} s/step" for row in result["rows"])
    if "pairs_per_second" in result["rows"][0]:
        return ", ".join(f"{row['model']} {row['pairs_per_second']:.1f} pairs/s" for row in result["rows"])
    if "images_per_second" in result["rows"][0]:
        return ", ".join(f"{row['precision']} {row['images_per_second']:.1f} images/s" for row in result["rows"])
    return f"{len(result['rows'])} rows, gpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    check = Check(arguments)
    for name in ("kernels", "zero", "lora", "relabel", "ranks", "sdxl"):
        check.part(name, getattr(check, name))
    table = "| part | status | seconds | result |\n|---|---|---:|---|\n" + "\n".join(check.lines) + "\n"
    (arguments.out / "table.md").write_text(table)
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
