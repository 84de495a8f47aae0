"""Golden of ten training steps: train/tests/fixtures/steps/golden.safetensors.

Diffusion-DPO written with diffusers and torch alone, in f32, on the small UNet of
crates/nn/tests/fixtures/diffusion/sd: steps of two micro-batches of two pairs, soft labels and weights
among them, gradients clipped in some steps, AdamW, and a reference model that is updated after every fourth
step. The file holds all inputs, z, losses and the gradient norm of each step, predictions of both
networks for some, the gradient of every parameter for one, and the final weights.
torch 2.11.0, diffusers 0.42.1.
"""

import copy
import json
import pathlib

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch.nn.functional import softplus

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "crates" / "nn" / "tests" / "fixtures" / "diffusion" / "sd"
OUT = ROOT / "train" / "tests" / "fixtures" / "steps"
STEPS, MICROS, PAIRS, TOKENS = 10, 2, 2, 5
REFRESH_EVERY, MAX_NORM = 4, 52.0
# z leaves zero but stays in the range that f32 computes well: with beta 500, ten steps in f32 and in
# f64 differ by percents in any implementation.
BETA, PEAK, WARMUP, WEIGHT_DECAY = 100.0, 2e-5, 3, 1e-2
LABELS = [[1.0, 0.0], [0.75, 0.5]]
WEIGHTS = [[1.0, 1.0], [0.5, 1.0]]
SHOWN_STEPS, GRADIENT_STEP = (0, 4, 9), 5


def micro_batches(width: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        {
            "latents_0": normal(PAIRS, 4, 8, 8),
            "latents_1": normal(PAIRS, 4, 8, 8),
            "noise": normal(PAIRS, 4, 8, 8),
            "timesteps": torch.randint(0, 1000, (PAIRS,), generator=generator),
            "prompt_embeds": normal(PAIRS, TOKENS, width),
            "label_p": torch.tensor(LABELS[micro]),
            "weight_w": torch.tensor(WEIGHTS[micro]),
        }
        for micro in range(MICROS)
    ]


def main() -> None:
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").train()
    reference = copy.deepcopy(unet).requires_grad_(False)
    schedule = DDPMScheduler.from_pretrained(MODEL / "scheduler")
    assert schedule.config.prediction_type == "epsilon"
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=WEIGHT_DECAY)
    batches = micro_batches(unet.config.cross_attention_dim)
    golden = {
        f"micro.{micro}.{name}": value
        for micro, batch in enumerate(batches)
        for name, value in batch.items()
    }
    total_weight = sum(float(batch["weight_w"].sum()) for batch in batches)
    rates, norms, largest = [], [], []
    for step in range(STEPS):
        logits, losses = [], []
        for micro, batch in enumerate(batches):
            latents = torch.cat([batch["latents_0"], batch["latents_1"]])
            noise, times, text = (
                torch.cat([batch[name]] * 2) for name in ("noise", "timesteps", "prompt_embeds")
            )
            noisy = schedule.add_noise(latents, noise, times)
            with torch.no_grad():
                expected = reference(noisy, times, text).sample
            predicted = unet(noisy, times, text).sample
            model, ref = ((output - noise).square().mean((1, 2, 3)) for output in (predicted, expected))
            gain = model - ref
            z = -0.5 * BETA * (gain[:PAIRS] - gain[PAIRS:])
            loss = softplus(z) - batch["label_p"] * z
            (batch["weight_w"] * loss).sum().div(total_weight).backward()
            logits.append(z.detach())
            losses.append(loss.detach())
            if micro == 0 and step in SHOWN_STEPS:
                golden[f"step.{step}.model_pred"] = predicted.detach()
                golden[f"step.{step}.ref_pred"] = expected
        golden[f"step.{step}.z"] = torch.cat(logits)
        golden[f"step.{step}.loss"] = torch.cat(losses)
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), MAX_NORM)
        if step == GRADIENT_STEP:
            for name, parameter in unet.named_parameters():
                golden[f"gradient_norm.{name}"] = parameter.grad.norm()
        rates.append(PEAK * min(1.0, step / WARMUP))
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.step()
        optimizer.zero_grad()
        norms.append(float(norm))
        largest.append(float(golden[f"step.{step}.z"].abs().max()))
        if (step + 1) % REFRESH_EVERY == 0:
            reference.load_state_dict(unet.state_dict())
    for name, parameter in unet.named_parameters():
        golden[f"final.{name}"] = parameter.detach()
    golden["rates"] = torch.tensor(rates, dtype=torch.float64)
    golden["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    settings = {
        "beta": BETA,
        "max_norm": MAX_NORM,
        "weight_decay": WEIGHT_DECAY,
        "refresh_every": REFRESH_EVERY,
        "gradient_step": GRADIENT_STEP,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    golden = {name: value.contiguous().clone() for name, value in golden.items()}
    save_file(golden, OUT / "golden.safetensors")
    (OUT / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    print("norms", [f"{norm:.3g}" for norm in norms])
    print("|z|", [f"{z:.3g}" for z in largest])


if __name__ == "__main__":
    main()
