"""Goldens of single files: crates/nn/tests/fixtures/single_file/.

`names-FAMILY.tsv`: for each part the names of a single file and of diffusers, module by module, of
networks with the blocks of Stable Diffusion 1.5, 2.1 and SDXL. The names on the left come from the
conversion tables of diffusers' `scripts/convert_diffusers_to_original_stable_diffusion.py` and
`..._sdxl.py`, written down here; diffusers' own converters (`loaders/single_file_utils.py`) then
turn every one of them into the name on the right, tensor by tensor. Those of Stable Diffusion 2.1 are
those of 1.5, which is checked.

`open_clip.safetensors`: a tiny text encoder in a single file (`single.`) and as diffusers' converter
leaves it (`diffusers.`). torch 2.11.0, diffusers 0.42.1.
"""

import pathlib
import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "nn" / "tests" / "fixtures" / "single_file"
ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
SIZES = {
    "sd1": {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": (ATTENTION[0],) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + (ATTENTION[1],) * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
        "sample_size": 64,
    },
    "sd2": {
        "block_out_channels": (64, 64, 128, 128),
        "down_block_types": (ATTENTION[0],) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + (ATTENTION[1],) * 3,
        "attention_head_dim": [1, 1, 2, 2],
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "sdxl": {
        "block_out_channels": (64, 64, 128),
        "down_block_types": ("DownBlock2D", ATTENTION[0], ATTENTION[0]),
        "up_block_types": (ATTENTION[1], ATTENTION[1], "UpBlock2D"),
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 128,
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 64,
        "sample_size": 128,
    },
}


def unet_names(names: list[str], levels: int) -> dict[str, str]:
    """diffusers' names to those of a single file, by replacement, as its scripts do it."""
    pairs = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ]
    inner = [
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("emb_layers.1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
    ]
    layers = []
    for i in range(levels):
        for j in range(2):
            layers.append((f"input_blocks.{3 * i + j + 1}.0.", f"down_blocks.{i}.resnets.{j}."))
            layers.append((f"input_blocks.{3 * i + j + 1}.1.", f"down_blocks.{i}.attentions.{j}."))
        for j in range(3):
            layers.append((f"output_blocks.{3 * i + j}.0.", f"up_blocks.{i}.resnets.{j}."))
            layers.append((f"output_blocks.{3 * i + j}.1.", f"up_blocks.{i}.attentions.{j}."))
        attends = any(name.startswith(f"up_blocks.{i}.attentions.") for name in names)
        layers.append((f"input_blocks.{3 * (i + 1)}.0.op.", f"down_blocks.{i}.downsamplers.0.conv."))
        place = 2 if attends else 1
        layers.append((f"output_blocks.{3 * i + 2}.{place}.", f"up_blocks.{i}.upsamplers.0."))
    layers.append(("middle_block.1.", "mid_block.attentions.0."))
    for j in range(2):
        layers.append((f"middle_block.{2 * j}.", f"mid_block.resnets.{j}."))
    to = {}
    for name in names:
        new = name
        for single, diffusers in pairs:
            new = re.sub(rf"^{re.escape(diffusers)}\.", f"{single}.", new)
        if "resnets" in name:
            for single, diffusers in inner:
                new = new.replace(diffusers, single)
        for single, diffusers in layers:
            if new.startswith(diffusers):
                new = single + new[len(diffusers) :]
                break
        to[name] = new
    return to


def vae_names(names: list[str], levels: int) -> dict[str, str]:
    pairs = [("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"), ("mid.attn_1.", "mid_block.attentions.0.")]
    for i in range(levels):
        for j in range(2):
            pairs.append((f"encoder.down.{i}.block.{j}.", f"encoder.down_blocks.{i}.resnets.{j}."))
        pairs.append((f"down.{i}.downsample.", f"down_blocks.{i}.downsamplers.0."))
        pairs.append((f"up.{levels - 1 - i}.upsample.", f"up_blocks.{i}.upsamplers.0."))
        for j in range(3):
            pairs.append((f"decoder.up.{levels - 1 - i}.block.{j}.", f"decoder.up_blocks.{i}.resnets.{j}."))
    for i in range(2):
        pairs.append((f"mid.block_{i + 1}.", f"mid_block.resnets.{i}."))
    attention = [("norm.", "group_norm."), ("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0.")]
    to = {}
    for name in names:
        new = name
        for single, diffusers in pairs:
            new = new.replace(diffusers, single)
        if "attentions" in name:
            for single, diffusers in attention:
                new = new.replace(diffusers, single)
        to[name] = new
    return to


def open_clip(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of transformers' text encoder under open_clip's names, queries, keys and values joined."""
    out = {}
    inner = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    ]
    outer = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, value in state.items():
        if name in outer:
            out[prefix + outer[name]] = value
        elif name == "text_projection.weight":
            out[prefix + "text_projection"] = value.T.contiguous()
        elif ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            layer, kind = name.split(".")[3], name.rsplit(".", 1)[1]
            out[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            new = name.replace("text_model.encoder.layers.", "transformer.resblocks.")
            for diffusers, single in inner:
                new = new.replace(diffusers, single)
            out[prefix + new] = value
    return out


def text_state(width: int, projection: int | None) -> dict[str, torch.Tensor]:
    config = CLIPTextConfig(
        vocab_size=96, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=projection or width,
    )
    model = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    state = {}
    for name, value in model.state_dict().items():
        bare = name.startswith(("text_model.", "text_projection."))
        state[name if bare else f"text_model.{name}"] = value
    return state


def modules(pairs: dict[str, str]) -> list[str]:
    lines = {f"{single.rsplit('.', 1)[0]}\t{name.rsplit('.', 1)[0]}" for name, single in pairs.items()}
    return sorted(lines)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def main() -> None:
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    for family, sizes in SIZES.items():
        # Numbers of f16, few and small: a fixture.
        with torch.no_grad():
            unet = UNet2DConditionModel(layers_per_block=2, norm_num_groups=32, **sizes).half()
            vae = AutoencoderKL(
                block_out_channels=(32, 32, 32, 32), layers_per_block=2, norm_num_groups=32,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            ).half()
        levels = len(sizes["block_out_channels"])
        unet_state, vae_state = unet.state_dict(), vae.state_dict()
        unet_to, vae_to = unet_names(list(unet_state), levels), vae_names(list(vae_state), 4)
        lines = [f"unet\t{line}" for line in modules(unet_to)] + [f"vae\t{line}" for line in modules(vae_to)]
        listing = "\n".join(lines) + "\n"
        if family == "sd2":
            assert listing == (OUT / "names-sd1.tsv").read_text()
        else:
            (OUT / f"names-{family}.tsv").write_text(listing)
        single = {f"model.diffusion_model.{unet_to[name]}": value for name, value in unet_state.items()}
        for name, value in vae_state.items():
            is_linear = ".attentions." in name and value.dim() == 2
            single[f"first_stage_model.{vae_to[name]}"] = value[:, :, None, None] if is_linear else value
        # diffusers' converters find their way back, tensor by tensor.
        config = dict(unet.config)
        same(converters.convert_ldm_unet_checkpoint(dict(single), config), unet_state)
        same(converters.convert_ldm_vae_checkpoint(dict(single), dict(vae.config)), vae_state)
        if family != "sd2":
            text = text_state(8, None)
            prefix = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
            single |= {f"{prefix}.transformer.{name}": value.half() for name, value in text.items()}
            same(converters.convert_ldm_clip_checkpoint(dict(single)), {k: v.half() for k, v in text.items()})
        if family != "sd1":
            projection = 6 if family == "sdxl" else None
            text = {name: value.half() for name, value in text_state(8, projection).items()}
            prefix = "conditioner.embedders.1.model." if family == "sdxl" else "cond_stage_model.model."
            added = open_clip(text, prefix)
            if family == "sd2":
                # A file has 24 layers, and these two more; the pipeline ends before the last.
                added[f"{prefix}logit_scale"] = torch.tensor(1.0)
                added[f"{prefix}text_projection"] = torch.zeros(8, 8)
            single |= added

            class Model:
                class config:
                    hidden_size = 8

            found = converters.convert_open_clip_checkpoint(Model, dict(added), prefix=prefix)
            found.pop("text_projection.weight", None) if family == "sd2" else None
            same(found, text)
            if family == "sdxl":
                golden = {f"single.{name}": value for name, value in added.items()}
                golden |= {f"diffusers.{name}": value for name, value in found.items()}
                golden = {name: value.clone().contiguous() for name, value in golden.items()}
                save_file(golden, OUT / "open_clip.safetensors")
        print(family, len(single), sum(value.numel() for value in single.values()))


if __name__ == "__main__":
    main()
