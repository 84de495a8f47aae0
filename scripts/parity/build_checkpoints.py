"""Builds reward models with random weights in the published layouts, and the scorers.toml naming them.

--size full   the four published shapes and file formats (11.6 GB):
    clip       open_clip ViT-H-14, `open_clip_pytorch_model.bin`: a pickled OrderedDict, f32
    hps        open_clip ViT-H-14, `HPS_v2_compressed.pt`: {'state_dict': ...}, f16
    pickscore  transformers CLIPModel ViT-H/14, `model.safetensors`, f32, with `position_ids`
    aesthetic  transformers CLIPModel ViT-L/14, `model.safetensors`, f32, and LAION's head as `.pth`
--size small  seven models of odd shapes that between them use every layout, activation,
    preprocessing and tokenizer.

Every file is written by the library whose layout it is. The weights are random but behave: the
features of two pictures (or captions) differ, attention is neither uniform nor frozen, and the
rounding errors of f32 are not amplified, as they are not in trained networks.
"""

import argparse
import gzip
import json
import math
import re
from collections import OrderedDict
from pathlib import Path

import open_clip
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

# How much of one residual branch enters the stream, divided by sqrt(2 x layers): 1 would keep the
# variance of the embeddings and that of all branches together equal.
BRANCH_GAIN = 1.5
# Standard deviation of an attention logit. 1 is nearly uniform; 2 picks a few patches.
ATTENTION_GAIN = 1.5


def branch_scale(layers: int) -> float:
    return BRANCH_GAIN / math.sqrt(2 * layers)


def standard_deviation(name: str, shape: torch.Size, layers: int) -> tuple[float, float]:
    """(mean, standard deviation) of the random values of one parameter, for both layouts' names."""
    if re.search(r"(ln_\w+|layer_?norm\d?|layrnorm)\.weight$", name):
        return 1.0, 0.1
    if name.endswith("logit_scale"):
        return math.log(100.0), 0.0
    if name.endswith("bias"):
        return 0.0, 0.05
    if name.endswith("class_embedding"):
        return 0.0, 0.3
    if "position" in name:
        return 0.0, 0.3
    if "token_embedding" in name:
        return 0.0, 1.0
    if re.search(r"conv1|patch_embedding", name):
        # Neighbouring pixels are alike: their sum grows with their number, not with its root.
        return 0.0, 2.0 / math.sqrt(shape[1] * shape[2] * shape[3])
    if re.search(r"[qk]_proj\.weight$", name):
        return 0.0, math.sqrt(ATTENTION_GAIN / shape[1])
    if re.search(r"(out_proj|c_proj|fc2)\.weight$", name):
        # What the branch adds has unit variance times the branch scale; gelu keeps about a third of the variance.
        gain = 1.0 if "out_proj" in name else 1.7
        return 0.0, gain * branch_scale(layers) / math.sqrt(shape[1])
    if name in ("visual.proj", "text_projection"):
        return 0.0, 1.0 / math.sqrt(shape[0])
    return 0.0, 1.0 / math.sqrt(shape[-1])


def fill(model: torch.nn.Module, vision_layers: int, text_layers: int, seed: int) -> None:
    """Gives every parameter of a model on the meta device memory and random values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        vision = name.startswith("vis")
        mean, deviation = standard_deviation(name, parameter.shape, vision_layers if vision else text_layers)
        value = torch.empty(parameter.shape, dtype=torch.float32)
        value.normal_(0.0, 1.0, generator=generator).mul_(deviation).add_(mean)
        if name.endswith("in_proj_weight"):
            width = parameter.shape[1]
            value[: 2 * width] *= math.sqrt(ATTENTION_GAIN)
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(value, requires_grad=False))


def build_open_clip(config: dict, seed: int) -> OrderedDict:
    """State dict of open_clip's own class for a `model_cfg`."""
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    fill(model, config["vision_cfg"]["layers"], config["text_cfg"]["layers"], seed)
    return model.state_dict()


def build_transformers(config: CLIPConfig, seed: int, position_ids: bool) -> CLIPModel:
    """transformers' own class; `position_ids` saves these buffers too, as releases before 4.31 did."""
    with torch.device("meta"):
        model = CLIPModel(config)
    fill(model, config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers, seed)
    for tower, count in (
        (model.vision_model, (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1),
        (model.text_model, config.text_config.max_position_embeddings),
    ):
        tower.embeddings.register_buffer("position_ids", torch.arange(count).expand((1, -1)).clone(), persistent=position_ids)
    return model


def clip_config(projection: int, activation: str, vision: dict, text: dict) -> CLIPConfig:
    """A config as the published ones: legacy token ids, of which `eos_token_id` 2 is the notorious one."""
    text = text | {"hidden_act": activation, "projection_dim": projection, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    vision = vision | {"hidden_act": activation, "projection_dim": projection}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def aesthetic_head(width: int, seed: int) -> OrderedDict:
    """LAION's head: five linear layers without activations, here with outputs around 5.2 as the real one's."""
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict = OrderedDict()
    widths = [width, 1024, 128, 64, 16, 1]
    for layer, (inputs, outputs) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:])):
        state[f"layers.{layer}.weight"] = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
        state[f"layers.{layer}.bias"] = torch.randn(outputs, generator=generator) * 0.01
    # The whole head is affine; the first layer is scaled so that the norm of its direction is the real one's, 18.
    direction = state["layers.0.weight"]
    for layer in (2, 4, 6, 7):
        direction = state[f"layers.{layer}.weight"] @ direction
    state["layers.0.weight"] *= 18.0 / direction.norm()
    state["layers.7.bias"] += 5.24
    return state


def save_tokenizer(folder: Path, image_size: int) -> None:
    """CLIP's vocabulary as transformers writes it, from the merges in the open_clip wheel, and the image processor's config."""
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.open(packed, "rt", encoding="utf-8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    alphabet = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = alphabet + [character + "</w>" for character in alphabet] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == 49408
    pairs = [tuple(merge.split()) for merge in merges]
    CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(folder)


def save_open_clip(folder: Path, file: str, config: dict, seed: int, half: bool, with_config: bool) -> None:
    """A pickle as torch.save writes it: a plain OrderedDict, or with `half` HPS's {'state_dict': f16}."""
    folder.mkdir(parents=True, exist_ok=True)
    state = build_open_clip(config, seed)
    if half:
        for name in state:
            state[name] = state[name].half()
        torch.save({"state_dict": state}, folder / file)
    else:
        torch.save(state, folder / file)
    if with_config:
        preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
        (folder / "open_clip_config.json").write_text(text + "\n")


def save_transformers(folder: Path, config: CLIPConfig, seed: int, form: str) -> None:
    """`form`: "single" safetensors (with position_ids), "sharded" safetensors, or "pickle" pytorch_model.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_transformers(config, seed, position_ids=form == "single")
    if form == "pickle":
        config.architectures = ["CLIPModel"]
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="200KB" if form == "sharded" else "50GB")
    save_tokenizer(folder, config.vision_config.image_size)


def write_scorers(path: Path, scorers: list[dict]) -> None:
    blocks = []
    for scorer in scorers:
        lines = ["[[scorer]]"] + [f"{key} = {json.dumps(value)}" for key, value in scorer.items()]
        blocks.append("\n".join(lines) + "\n")
    path.write_text("# Random weights in the published layouts; written by build_checkpoints.py.\n\n" + "\n".join(blocks))


HPS = {"layout": "open_clip", "preprocess": "hps", "hps_resize": "legacy", "tokenizer": "open_clip"}
HUGGING_FACE = {"layout": "transformers", "preprocess": "hf", "tokenizer": "hf"}


def full(out: Path, head: Path | None) -> None:
    vision_h = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224, "patch_size": 14}
    text_h = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision_l = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 14}
    text_l = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vit_h = open_clip.get_model_config("ViT-H-14")
    steps = {
        "clip": lambda f: save_open_clip(f, "open_clip_pytorch_model.bin", vit_h, 1, half=False, with_config=True),
        "hps": lambda f: save_open_clip(f, "HPS_v2_compressed.pt", vit_h, 2, half=True, with_config=False),
        "pickscore": lambda f: save_transformers(f, clip_config(1024, "gelu", vision_h, text_h), 3, "single"),
        "aesthetic": lambda f: save_transformers(f, clip_config(768, "quick_gelu", vision_l, text_l), 4, "single"),
    }
    build(out, steps)
    save_head(out / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", 768, 5, head)
    write_scorers(out / "scorers.toml", [
        {"name": "clip", "kind": "clip", "model": "clip", "weights": "open_clip_pytorch_model.bin"} | HPS,
        {"name": "hps", "kind": "clip", "model": "hps", "architecture": "ViT-H-14", "weights": "HPS_v2_compressed.pt"} | HPS,
        {"name": "pickscore", "kind": "clip", "model": "pickscore"} | HUGGING_FACE,
        {"name": "aesthetic", "kind": "aesthetic", "model": "aesthetic", "head": "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
         "layout": "transformers", "preprocess": "hf"},
    ])


def small(out: Path, head: Path | None) -> None:
    def vision(width: int, heads: int, layers: int, mlp: int, patch: int, image: int) -> dict:
        return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
                "image_size": image, "patch_size": patch}

    def text(width: int, heads: int, layers: int, mlp: int) -> dict:
        return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}

    clip = {"embed_dim": 36,
            "vision_cfg": {"image_size": 56, "layers": 3, "width": 100, "head_width": 20, "patch_size": 7},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 60, "heads": 5, "layers": 2}}
    hps = {"embed_dim": 24, "quick_gelu": True,
           "vision_cfg": {"image_size": 48, "layers": 2, "width": 80, "head_width": 16, "patch_size": 16, "mlp_ratio": 3.0},
           "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 40, "heads": 5, "layers": 3}}
    steps = {
        "clip": lambda f: save_open_clip(f, "open_clip_pytorch_model.bin", clip, 11, half=False, with_config=True),
        "hps": lambda f: save_open_clip(f, "HPS_v2_compressed.pt", hps, 12, half=True, with_config=True),
        "pickscore": lambda f: save_transformers(f, clip_config(28, "gelu", vision(100, 5, 3, 260, 7, 56), text(40, 5, 3, 140)), 13, "sharded"),
        "aesthetic": lambda f: save_transformers(f, clip_config(44, "quick_gelu", vision(60, 5, 4, 240, 16, 48), text(60, 3, 2, 180)), 14, "single"),
        "pickled": lambda f: save_transformers(f, clip_config(20, "quick_gelu", vision(120, 6, 2, 480, 14, 70), text(80, 5, 2, 320)), 15, "pickle"),
    }
    build(out, steps)
    save_head(out / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", 44, 16, head)
    save_head(out / "pickscore" / "head.pth", 28, 17, None)
    write_scorers(out / "scorers.toml", [
        {"name": "clip", "kind": "clip", "model": "clip", "weights": "open_clip_pytorch_model.bin"} | HPS,
        {"name": "hps", "kind": "clip", "model": "hps", "weights": "HPS_v2_compressed.pt"} | HPS | {"hps_resize": "antialias"},
        {"name": "pickscore", "kind": "clip", "model": "pickscore"} | HUGGING_FACE,
        {"name": "aesthetic", "kind": "aesthetic", "model": "aesthetic", "head": "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
         "layout": "transformers", "preprocess": "hf"},
        # the same tower with another recipe
        {"name": "clip_stock", "kind": "clip", "model": "clip", "weights": "open_clip_pytorch_model.bin",
         "layout": "open_clip", "preprocess": "open_clip", "tokenizer": "open_clip"},
        # a head on another scorer's image features
        {"name": "aesthetic_shared", "kind": "aesthetic", "model": "pickscore", "head": "pickscore/head.pth",
         "layout": "transformers", "preprocess": "hf"},
        {"name": "pickled", "kind": "clip", "model": "pickled", "weights": "pytorch_model.bin"} | HUGGING_FACE,
    ])


def build(out: Path, steps: dict) -> None:
    """Runs each step whose model is not there yet; a marker written last tells whole from half."""
    for name, step in steps.items():
        marker = out / name / ".complete"
        if marker.exists():
            print(f"{out / name}: already there", flush=True)
            continue
        step(out / name)
        marker.touch()
        size = sum(file.stat().st_size for file in (out / name).iterdir())
        print(f"{out / name}: {size / 1e6:.1f} MB", flush=True)


def save_head(path: Path, width: int, seed: int, given: Path | None) -> None:
    """A random head, or a copy of the given file."""
    if given is not None:
        path.write_bytes(given.read_bytes())
    elif not path.exists():
        torch.save(aesthetic_head(width, seed), path)


def main() -> None:
    transformers_logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head", type=Path, help="an aesthetic head of LAION's to use instead of a random one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        (full if arguments.size == "full" else small)(arguments.out, arguments.head)
    print(arguments.out / "scorers.toml")


if __name__ == "__main__":
    main()
