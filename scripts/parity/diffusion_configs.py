"""Diffusion models with random weights: the published sizes, and small ones that try every option.

    diffusion_configs.py --out DIR [NAME ...]      default: all

Each model is a folder as diffusers' and transformers' `save_pretrained` write it. Weights are random
but behave: every layer keeps the variance of what it is given, so that no part hides behind another,
and no output is zero. A part is built on the meta device and filled, in float32, and written once:
its configuration is kept beside it and decides whether it is built again.
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from build_checkpoints import save_tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
    __version__,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"

# The values of the published config.json files that are not diffusers' defaults.
SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_BASE_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD21_UNET = SD21_BASE_UNET | {"sample_size": 96, "upcast_attention": True}
SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def vae(channels: list[int], **options) -> dict:
    levels = len(channels)
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 2,
    } | options


SD_VAE = vae([128, 256, 512, 512], sample_size=512)
SDXL_VAE = vae([128, 256, 512, 512], sample_size=1024, scaling_factor=0.13025, force_upcast=True)


def text(width: int, layers: int, heads: int, activation: str, projection: int, **options) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projection,
        "vocab_size": 49408,
        # As the published files have them, from before the end token was read from here.
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    } | options


CLIP_L = text(768, 12, 12, "quick_gelu", 768)
OPENCLIP_H = text(1024, 23, 16, "gelu", 512)
OPENCLIP_BIGG = text(1280, 32, 20, "gelu", 1280)

# Tokens of the small tokenizers: each byte inside and at the end of a word, start and end of text.
SMALL_VOCABULARY = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}

SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SDXL_NOISE = SD_NOISE | {"timestep_spacing": "leading"}
SMALL_UNET = {"sample_size": 16, "block_out_channels": [32, 48, 64], "norm_num_groups": 8}
SMALL_VAE = vae([16, 24, 32], layers_per_block=1, norm_num_groups=8, sample_size=64)

UNET, VAE = UNet2DConditionModel, AutoencoderKL
TEXT, PROJECTED = CLIPTextModel, CLIPTextModelWithProjection

class Part(NamedTuple):
    """One folder of a model."""

    kind: type | None  # None is a tokenizer
    options: dict
    saving: dict = {}
    parameters: int | None = None  # where it is published


MODELS = {
    "small-sd15": {
        "unet": Part(
            UNET,
            SMALL_UNET
            | {
                "down_block_types": [CROSS_DOWN, CROSS_DOWN, DOWN],
                "up_block_types": [UP, CROSS_UP, CROSS_UP],
                "cross_attention_dim": 40,
                "attention_head_dim": 4,
            },
        ),
        "vae": Part(VAE, SMALL_VAE),
        "text_encoder": Part(TEXT, text(40, 3, 5, "quick_gelu", 40, **SMALL_VOCABULARY)),
        "tokenizer": Part(None, {"pad_token": "<|endoftext|>"}),
        "scheduler": Part(PNDMScheduler, SD_NOISE),
    },
    "small-sd21": {
        "unet": Part(
            UNET,
            SMALL_UNET
            | {
                "down_block_types": [CROSS_DOWN, CROSS_DOWN, DOWN],
                "up_block_types": [UP, CROSS_UP, CROSS_UP],
                "cross_attention_dim": 48,
                "attention_head_dim": [2, 3, 8],
                "layers_per_block": [1, 2, 1],
                "use_linear_projection": True,
                "upcast_attention": True,
            },
        ),
        "vae": Part(VAE, SMALL_VAE),
        "text_encoder": Part(TEXT, text(48, 4, 6, "gelu", 24, **SMALL_VOCABULARY)),
        "tokenizer": Part(None, {"pad_token": "!"}),
        "scheduler": Part(DDIMScheduler, SD_NOISE | {"prediction_type": "v_prediction"}),
    },
    "small-sdxl": {
        "unet": Part(
            UNET,
            SMALL_UNET
            | {
                "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
                "up_block_types": [CROSS_UP, CROSS_UP, UP],
                "cross_attention_dim": 40 + 48,
                "attention_head_dim": [2, 4, 8],
                "transformer_layers_per_block": [1, 2, 3],
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 16,
                "projection_class_embeddings_input_dim": 28 + 6 * 16,
            },
            {"max_shard_size": "1MB"},
        ),
        "vae": Part(VAE, SMALL_VAE | {"scaling_factor": 0.13025, "force_upcast": True}),
        "text_encoder": Part(TEXT, text(40, 2, 5, "quick_gelu", 40, **SMALL_VOCABULARY)),
        "text_encoder_2": Part(PROJECTED, text(48, 3, 6, "gelu", 28, **SMALL_VOCABULARY)),
        "tokenizer": Part(None, {"pad_token": "<|endoftext|>"}),
        "tokenizer_2": Part(None, {"pad_token": "!"}),
        "scheduler": Part(EulerDiscreteScheduler, SDXL_NOISE),
    },
    # What no published model has, but the configuration may say.
    "small-mixed": {
        "unet": Part(
            UNET,
            SMALL_UNET
            | {
                "down_block_types": [CROSS_DOWN, DOWN, CROSS_DOWN],
                "up_block_types": [CROSS_UP, CROSS_UP, UP],
                "in_channels": 5,
                "out_channels": 3,
                "cross_attention_dim": 20,
                "attention_head_dim": [4, 8, 2],
                "only_cross_attention": [True, False, False],
                "mid_block_only_cross_attention": True,
                "transformer_layers_per_block": 2,
                "layers_per_block": [2, 1, 1],
                "flip_sin_to_cos": False,
                "freq_shift": 1,
                "norm_eps": 1e-6,
            },
            {"variant": "fp16"},
        ),
        "vae": Part(
            VAE,
            vae(
                [16, 24],
                latent_channels=3,
                norm_num_groups=4,
                mid_block_add_attention=False,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        ),
    },
    "sd15": {
        "unet": Part(UNET, SD15_UNET, {}, 859_520_964),
        "vae": Part(VAE, SD_VAE, {}, 83_653_863),
        "text_encoder": Part(TEXT, CLIP_L, {}, 123_060_480),
        "tokenizer": Part(None, {"pad_token": "<|endoftext|>"}),
        "scheduler": Part(PNDMScheduler, SD_NOISE),
    },
    "sd21-base": {
        "unet": Part(UNET, SD21_BASE_UNET, {}, 865_910_724),
        "text_encoder": Part(TEXT, OPENCLIP_H, {}, 340_387_840),
    },
    "sd21": {"unet": Part(UNET, SD21_UNET, {"variant": "fp16"}, 865_910_724)},
    "sdxl": {
        "unet": Part(UNET, SDXL_UNET, {"max_shard_size": "4GB"}, 2_567_463_684),
        "vae": Part(VAE, SDXL_VAE, {}, 83_653_863),
        "text_encoder_2": Part(PROJECTED, OPENCLIP_BIGG, {}, 694_659_840),
        "scheduler": Part(EulerDiscreteScheduler, SDXL_NOISE),
    },
}


def empty(kind: type, options: dict) -> torch.nn.Module:
    """The network on the meta device: shapes without memory."""
    with torch.device("meta"):
        if kind in (TEXT, PROJECTED):
            return kind(CLIPTextConfig(**options))
        return kind(**options)


def fill(model: torch.nn.Module, seed: int, device: str = "cpu") -> torch.nn.Module:
    """Gives every parameter memory and random values from the generator of a device."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        mean, std = 0.0, 0.1
        if "norm" in name and leaf == "weight":
            mean = 1.0
        elif "embedding.weight" in name:
            std = 0.5
        elif parameter.dim() > 1:
            std = parameter[0].numel() ** -0.5
        value = torch.empty(parameter.shape, device=device)
        value = value.normal_(mean, std, generator=generator).cpu()
        value = torch.nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), leaf, value)
    return model.eval()


def build_network(folder: Path, part: Part, device: str) -> None:
    model = empty(part.kind, part.options)
    count = sum(parameter.numel() for parameter in model.parameters())
    expected = part.parameters or count
    assert count == expected, f"{folder}: {count} parameters, expected {expected}"
    fill(model, zlib.crc32(folder.name.encode()) + count, device)
    if part.saving.get("variant") == "fp16":
        model = model.half()
    model.save_pretrained(folder, **part.saving)
    print(f"{folder}: {count / 1e6:.2f} M parameters", flush=True)


def build_tokenizer(folder: Path, pad_token: str, small: bool) -> None:
    """CLIP's vocabulary (of the open_clip wheel), or bytes alone."""
    folder.mkdir(parents=True)
    if not small:
        save_tokenizer(folder, 224)
        return
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[], model_max_length=77, pad_token=pad_token
    )
    tokenizer.save_pretrained(folder)
    # The two files of before a tokenizer was one.
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def write_index(folder: Path, parts: dict[str, Part]) -> None:
    """model_index.json, of what is a whole pipeline."""
    if "tokenizer" not in parts:
        return
    xl = "text_encoder_2" in parts
    index = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if xl:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    for name, part in parts.items():
        library = "transformers" if name.startswith(("text", "tokenizer")) else "diffusers"
        index[name] = [library, part.kind.__name__ if part.kind else "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def build(root: Path, name: str, device: str = "cpu", only: tuple[str, ...] = ()) -> Path:
    """Writes what is missing of a model, or of these parts of it; its folder."""
    folder, parts = root / name, MODELS[name]
    if only:
        parts = {part: parts[part] for part in only}
    for part_name, part in parts.items():
        target, marker = folder / part_name, folder / f".{part_name}.json"
        recipe = json.dumps([part.kind.__name__ if part.kind else None, *part[1:]])
        if marker.exists() and marker.read_text() == recipe:
            continue
        marker.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        if part.kind is None:
            build_tokenizer(target, small=name.startswith("small"), **part.options)
        elif issubclass(part.kind, SchedulerMixin):
            part.kind.from_config(part.options).save_pretrained(target)
        else:
            build_network(target, part, device)
        marker.write_text(recipe)
    write_index(folder, parts)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; default: all")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    for name in arguments.names or MODELS:
        print(build(arguments.out, name))


if __name__ == "__main__":
    main()
