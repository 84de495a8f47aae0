"""Goldens of noise schedules and samplers: crates/nn/tests/fixtures/schedules/.

`cases.json` holds the configurations and the runs, `golden.safetensors` the results of diffusers. The
network is a formula of sample and timestep that the Rust test computes too.
diffusers 0.42.1, torch 2.11.0.
"""

import json
import pathlib

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "nn" / "tests" / "fixtures" / "schedules"
SHAPE = (2, 4, 3, 3)
# How many elements of a sample are kept for each step; the last step keeps all.
KEPT = slice(0, 72, 10)
KINDS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
OTHERS = (DDPMScheduler, HeunDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler)
CLASSES = {scheduler.__name__: scheduler for scheduler in (*KINDS.values(), *OTHERS)}

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
STABLE = LATENT | {
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

# The published files, without version numbers.
PUBLISHED = {
    "sd15": STABLE | {"_class_name": "PNDMScheduler"},
    "sd21-base": STABLE | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    "sd21-768": STABLE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": STABLE
    | {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}
# Options one by one; those that name a kind of sampler run with it alone.
OPTIONS = {
    "defaults": {"_class_name": "DDIMScheduler"},
    "training": {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"},
    "leading": LATENT | {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "clip_sample": False},
    "trailing": LATENT | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "skip_prk_steps": True},
    "linspace": STABLE | {"_class_name": "PNDMScheduler", "timestep_spacing": "linspace"},
    "alpha-one": STABLE | {"_class_name": "PNDMScheduler", "set_alpha_to_one": True},
    "cosine": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    "minimum": LATENT | {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "clip_sample_range": 0.5},
    "abrupt": LATENT
    | {
        "_class_name": "DPMSolverMultistepScheduler",
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        "prediction_type": "v_prediction",
    },
    "gentle": LATENT | {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "euler_at_final": True},
    "short": {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 25,
        "trained_betas": [0.01 + 0.002 * index for index in range(25)],
        "prediction_type": "v_prediction",
    },
    "zero": STABLE | ZERO | {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    "zero-leading": STABLE | ZERO | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    # Values that Python treats as false, options of other classes, and names that diffusers maps to others.
    "null": STABLE | {"_class_name": "DDIMScheduler", "set_alpha_to_one": None, "clip_sample": None, "lower_order_final": None},
    "clipped": LATENT | {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 0.7, "set_alpha_to_one": True},
    "foreign": LATENT
    | {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_type": "continuous",
        "sigma_min": 0.1,
        "sigma_max": 3.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.5,
        "sample_max_value": 0.1,
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
        "flow_shift": 3.0,
        "interpolation_type": "linear",
    },
    "unipc": LATENT | {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2", "predict_x0": True, "disable_corrector": [0], "solver_p": None},
    "heun": {"_class_name": "HeunDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "lcm": LATENT | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False},
}
ONLY = {"cosine": ["ddim", "dpmpp-2m"], "minimum": ["euler", "dpmpp-2m", "ddim"], "abrupt": ["dpmpp-2m"], "gentle": ["dpmpp-2m"],
    "null": ["ddim", "dpmpp-2m"], "clipped": ["ddim"], "foreign": ["euler", "dpmpp-2m"]}
TABLES = ["sd15", "defaults", "cosine", "short", "zero", "heun", "lcm"]


def whole(count, place):
    """Numbers in [-2, 2) from a multiplicative hash of their position; exact in any language."""
    place = torch.arange(place, place + count, dtype=torch.int64)
    bits = (place * 2654435761 % 2**32) // 256
    return (bits.double() / 2**22 - 2).float().reshape(SHAPE)


def network(sample, timestep):
    return sample / (sample.abs() + 1.0) * 0.75 + sample * 0.25 + (timestep * 0.0002 - 0.1)


def steps_of(name, kind):
    if name in PUBLISHED:
        return [1, 4, 20, 50]
    return [5, 20] if name != "short" else [4, 20]


def run(scheduler, steps):
    scheduler.set_timesteps(steps)
    sample = whole(72, 0) * float(scheduler.init_noise_sigma)
    kept = []
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(sample, timestep), float(timestep))
        sample = scheduler.step(output, timestep, sample).prev_sample
        kept.append(sample.flatten()[KEPT])
    assert torch.isfinite(sample).all()
    return torch.stack(kept), sample


def sigmas(scheduler):
    """The sigmas of Euler and DPM-Solver++; the others use alphas at the timesteps."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas
    alphas = scheduler.alphas_cumprod[scheduler.timesteps]
    return ((1 - alphas) / alphas) ** 0.5


def main():
    golden, cases = {}, []
    configs = PUBLISHED | OPTIONS
    for name, config in configs.items():
        # The scheduler as read from the file, and then another scheduler made from it.
        own = CLASSES[config["_class_name"]].from_config(config)
        for kind in ONLY.get(name, KINDS):
            for steps in steps_of(name, kind):
                scheduler = KINDS[kind].from_config(own.config)
                kept, last = run(scheduler, steps)
                key = f"{name}.{kind}.{steps}"
                parts = [scheduler.timesteps.float(), sigmas(scheduler), kept.flatten(), last.flatten()]
                golden[key] = torch.cat(parts)
                sigma = float(scheduler.init_noise_sigma)
                cases.append({"config": name, "kind": kind, "steps": steps, "initial_noise_sigma": sigma})
        if name in TABLES:
            # As diffusers' training scripts read the file, whichever class wrote it.
            training = DDPMScheduler.from_config(config)
            times = torch.tensor([0, config.get("num_train_timesteps", 1000) - 1])
            latents, noise = whole(72, 100), whole(72, 200)
            golden[f"{name}.alphas_cumprod"] = training.alphas_cumprod
            golden[f"{name}.noisy"] = training.add_noise(latents, noise, times).flatten()
            golden[f"{name}.velocity"] = training.get_velocity(latents, noise, times).flatten()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(golden, OUT / "golden.safetensors")
    text = json.dumps({"configs": configs, "tables": TABLES, "runs": cases}, separators=(",", ":"))
    (OUT / "cases.json").write_text(text.replace("},", "},\n") + "\n")
    print(f"{len(cases)} runs, {sum(file.stat().st_size for file in OUT.iterdir())} bytes")


if __name__ == "__main__":
    main()
