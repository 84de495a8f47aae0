"""Computes the recorded steps of a run again with diffusers' UNet and torch's optimizer, from the same
starting weights, and compares; one table; exits 1 beyond a bound.

    train run --model MODEL --record-steps 10 --dtype f32 --device cpu ... --out RUN
    train_replay.py RUN

A record (RUN/record/step-*-micro-*.safetensors) gives the inputs of both networks. From them alone and
the settings in RUN/config.toml come here: the predictions of the model and of the reference, z, the
loss of each pair, the gradient norm, and after the last recorded step the weights, which are
compared with those of the checkpoint of that step (RUN/checkpoints, or RUN/pipeline where the run
ended there). The reference becomes the model where the records say so.

A run of adapters is computed again with PEFT. It begins with the adapters of the checkpoint of step 1,
whose learning rate must be 0 (--warmup-steps, --checkpoint-every 1).

Figures are relative: the largest difference over the largest value of the record, but z and losses
over one at least, since a loss is a function of z at that scale. The bound is 1e-4 in f32. `way` is the
largest difference of a weight over the largest change of its tensor since the start; its bound is
1e-2, since Adam lets a weight without gradient follow the sign of rounding errors.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import tomllib
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import softplus

BOUND, WAY_BOUND = 1e-4, 1e-2
COLUMNS = ("model_pred", "ref_pred", "z", "loss", "grad_norm")
# What `train run` takes where config.toml is silent.
DEFAULTS = {
    "beta": 5000.0,
    "optimizer": "adamw",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 1e-2,
    "max_grad_norm": 1.0,
    "dtype": "f32",
}
Tensors = dict[str, torch.Tensor]


def read(file: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(file, "pt") as record:
        return {name: record.get_tensor(name) for name in record.keys()}, record.metadata()


def relative(found: torch.Tensor, expected: torch.Tensor, scale: float = 0.0) -> float:
    """Not a number counts as infinitely far."""
    largest = max(float(expected.abs().max()), scale)
    apart = float((found - expected).abs().max())
    if apart == 0.0:
        return 0.0
    return apart / largest if largest > 0.0 and apart == apart else float("inf")


def make_optimizer(settings: dict, parameters) -> torch.optim.Optimizer:
    decay = settings["weight_decay"]
    if settings["optimizer"] == "adafactor":
        from transformers import Adafactor

        options = {"scale_parameter": False, "relative_step": False, "weight_decay": decay}
        return Adafactor(parameters, lr=1.0, **options)
    return torch.optim.AdamW(
        parameters,
        lr=1.0,
        betas=(settings["adam_beta1"], settings["adam_beta2"]),
        eps=settings["adam_epsilon"],
        weight_decay=decay,
    )


def adapted(unet: UNet2DConditionModel, settings: dict, start: Tensors) -> None:
    """Freezes a network and adds adapters with PEFT, which begin as `start`."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    modules = sorted({name.split(".lora_")[0] for name in start})
    unet.add_adapter(LoraConfig(r=settings["rank"], lora_alpha=settings["alpha"], target_modules=modules))
    found = trained(unet)
    if found.keys() != start.keys():
        sys.exit(f"PEFT has the adapters {sorted(found)}, the run {sorted(start)}")
    with torch.no_grad():
        for name, value in found.items():
            value.copy_(start[name])


def trained(unet: UNet2DConditionModel) -> dict[str, torch.nn.Parameter]:
    """What is trained, by its name in a checkpoint."""
    parameters = unet.named_parameters()
    return {name.replace(".default.weight", ".weight"): value for name, value in parameters if value.requires_grad}


class Replay:
    """The run so far, on this side."""

    def __init__(self, model: Path, settings: dict, start: Tensors | None) -> None:
        self.settings = settings
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
        self.reference = UNet2DConditionModel.from_pretrained(model / "unet")
        if start is not None:
            adapted(self.unet, settings, start)
            adapted(self.reference, settings, start)
        self.reference.requires_grad_(False)
        self.start = {name: value.detach().clone() for name, value in trained(self.unet).items()}
        self.schedule = DDPMScheduler.from_pretrained(model / "scheduler")
        self.optimizer = make_optimizer(settings, trained(self.unet).values())
        self.step, self.reference_step = 0, 0

    def micro_batch(self, record: Tensors, total_weight: float) -> dict[str, float]:
        """Adds the gradients of a micro-batch; how far its figures are from the record's."""
        pairs = len(record["timesteps"])
        latents = torch.cat([record["latents_0"], record["latents_1"]])
        noise, times, text = (
            torch.cat([record[name]] * 2) for name in ("noise", "timesteps", "prompt_embeds")
        )
        added = None
        if "pooled_embeds" in record:
            added = {
                "text_embeds": torch.cat([record["pooled_embeds"]] * 2),
                "time_ids": torch.cat([record["time_ids"]] * 2),
            }
        noisy = self.schedule.add_noise(latents, noise, times)
        target = noise
        if self.schedule.config.prediction_type == "v_prediction":
            target = self.schedule.get_velocity(latents, noise, times)
        with torch.no_grad():
            reference = self.reference(noisy, times, text, added_cond_kwargs=added).sample
        model = self.unet(noisy, times, text, added_cond_kwargs=added).sample
        gain = (model - target).square().mean((1, 2, 3)) - (reference - target).square().mean((1, 2, 3))
        z = -0.5 * self.settings["beta"] * (gain[:pairs] - gain[pairs:])
        loss = softplus(z) - record["label_p"] * z
        ((record["weight_w"] * loss).sum() / total_weight).backward()
        return {
            "model_pred": relative(
                model.detach(), torch.cat([record["model_pred_0"], record["model_pred_1"]])
            ),
            "ref_pred": relative(reference, torch.cat([record["ref_pred_0"], record["ref_pred_1"]])),
            "z": relative(z.detach(), record["z"], 1.0),
            "loss": relative(loss.detach(), record["loss"], 1.0),
        }

    def take_step(self, files: list[Path]) -> dict[str, float]:
        """One optimizer step; the largest figures of its micro-batches."""
        records = [read(file) for file in files]
        facts = records[0][1]
        reference_step = int(facts["reference_step"])
        if reference_step != self.reference_step:
            if reference_step != self.step:
                sys.exit(f"{files[0]}: the reference has the weights of step {reference_step}, which "
                         f"are gone: the step before is {self.step}")
            self.reference.load_state_dict(self.unet.state_dict())
            self.reference_step = reference_step
        total_weight = sum(float(record["weight_w"].sum()) for record, _ in records)
        figures = [self.micro_batch(record, total_weight) for record, _ in records]
        largest = {name: max(figure[name] for figure in figures) for name in figures[0]}
        bound = self.settings["max_grad_norm"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(trained(self.unet).values(), bound).double()
        expected = torch.tensor(float(facts["grad_norm"]), dtype=torch.float64)
        largest["grad_norm"] = relative(norm, expected)
        self.optimizer.param_groups[0]["lr"] = float(facts["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return largest

    @torch.no_grad()
    def weights(self, folder: Path) -> tuple[tuple[float, str], tuple[float, str]]:
        """How far the weights of a UNet in `folder` are, and how far the ways they went; the worst."""
        adapters = folder / "adapters.safetensors"
        if adapters.exists():
            theirs = load_file(adapters)
        else:
            theirs = UNet2DConditionModel.from_pretrained(folder).state_dict()
        far, way = [], []
        for name, value in trained(self.unet).items():
            far.append((relative(theirs[name], value), name))
            moved = value - self.start[name]
            way.append((relative(theirs[name] - self.start[name], moved), name))
        return max(far), max(way)


def steps(run: Path, wanted: int | None) -> list[list[Path]]:
    """The record's files, step by step from the first one on."""
    found: dict[int, list[Path]] = {}
    for file in sorted((run / "record").glob("step-*-micro-*.safetensors")):
        number = re.fullmatch(r"step-(\d+)-micro-\d+", file.stem)
        if number:
            found.setdefault(int(number[1]), []).append(file)
    if not found:
        sys.exit(f"{run / 'record'}: no records; run with --record-steps N")
    if sorted(found) != list(range(1, len(found) + 1)):
        sys.exit(f"{run / 'record'}: expected steps from 1 on without a gap, found {sorted(found)}")
    return [found[step] for step in sorted(found)][:wanted]


def last_weights(run: Path, step: int) -> Path | None:
    checkpoint = run / "checkpoints" / f"step-{step:06}" / "unet"
    if checkpoint.is_dir():
        return checkpoint
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    ended = max(json.loads(line)["step"] for line in metrics) if metrics else None
    return run / "pipeline" / "unet" if ended == step and (run / "pipeline").is_dir() else None


def show(label: str, figures: dict[str, float], print_row: Callable = print) -> None:
    print_row(f"{label:<8}" + "".join(f"{figures.get(name, 0.0):>12.1e}" for name in COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--model", type=Path, help="the base pipeline (default: config.toml's)")
    parser.add_argument("--steps", type=int, help="only the first so many recorded steps")
    parser.add_argument("--weights", type=Path, help="the UNet to compare with at the end")
    parser.add_argument("--threads", type=int, help="threads of torch")
    arguments = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = DEFAULTS | tomllib.loads((arguments.run / "config.toml").read_text())
    if settings["dtype"] != "f32":
        sys.exit(f"{arguments.run}: expected a run in f32, found {settings['dtype']}")
    model = arguments.model or Path(settings["model"])
    start = None
    if settings.get("adapter") == "lora":
        first = float(read(steps(arguments.run, 1)[0][0])[1]["lr"])
        if first != 0.0:
            sys.exit(f"{arguments.run}: expected a learning rate of 0 in step 1, found {first}")
        start = load_file(arguments.run / "checkpoints" / "step-000001" / "unet" / "adapters.safetensors")
    replay = Replay(model, settings, start)
    print(f"{'step':<8}" + "".join(f"{name:>12}" for name in COLUMNS))
    failed, refreshes = False, 0
    for files in steps(arguments.run, arguments.steps):
        before = replay.reference_step
        figures = replay.take_step(files)
        refreshed = replay.reference_step != before
        refreshes += refreshed
        show(f"{replay.step}{' (R)' if refreshed else ''}", figures)
        failed |= not max(figures.values()) <= BOUND
    print(f"(R): the reference was refreshed before this step; {refreshes} times in all")
    weights = arguments.weights or last_weights(arguments.run, replay.step)
    if weights is None:
        print(f"weights: no checkpoint of step {replay.step} to compare with")
        failed = True
    else:
        (far, name), (way, way_name) = replay.weights(weights)
        print(f"weights after step {replay.step}: {far:.1e} ({name}); way {way:.1e} ({way_name})")
        failed |= not (far <= BOUND and way <= WAY_BOUND)
    print("FAILED" if failed else "ok", f"(bound {BOUND:.0e})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
