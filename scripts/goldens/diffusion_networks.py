"""Makes the small autoencoders, text encoders and pipelines under crates/nn/tests/fixtures/diffusion.

Run with torch 2.11.0, transformers 5.23.0 and diffusers 0.42.1:

    python scripts/goldens/diffusion_networks.py crates/nn/tests/fixtures/diffusion

Each folder holds random weights as the libraries save them, and in expected.safetensors inputs and
the library's outputs. `sd` and `sdxl` are whole pipelines; their images are named by solver, steps
and guidance.
"""

import argparse
import json
import pathlib
import shutil
import tempfile

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_num_threads(1)
torch.set_grad_enabled(False)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 24
SAMPLERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
SEEDS = [11, 2**40 + 3]
HEIGHT, WIDTH = 16, 24
PROMPTS = ["a red cat", "old mill by the sea"]


def randomize(model, seed, gain=1.0):
    """Weights large enough that every part of the network shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif "embedding.weight" in name:
            parameter.copy_(0.5 * noise)
        elif parameter.dim() >= 2:
            parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise)
    return model.eval()


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def save_expected(folder, expected):
    folder.mkdir(parents=True, exist_ok=True)
    expected = {name: tensor.contiguous() for name, tensor in expected.items()}
    save_file(expected, folder / "expected.safetensors")


def autoencoder(seed, **options):
    blocks = options["block_out_channels"]
    options = dict(
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * len(blocks),
        up_block_types=["UpDecoderBlock2D"] * len(blocks),
    ) | options
    return randomize(AutoencoderKL(**options), seed)


def expect_autoencoder(folder, model):
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    channels = model.config.latent_channels
    pixels = normal(1, 3, model.config.in_channels, 4 * factor, 6 * factor).clamp(-1, 1)
    latents = normal(2, 3, channels, 4, 6)
    noise = normal(3, 3, channels, 4, 6)
    posterior = model.encode(pixels).latent_dist
    save_expected(folder, {
        "pixels": pixels,
        "mean": posterior.mean,
        "log_variance": posterior.logvar,
        "noise": noise,
        "sample": posterior.mean + posterior.std * noise,
        "latents": latents,
        "decoded": model.decode(latents).sample,
    })


def autoencoders(root):
    # Three levels of two blocks, as published.
    folder = root / "vae"
    model = autoencoder(1, block_out_channels=[4, 4, 6], layers_per_block=2)
    # Some variances lie outside the range to which they are clamped.
    model.quant_conv.bias[5:] += torch.tensor([40.0, -40.0, 0.0])
    model.save_pretrained(folder)
    expect_autoencoder(folder, model)

    # Other sizes, without the pointwise convolutions and without attention.
    folder = root / "vae_bare"
    model = autoencoder(
        2,
        block_out_channels=[6, 4],
        latent_channels=3,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        shift_factor=0.25,
        force_upcast=False,
    )
    model.save_pretrained(folder)
    expect_autoencoder(folder, model)

    # The names and shapes of the first published files.
    folder = root / "vae_former"
    model = autoencoder(3, block_out_channels=[4])
    model.save_pretrained(folder)
    expect_autoencoder(folder, model)
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(file).items():
        for today, former in names.items():
            name = name.replace(f".{today}.", f".{former}.")
        convolution = name.startswith("decoder.mid_block.attentions.0") and tensor.dim() == 2
        state[name] = tensor[:, :, None, None].contiguous() if convolution else tensor
    save_file(state, file, {"format": "pt"})


def text_config(**options):
    return CLIPTextConfig(**dict(
        vocab_size=60,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=8,
        bos_token_id=58,
        eos_token_id=59,
        pad_token_id=59,
    ) | options)


def text_rows():
    """Token ids with the end token, the largest, early, late and twice, and with padding of two kinds."""
    rows = [[(5 * row + 3 * column) % 50 for column in range(CONTEXT)] for row in range(3)]
    for row, (end, padding) in zip(rows, ((4, 59), (CONTEXT - 1, 0), (20, 0))):
        row[0], row[end] = 58, 59
        row[end + 1:] = [padding] * (CONTEXT - 1 - end)
    return torch.tensor(rows)


def expect_text(folder, model, tokens):
    output = model(tokens, output_hidden_states=True)
    norm = getattr(model, "text_model", model).final_layer_norm
    expected = {"tokens": tokens, "last": output.last_hidden_state}
    for skip in range(2):
        expected[f"normed_{skip}"] = norm(output.hidden_states[-(skip + 1)])
        expected[f"bare_{skip}"] = output.hidden_states[-(skip + 2)]
    if "text_embeds" in output:
        expected["pooled"] = output.text_embeds
    save_expected(folder, expected)


def text_encoders(root):
    # As in Stable Diffusion; configurations of its time have 2 as the end token.
    folder = root / "text"
    model = randomize(CLIPTextModel(text_config(hidden_act="quick_gelu", eos_token_id=2)), 4)
    model.save_pretrained(folder)
    expect_text(folder, model, text_rows())

    # As SDXL's second, with an end token that is not the largest.
    folder = root / "text_projection"
    config = text_config(hidden_act="gelu", eos_token_id=57, projection_dim=5, num_attention_heads=4)
    model = randomize(CLIPTextModelWithProjection(config), 5)
    model.save_pretrained(folder)
    tokens = text_rows()
    tokens[tokens == 59] = 57
    tokens[0, 12] = 59
    tokens[2, 20] = 3
    expect_text(folder, model, tokens)


def tokenizer(folder, pad):
    """A tokenizer with letters and no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [letter + end for end in ("", "</w>") for letter in LETTERS]
    names += [f"unused{index}" for index in range(58 - len(names))]
    vocabulary = {name: index for index, name in enumerate(names + ["<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = dict(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    return CLIPTokenizer(**files, pad_token=pad, model_max_length=CONTEXT)


def sample(folder, kind, tokenizers, **options):
    """Images of every solver; the negative prompt, the guidance and the steps change too."""
    # As saved on the disk: values in scheduler_config.json override the defaults of the class.
    pipeline = kind.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    base = pipeline.scheduler.config
    expected = {}
    for index, made in enumerate(tokenizers):
        for name, texts in (("prompt", PROMPTS), ("empty", [""]), ("negative", ["blur"])):
            tokens = made(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
            expected[f"{name}_{index}"] = tokens.input_ids
    for name, scheduler in SAMPLERS.items():
        for steps, guidance, negative in ((5, 7.5, None), (20, 3.0, "blur"), (7, 1.0, None)):
            pipeline.scheduler = scheduler.from_config(base)
            images = pipeline(
                PROMPTS,
                negative_prompt=None if negative is None else [negative] * len(PROMPTS),
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=HEIGHT,
                width=WIDTH,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
                output_type="np",
            ).images
            images = torch.from_numpy((images * 255).round().astype("uint8"))
            key = f"{name}-{steps}-{guidance}-{negative or 'none'}"
            expected[key] = images
    save_expected(folder, expected)


# Configurations of the two pipelines with other options: the keys that are set in each file; None
# removes a key (JSON's null is written "null").
CHANGES = [
    ("sd", {"scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"}}),
    ("sd", {"model_index.json": {"scheduler": ["diffusers", "DDIMScheduler"]}}),
    ("sd", {
        "model_index.json": {"scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        "scheduler/scheduler_config.json": {"timestep_spacing": "trailing"},
    }),
    ("sd", {
        "model_index.json": {"scheduler": ["diffusers", "DPMSolverMultistepScheduler"]},
        "scheduler/scheduler_config.json": {"_class_name": None, "skip_prk_steps": None},
    }),
    ("sd", {
        "model_index.json": {"scheduler": ["diffusers", "DDIMScheduler"], "force_zeros_for_empty_prompt": True},
        "scheduler/scheduler_config.json": {"clip_sample": True, "steps_offset": 0, "set_alpha_to_one": "null"},
    }),
    ("sd", {"unet/config.json": {"sample_size": 32, "_diffusers_version": "0.8.1"}}),
    ("sd", {"unet/config.json": {"sample_size": 32, "_diffusers_version": "0.9.0"}}),
    ("sd", {"unet/config.json": {"sample_size": [8, 12], "_diffusers_version": "0.6.0"}}),
    ("sd", {"unet/config.json": {"sample_size": 96, "_diffusers_version": "0.6.0"}}),
    ("sd", {"unet/config.json": {"sample_size": 32, "_diffusers_version": None}}),
    ("sdxl", {"unet/config.json": {"sample_size": 32, "_diffusers_version": "0.8.1"}}),
    ("sdxl", {"scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "steps_offset": 3}}),
    ("sdxl", {"model_index.json": {"force_zeros_for_empty_prompt": "null"}}),
    ("sdxl", {"model_index.json": {"force_zeros_for_empty_prompt": None}}),
    ("sdxl", {
        "text_encoder/config.json": {"architectures": None, "eos_token_id": 2},
        "text_encoder_2/config.json": {"architectures": None, "eos_token_id": 2},
    }),
]


def changed(root):
    """Images of the changed pipelines in five steps, and their default size."""
    expected, cases = {}, []
    for index, (name, changes) in enumerate(CHANGES):
        with tempfile.TemporaryDirectory() as folder:
            folder = shutil.copytree(root / name, pathlib.Path(folder) / name)
            for file, options in changes.items():
                json_of = json.loads((folder / file).read_text())
                for key, value in options.items():
                    json_of.pop(key, None)
                    if value is not None:
                        json_of[key] = None if value == "null" else value
                (folder / file).write_text(json.dumps(json_of))
            kind = StableDiffusionPipeline if name == "sd" else StableDiffusionXLPipeline
            options = dict(safety_checker=None) if name == "sd" else dict(add_watermarker=False)
            pipeline = kind.from_pretrained(folder, **options)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            PROMPTS,
            num_inference_steps=5,
            guidance_scale=7.5,
            height=HEIGHT,
            width=WIDTH,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
            output_type="np",
        ).images
        expected[str(index)] = torch.from_numpy((images * 255).round().astype("uint8")).contiguous()
        side = pipeline.unet.config.sample_size
        cases.append({
            "pipeline": name,
            "changes": changes,
            "scheduler": type(pipeline.scheduler).__name__,
            "sample_size": list(side) if isinstance(side, (list, tuple)) else [side, side],
        })
    save_file(expected, root / "changed.safetensors")
    (root / "changed.json").write_text(json.dumps(cases, indent=1) + "\n")


def pipelines(root):
    # The published files of both families have these, whichever solver they name.
    noise = dict(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    vae = dict(block_out_channels=[4, 4])
    unet = dict(
        sample_size=8,
        block_out_channels=[4, 8],
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    folder = root / "sd"
    words = tokenizer(folder / "tokenizer", "<|endoftext|>")
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(6, **vae),
        text_encoder=randomize(CLIPTextModel(text_config(num_hidden_layers=2, hidden_act="quick_gelu")), 7),
        tokenizer=words,
        unet=randomize(UNet2DConditionModel(
            **unet,
            cross_attention_dim=8,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        ), 8),
        scheduler=PNDMScheduler.from_config(noise),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    sample(folder, StableDiffusionPipeline, [words], safety_checker=None)

    folder = root / "sdxl"
    first, second = tokenizer(folder / "tokenizer", "<|endoftext|>"), tokenizer(folder / "tokenizer_2", "a")
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(9, **vae, scaling_factor=0.13025),
        text_encoder=randomize(CLIPTextModel(text_config(num_hidden_layers=2, hidden_act="quick_gelu")), 10),
        text_encoder_2=randomize(CLIPTextModelWithProjection(text_config(num_hidden_layers=2, hidden_act="gelu", projection_dim=6)), 11),
        tokenizer=first,
        tokenizer_2=second,
        unet=randomize(UNet2DConditionModel(
            **unet,
            cross_attention_dim=16,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 6,
        ), 12),
        scheduler=EulerDiscreteScheduler.from_config(noise | dict(timestep_spacing="leading")),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    sample(folder, StableDiffusionXLPipeline, [first, second], add_watermarker=False)


def main(root):
    shutil.rmtree(root, ignore_errors=True)
    autoencoders(root)
    text_encoders(root)
    pipelines(root)
    changed(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path)
    main(parser.parse_args().root)
