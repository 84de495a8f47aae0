"""Goldens of small UNets with random weights: crates/nn/tests/fixtures/unet/NAME/.

Each folder holds the output of diffusers' save_pretrained and `golden.safetensors`: inputs, outputs in
f32, and gradients of the mean squared error for some parameters. `options.json` names options that
need no other weights, and `options.safetensors` holds the output of the network of `sd21` with each. diffusers 0.42.1, torch 2.11.0.
"""

import json
import pathlib

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "nn" / "tests" / "fixtures" / "unet"
DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

COMMON = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 12}
CONFIGS = {
    # As Stable Diffusion 1.5: convolutions as projections, the same number of heads everywhere.
    "sd15": COMMON
    | {
        "down_block_types": (DOWN, DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", UP, UP),
        "block_out_channels": (8, 12, 16),
        "layers_per_block": 1,
        "attention_head_dim": 4,
    },
    # As 2.1: linear projections, heads by level, upcast attention; two layers at one level.
    "sd21": COMMON
    | {
        "down_block_types": (DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", UP),
        "block_out_channels": (8, 16),
        "layers_per_block": [2, 1],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    # As XL: no attention at the top, several layers per transformer, further conditions.
    "sdxl": COMMON
    | {
        "down_block_types": ("DownBlock2D", DOWN),
        "up_block_types": (UP, "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 10 + 6 * 4,
        "only_cross_attention": [False, True],
    },
}

# Options that change the output; the last set has options that these blocks do not read.
OPTIONS = [
    {"flip_sin_to_cos": False},
    {"flip_sin_to_cos": None},
    {"freq_shift": 1},
    {"norm_eps": 0.01},
    {"norm_num_groups": 2},
    {"attention_head_dim": 2},
    {"attention_head_dim": [4, 8]},
    {
        "act_fn": "SWISH",
        "addition_embed_type_num_heads": 3,
        "addition_time_embed_dim": 8,
        "cross_attention_norm": "layer_norm",
        "mid_block_only_cross_attention": True,
        "projection_class_embeddings_input_dim": 7,
        "resnet_out_scale_factor": 2.0,
        "resnet_skip_time_act": True,
        "down_block_types": ["UNetResCrossAttnDownBlock2D", "DownBlock2D"],
    },
]


def options() -> None:
    folder = OUT / "sd21"
    golden, plain = load_file(folder / "golden.safetensors"), json.loads((folder / "config.json").read_text())
    outputs = {}
    with torch.no_grad():
        for index, changed in enumerate(OPTIONS):
            unet = UNet2DConditionModel.from_config(plain | changed).eval()
            unet.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
            outputs[str(index)] = unet(golden["latents"], golden["timesteps"], golden["text"]).sample
    (OUT / "options.json").write_text(json.dumps(OPTIONS, indent=1) + "\n")
    save_file(outputs, OUT / "options.safetensors")


def main() -> None:
    for index, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(index)
        unet = UNet2DConditionModel(**config).eval()
        with torch.no_grad():
            for value in unet.parameters():
                # Norms start at one and zero, which would hide swapped or missing ones.
                value.add_(0.1 * torch.randn_like(value)) if value.ndim == 1 else value.mul_(1.5)
        folder = OUT / name
        unet.save_pretrained(folder)
        inputs = {
            "latents": torch.randn(2, 4, 8, 8),
            "odd_latents": torch.randn(1, 4, 7, 6),
            "timesteps": torch.tensor([981.0, 1.0]),
            "text": torch.randn(2, 5, 12),
            "target": torch.randn(2, 4, 8, 8),
        }
        added = {}
        if "addition_embed_type" in config:
            inputs |= {"pooled": torch.randn(2, 10), "time_ids": torch.randint(0, 1024, (2, 6)).float()}
            added = {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]}
        output = unet(inputs["latents"], inputs["timesteps"], inputs["text"], added_cond_kwargs=added).sample
        (output - inputs["target"]).square().mean().backward()
        golden = dict(inputs, output=output.detach())
        parameters = list(unet.named_parameters())
        for key, value in parameters[:: max(1, len(parameters) // 12)]:
            golden[f"gradient.{key}"] = value.grad
        with torch.no_grad():
            first = {key: value[:1] for key, value in added.items()}
            odd = unet(inputs["odd_latents"], 500, inputs["text"][:1], added_cond_kwargs=first).sample
        golden["odd_output"] = odd
        save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
        total = sum(value.numel() for _, value in parameters)
        print(f"{name}: {total} parameters")
    options()


if __name__ == "__main__":
    main()
