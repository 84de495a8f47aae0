"""Goldens of the optimizers: crates/nn/tests/fixtures/optimizers/golden.safetensors.

Parameters of odd shapes, gradients for each step (one parameter has none at the second), and the
results of PyTorch's fused AdamW, `transformers`' Adafactor and `clip_grad_norm_`: weights after every
step, and the state after the last. torch 2.11.0, transformers 5.23.0.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import Adafactor

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "nn" / "tests" / "fixtures" / "optimizers"
SHAPES = {"conv": (5, 3, 3, 3), "linear": (7, 11), "point": (4, 6, 1, 1), "bias": (13,), "scalar": ()}
RATES = [0.0, 1e-3, 2.5e-4, 1e-3, 3e-2]
MAX_NORM = 1.0


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple, scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    golden = {f"start.{name}": normal(shape, 0.5) for name, shape in SHAPES.items()}
    for step in range(len(RATES)):
        for name, shape in SHAPES.items():
            if (step, name) != (1, "bias"):
                # Gradients of very different sizes: clipping then scales only some of the steps.
                golden[f"gradient.{step}.{name}"] = normal(shape, 10.0 ** (step - 3))
    golden["rates"] = torch.tensor(RATES, dtype=torch.float64)
    inputs = dict(golden)

    def run(kind: str, make) -> None:
        parameters = {name: inputs[f"start.{name}"].clone().requires_grad_() for name in SHAPES}
        optimizer = make(parameters.values())
        for step, rate in enumerate(RATES):
            for name, parameter in parameters.items():
                gradient = inputs.get(f"gradient.{step}.{name}")
                parameter.grad = None if gradient is None else gradient.clone()
            golden[f"norm.{step}"] = torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            for name, parameter in parameters.items():
                golden[f"{kind}.{step}.{name}"] = parameter.detach().clone()
        for name, parameter in parameters.items():
            for part, value in optimizer.state[parameter].items():
                if part != "RMS":
                    value = torch.as_tensor(value, dtype=torch.float32)
                    golden[f"{kind}.state.{name}.{part}"] = value.clone()

    run("adamw", lambda parameters: torch.optim.AdamW(parameters, weight_decay=1e-2, fused=True))
    run(
        "adafactor",
        lambda parameters: Adafactor(
            parameters, lr=1.0, scale_parameter=False, relative_step=False, weight_decay=1e-2
        ),
    )
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(golden, OUT / "golden.safetensors")
    print(f"{len(golden)} tensors")


if __name__ == "__main__":
    main()
