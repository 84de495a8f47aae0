"""Makes the small CLIP checkpoints and expected features under crates/nn/tests/fixtures.

Run with torch 2.11.0, transformers 5.23.0 and open_clip_torch 3.3.0:

    python scripts/goldens/clip_towers.py crates/nn/tests/fixtures

Each folder holds one model of random weights in one published layout, its configuration, and
expected.json: tokens, the positions of their end tokens, and the features that the library computes.
No images are stored: `pixels` makes them from whole numbers, and the Rust test does the same.
"""

import argparse
import json
import pathlib
from collections import OrderedDict

import open_clip
import torch
import transformers
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)

IMAGES = 3


def pixels(side):
    """Numbers in [-2, 2) from a multiplicative hash of their position; exact in any language."""
    place = torch.arange(IMAGES * 3 * side * side, dtype=torch.int64)
    bits = (place * 2654435761 % 2**32) // 256
    return (bits.double() / 2**22 - 2).float().reshape(IMAGES, 3, side, side)


def randomize(model, seed):
    """Weights large enough that every part of the network shows in the features."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = any(part in name for part in ("norm", "ln_", "layrnorm"))
        if is_norm and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.dim() >= 2:
            parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.2 * noise)
    return model.eval()


def texts(vocabulary, context):
    """Token rows with the end token, the largest, at different positions, and any padding."""
    end = vocabulary - 1
    rows, ends = [], []
    for index, place in enumerate((1, context // 2, context - 1, 2)):
        row = [(7 * index + 3 * column) % (vocabulary - 2) for column in range(context)]
        row[0], row[place] = vocabulary - 2, end
        rows.append(row)
        ends.append(place)
    return rows, ends


def write_expected(folder, image_features, text_features, rows, ends):
    expected = {
        "tokens": rows,
        "end_index": ends,
        "image_features": image_features.double().tolist(),
        "text_features": text_features.double().tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def transformers_model(folder, seed, activation, vision, text, projection):
    config = transformers.CLIPConfig(
        text_config=dict(text, hidden_act=activation, bos_token_id=0, eos_token_id=2, pad_token_id=1),
        vision_config=dict(vision, hidden_act=activation),
        projection_dim=projection,
    )
    model = randomize(transformers.CLIPModel(config), seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json_string())
    rows, ends = texts(text["vocab_size"], text["max_position_embeddings"])
    image_features = model.get_image_features(pixel_values=pixels(vision["image_size"]))
    text_features = model.get_text_features(input_ids=torch.tensor(rows))
    write_expected(folder, image_features.pooler_output, text_features.pooler_output, rows, ends)
    return model.state_dict()


def open_clip_model(folder, seed, config, custom_text=False):
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model = randomize(kind(**config), seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}) + "\n")
    return model


def expect_open_clip(folder, model, config):
    rows, ends = texts(config["text_cfg"]["vocab_size"], config["text_cfg"]["context_length"])
    image_features = model.encode_image(pixels(config["vision_cfg"]["image_size"]))
    text_features = model.encode_text(torch.tensor(rows))
    write_expected(folder, image_features, text_features, rows, ends)


def main(root):
    # transformers, safetensors, quick GELU, five heads, three layers, a patch size that does not divide the image.
    folder = root / "transformers"
    vision = dict(hidden_size=15, intermediate_size=20, num_hidden_layers=3, num_attention_heads=5, image_size=22, patch_size=7)
    text = dict(vocab_size=31, hidden_size=10, intermediate_size=12, num_hidden_layers=3, num_attention_heads=5, max_position_embeddings=9)
    state = transformers_model(folder, 1, "quick_gelu", vision, text, 12)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})

    # transformers, two shards and their index, erf GELU.
    folder = root / "transformers_sharded"
    vision = dict(vision, hidden_size=10, intermediate_size=20, num_hidden_layers=1, image_size=14)
    text = dict(text, num_hidden_layers=2, num_attention_heads=2)
    state = transformers_model(folder, 2, "gelu", vision, text, 8)
    weight_map = {}
    for index, part in enumerate(("text", "visi"), start=1):
        shard = f"model-{index:05d}-of-00002.safetensors"
        # The text model holds the scale of the logits.
        names = [name for name in state if name.startswith("visi") == (part == "visi")]
        save_file({name: state[name].contiguous() for name in names}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": sum(t.numel() * 4 for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    # transformers, torch.save: views of one storage, a transposed view, position numbers, cuda:0.
    folder = root / "transformers_bin"
    text = dict(text, num_hidden_layers=1)
    state = transformers_model(folder, 3, "gelu", vision, text, 8)
    for name in [name for name in state if "q_proj" in name]:
        names = [name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        state |= zip(names, torch.cat([state[other] for other in names]).chunk(3))
    state["visual_projection.weight"] = state["visual_projection.weight"].T.contiguous().T
    state["text_model.embeddings.position_ids"] = torch.arange(9)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_as_if_on_gpu(state, folder / "pytorch_model.bin")

    # open_clip, a training checkpoint in half precision, saved from a parallel module.
    folder = root / "open_clip_pt"
    config = dict(
        embed_dim=8,
        quick_gelu=False,
        vision_cfg=dict(image_size=21, layers=1, width=20, head_width=4, mlp_ratio=1.26, patch_size=7),
        text_cfg=dict(context_length=9, vocab_size=31, width=10, heads=5, layers=1),
    )
    model = open_clip_model(folder, 4, config)
    state = OrderedDict(("module." + name, tensor.half()) for name, tensor in model.state_dict().items())
    args = argparse.Namespace(lr=1e-6, name="run", devices=[0, 1], amp=True)
    torch.save({"epoch": 3, "state_dict": state, "args": args, "best": 2**40}, folder / "model.pt")
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    expect_open_clip(folder, model, config)

    # open_clip, a plain state dict in single precision, its text tower in a separate module.
    folder = root / "open_clip_bin"
    config = dict(
        embed_dim=8,
        quick_gelu=True,
        vision_cfg=dict(image_size=14, layers=1, width=10, head_width=5, patch_size=7),
        text_cfg=dict(context_length=9, vocab_size=31, width=10, heads=5, layers=1),
    )
    model = open_clip_model(folder, 5, config, custom_text=True)
    expect_open_clip(folder, model, config)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")

    # The aesthetic head, as published: saved on a GPU.
    folder = root / "aesthetic"
    folder.mkdir(parents=True, exist_ok=True)
    widths = [12, 9, 7, 5, 4, 1]
    layers = [torch.nn.Linear(before, after) for before, after in zip(widths, widths[1:])]
    drop = torch.nn.Dropout(0.2)
    head = torch.nn.Module()
    head.layers = torch.nn.Sequential(layers[0], drop, layers[1], drop, layers[2], drop, layers[3], layers[4])
    randomize(head, 6)
    save_as_if_on_gpu(head.state_dict(), folder / "head.pth")
    features = torch.nn.functional.normalize(pixels(4).reshape(12, 12), dim=1)
    expected = {"features": features.double().tolist(), "scores": head.layers(features)[:, 0].double().tolist()}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def save_as_if_on_gpu(state, path):
    """torch.save with every storage tagged cuda:0, as in files written on a GPU."""
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    try:
        torch.save(state, path)
    finally:
        torch.serialization.location_tag = tag


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path)
    main(parser.parse_args().root)
