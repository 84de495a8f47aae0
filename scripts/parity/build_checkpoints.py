"""Builds reward models with random weights in the published layouts, and their scorers.toml.

--size full   the four published shapes and file formats (11.6 GB):
    clip       open_clip ViT-H-14, `open_clip_pytorch_model.bin`: a pickled OrderedDict, f32
    hps        open_clip ViT-H-14, `HPS_v2_compressed.pt`: {'state_dict': ...}, f16
    pickscore  transformers CLIPModel ViT-H/14, `model.safetensors`, f32, with `position_ids`
    aesthetic  transformers CLIPModel ViT-L/14, `model.safetensors`, f32, and LAION's head as `.pth`
--size vit-l  ViT-L/14 with both towers in both layouts (3.4 GB):
    scored by the cosine, which `full` has of ViT-H/14 alone
--size siglip  SigLIP so400m-patch14-384 and SigLIP 2 of the same shape, with their tokenizers' classes
    and small vocabularies, and the head of aesthetic-predictor-v2-5 (8.1 GB)
--size five  the five voters of published.toml: `full` and `image-reward` in one folder (13.4 GB)
--size image-reward  ImageReward-v1.0's shapes and file, `ImageReward.pt`: a plain state dict, f32
    (1.8 GB)
--size small  eleven models of odd shapes that between them use every layout, activation,
    preprocessing and tokenizer.

Every file is written by the library whose layout it is. The weights are random but behave: the
features of two images (or captions) differ, attention is neither uniform nor frozen, and the
rounding errors of f32 are not amplified, as they are not in trained networks.
"""

import argparse
import gzip
import json
import math
import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import distilbert_parity
import image_reward
import open_clip
import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

# How much of one residual branch enters the stream, divided by sqrt(2 x layers): 1 would keep the
# variance of the embeddings and that of all branches together equal.
BRANCH_GAIN = 1.5
# Standard std of an attention logit. 1 is nearly uniform; 2 picks a few patches.
ATTENTION_GAIN = 1.5


def branch_scale(layers: int) -> float:
    return BRANCH_GAIN / math.sqrt(2 * layers)


def standard_deviation(name: str, shape: torch.Size, layers: int) -> tuple[float, float]:
    """(mean, standard std) of the random values of one parameter, for both layouts' names."""
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
        # A branch adds its scale in standard deviations; gelu keeps about a third of the variance.
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
        mean, std = standard_deviation(
            name, parameter.shape, vision_layers if vision else text_layers
        )
        value = torch.empty(parameter.shape, dtype=torch.float32)
        value.normal_(0.0, 1.0, generator=generator).mul_(std).add_(mean)
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
    """transformers' own class; `position_ids` are saved too as releases before 4.31 did."""
    with torch.device("meta"):
        model = CLIPModel(config)
    fill(model, config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers, seed)
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    for tower, count in (
        (model.vision_model, patches + 1),
        (model.text_model, config.text_config.max_position_embeddings),
    ):
        tower.embeddings.register_buffer(
            "position_ids", torch.arange(count).expand((1, -1)).clone(), persistent=position_ids
        )
    return model


def clip_config(projection: int, activation: str, vision: "Tower", text: "Tower") -> CLIPConfig:
    """A config as the published ones, with their legacy token ids (`eos_token_id` is 2)."""
    common = {"hidden_act": activation, "projection_dim": projection}
    text_config = (
        common
        | text.transformers()
        | {
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        }
    )
    return CLIPConfig(
        text_config=text_config,
        vision_config=common | vision.transformers(),
        projection_dim=projection,
    )


LAION = ("layers", (0, 2, 4, 6, 7))
V2_5 = ("scoring_head", (0, 2, 4, 6, 8))


def aesthetic_head(width: int, seed: int, names: tuple) -> OrderedDict:
    """Five linear layers without activations, with the offset and the norm of LAION's real head."""
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict = OrderedDict()
    widths = [width, 1024, 128, 64, 16, 1]
    prefix, indices = names
    layers = [f"{prefix}.{index}" for index in indices]
    for layer, (inputs, outputs) in zip(layers, zip(widths, widths[1:])):
        state[f"{layer}.weight"] = torch.randn(outputs, inputs, generator=generator) / math.sqrt(
            inputs
        )
        state[f"{layer}.bias"] = torch.randn(outputs, generator=generator) * 0.01
    # The head as a whole is affine: 5.24 + w.x, where the norm of w is 18.
    direction = state[f"{layers[0]}.weight"]
    for layer in layers[1:]:
        direction = state[f"{layer}.weight"] @ direction
    state[f"{layers[0]}.weight"] *= 18.0 / direction.norm()
    state[f"{layers[-1]}.bias"] += 5.24
    return state


def save_tokenizer(folder: Path, image_size: int) -> None:
    """CLIP's vocabulary (of the open_clip wheel) and image processor as transformers writes them."""
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    alphabet = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = (
        alphabet
        + [character + "</w>" for character in alphabet]
        + [merge.replace(" ", "") for merge in merges]
    )
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == 49408
    pairs = [tuple(merge.split()) for merge in merges]
    CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(folder)


def save_open_clip(
    file: Path, config: dict, seed: int, half: bool = False, with_config: bool = True
) -> None:
    """A pickle as torch.save writes it: a plain OrderedDict, or with `half` {'state_dict': f16}."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = build_open_clip(config, seed)
    if half:
        for name in state:
            state[name] = state[name].half()
        torch.save({"state_dict": state}, file)
    else:
        torch.save(state, file)
    if not with_config:
        return
    preprocess = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
    }
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (file.parent / "open_clip_config.json").write_text(text + "\n")


def save_transformers(folder: Path, config: CLIPConfig, seed: int, form: str) -> None:
    """`form`: "single" safetensors (with position_ids), "sharded" safetensors, or "pickle"."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_transformers(config, seed, position_ids=form == "single")
    if form == "pickle":
        config.architectures = ["CLIPModel"]
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="200KB" if form == "sharded" else "50GB")
    save_tokenizer(folder, config.vision_config.image_size)


def save_siglip(folder: Path, vision: "Tower", text: "Tower", seed: int, second: bool) -> None:
    """transformers' own class, with the tokenizer of SigLIP, or with `second` that of SigLIP 2."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"vocab_size": 256000 if second and text.layers > 9 else 32000 if text.layers > 9 else 900}
    config = SiglipConfig(
        text_config=text.transformers() | words | {"bos_token_id": 2 if second else 49406, "pad_token_id": 0 if second else 1},
        vision_config=vision.transformers(),
    )
    with torch.device("meta"):
        model = SiglipModel(config)
    fill(model, vision.layers, text.layers, seed)
    # Those of trained models would put all of the scores of random ones at 0.
    model.logit_scale.data.fill_(math.log(10.0))
    model.logit_bias.data.fill_(-1.0)
    for tower, count in (
        (model.vision_model, (vision.image // vision.patch) ** 2),
        (model.text_model, config.text_config.max_position_embeddings),
    ):
        ids = torch.arange(count).expand((1, -1)).clone()
        tower.embeddings.register_buffer("position_ids", ids, persistent=False)
    model.save_pretrained(folder, max_shard_size="50GB")
    SiglipImageProcessorPil(
        size={"height": vision.image, "width": vision.image}, resample=2 if second else 3
    ).save_pretrained(folder)
    fixtures = Path(__file__).resolve().parents[2] / "crates/media/tests/fixtures/siglip"
    goldens = json.loads(gzip.decompress((fixtures / "tokens.json.gz").read_bytes()))
    case = goldens["tokenizers"]["gemma" if second else "siglip"]
    (folder / case["file"]).write_bytes(gzip.decompress((fixtures / f"{case['file']}.gz").read_bytes()))
    (folder / "tokenizer_config.json").write_text(json.dumps(case["config"]))


class Tower(NamedTuple):
    """The shape of a transformer; patch and image are 0 for text."""

    width: int
    heads: int
    layers: int
    mlp: int
    patch: int = 0
    image: int = 0

    def transformers(self) -> dict:
        """As transformers' configs spell it."""
        shape = {
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
        }
        return shape | ({"image_size": self.image, "patch_size": self.patch} if self.patch else {})

    def open_clip(self) -> dict:
        """As open_clip's `model_cfg` spells it."""
        shape = {"width": self.width, "layers": self.layers, "mlp_ratio": self.mlp / self.width}
        if self.patch:
            head_width = self.width // self.heads
            return shape | {
                "head_width": head_width,
                "image_size": self.image,
                "patch_size": self.patch,
            }
        return shape | {"heads": self.heads, "context_length": 77, "vocab_size": 49408}


def full(out: Path, head: Path | None, more: list[str] | None = None) -> None:
    vit_h = open_clip.get_model_config("ViT-H-14")
    huge = clip_config(1024, "gelu", Tower(1280, 16, 32, 5120, 14, 224), Tower(1024, 16, 24, 4096))
    large = clip_config(
        768, "quick_gelu", Tower(1024, 16, 24, 4096, 14, 224), Tower(768, 12, 12, 3072)
    )
    steps = {
        "clip": lambda to: save_open_clip(to / "open_clip_pytorch_model.bin", vit_h, 1),
        # HPS is published without a config; scorers.toml names the architecture instead.
        "hps": lambda to: save_open_clip(
            to / "HPS_v2_compressed.pt", vit_h, 2, half=True, with_config=False
        ),
        "pickscore": lambda to: save_transformers(to, huge, 3, "single"),
        "aesthetic": lambda to: save_transformers(to, large, 4, "single"),
    }
    build(out, steps)
    save_head(out / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", 768, 5, head)
    hps = HPS.replace('model = "hps"', 'model = "hps"\narchitecture = "ViT-H-14"')
    write_scorers(out, [CLIP, hps, PICKSCORE, AESTHETIC, *(more or [])])


def vit_l(out: Path) -> None:
    quick = open_clip.get_model_config("ViT-L-14-quickgelu")
    large = clip_config(
        768, "quick_gelu", Tower(1024, 16, 24, 4096, 14, 224), Tower(768, 12, 12, 3072)
    )
    steps = {
        "clip": lambda to: save_open_clip(to / "open_clip_pytorch_model.bin", quick, 21),
        "pickscore": lambda to: save_transformers(to, large, 22, "single"),
    }
    build(out, steps)
    write_scorers(out, [CLIP, CLIP_STOCK, PICKSCORE])


def siglip(out: Path) -> None:
    vision, text = Tower(1152, 16, 27, 4304, 14, 384), Tower(1152, 16, 27, 4304)
    steps = {
        "siglip": lambda to: save_siglip(to, vision, text, 31, second=False),
        "siglip2": lambda to: save_siglip(to, vision, text, 32, second=True),
    }
    build(out, steps)
    save_head(out / "siglip" / "aesthetic_predictor_v2_5.pth", 1152, 33, names=V2_5)
    write_scorers(out, [SIGLIP, AESTHETIC_SIGLIP, SIGLIP2])


def small(out: Path) -> None:
    clip = {
        "embed_dim": 36,
        "vision_cfg": Tower(100, 5, 3, 400, 7, 56).open_clip(),
        "text_cfg": Tower(60, 5, 2, 240).open_clip(),
    }
    hps = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": Tower(80, 5, 2, 240, 16, 48).open_clip(),
        "text_cfg": Tower(40, 5, 3, 160).open_clip(),
    }
    gelu = clip_config(28, "gelu", Tower(100, 5, 3, 260, 7, 56), Tower(40, 5, 3, 140))
    quick = clip_config(44, "quick_gelu", Tower(60, 5, 4, 240, 16, 48), Tower(60, 3, 2, 180))
    wide = clip_config(20, "quick_gelu", Tower(120, 6, 2, 480, 14, 70), Tower(80, 5, 2, 320))
    steps = {
        "clip": lambda to: save_open_clip(to / "open_clip_pytorch_model.bin", clip, 11),
        "hps": lambda to: save_open_clip(to / "HPS_v2_compressed.pt", hps, 12, half=True),
        "pickscore": lambda to: save_transformers(to, gelu, 13, "sharded"),
        "aesthetic": lambda to: save_transformers(to, quick, 14, "single"),
        "pickled": lambda to: save_transformers(to, wide, 15, "pickle"),
        "reward": lambda to: save_image_reward(to, 18, SMALL_REWARD, "ImageReward.pt"),
        "rewarded": lambda to: save_image_reward(to, 19, SMALL_REWARD, "model.safetensors", to.parent / "bert"),
        "siglip": lambda to: save_siglip(
            to, Tower(100, 5, 3, 130, 7, 60), Tower(100, 5, 2, 130), 18, second=False
        ),
        "siglip2": lambda to: save_siglip(
            to, Tower(60, 3, 2, 90, 16, 50), Tower(60, 3, 3, 90), 19, second=True
        ),
    }
    build(out, steps)
    save_head(out / "siglip" / "aesthetic_predictor_v2_5.pth", 100, 20, names=V2_5)
    save_head(out / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", 44, 16)
    save_head(out / "pickscore" / "head.pth", 28, 17)
    antialiased = HPS.replace("legacy", "antialias")
    write_scorers(
        out,
        [CLIP, antialiased, PICKSCORE, AESTHETIC, CLIP_STOCK, AESTHETIC_SHARED, PICKLED, IMAGE_REWARD, REWARDED]
        + [SIGLIP, AESTHETIC_SIGLIP, SIGLIP2],
    )


def published_reward(out: Path) -> None:
    sizes = (image_reward.PUBLISHED_VISION, image_reward.PUBLISHED_TEXT, image_reward.PUBLISHED_HEAD)
    build(out, {"reward": lambda to: save_image_reward(to, 31, sizes, "ImageReward.pt")})
    write_scorers(out, [IMAGE_REWARD])


SMALL_REWARD = (
    {"img_size": 56, "patch_size": 7, "embed_dim": 128, "depth": 3, "mlp_ratio": 1.5},
    image_reward.PUBLISHED_TEXT
    | {
        "hidden_size": 60,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
        "intermediate_size": 100,
        "max_position_embeddings": 48,
        "vocab_size": 3_002,
    },
    (40, 20, 10, 5),
)


def save_image_reward(folder: Path, seed: int, sizes: tuple, name: str, vocabulary: Path | None = None) -> None:
    """ImageReward's folder, with a vocabulary of BERT's in it or elsewhere."""
    vision, text, head = sizes
    for path in (folder, vocabulary or folder):
        path.mkdir(parents=True, exist_ok=True)
    tokens = distilbert_parity.vocabulary(text["vocab_size"] - 2)
    ((vocabulary or folder) / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    if vocabulary is not None:
        # As `tokenizer.json`, which then is what is read.
        BertTokenizer.from_pretrained(vocabulary).save_pretrained(vocabulary)
    (folder / "med_config.json").write_text(json.dumps(text, indent=4) + "\n")
    model = image_reward.randomize(image_reward.ImageReward(vision, text, head), seed)
    state = image_reward.add_unused(model.published(), seed + 1)
    if name.endswith(".safetensors"):
        save_file({key: value.clone() for key, value in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)


CLIP = """
name = "clip"
kind = "clip"
model = "clip"
layout = "open_clip"
weights = "open_clip_pytorch_model.bin"
preprocess = "hps"
hps_resize = "legacy"
tokenizer = "open_clip"
"""

HPS = """
name = "hps"
kind = "clip"
model = "hps"
layout = "open_clip"
weights = "HPS_v2_compressed.pt"
preprocess = "hps"
hps_resize = "legacy"
tokenizer = "open_clip"
"""

PICKSCORE = """
name = "pickscore"
kind = "clip"
model = "pickscore"
layout = "transformers"
preprocess = "hf"
tokenizer = "hf"
"""

AESTHETIC = """
name = "aesthetic"
kind = "aesthetic"
model = "aesthetic"
layout = "transformers"
head = "aesthetic/sac+logos+ava1-l14-linearMSE.pth"
preprocess = "hf"
"""

# The tower of `clip` with another recipe.
CLIP_STOCK = """
name = "clip_stock"
kind = "clip"
model = "clip"
layout = "open_clip"
weights = "open_clip_pytorch_model.bin"
preprocess = "open_clip"
tokenizer = "open_clip"
"""

# A head on the image features of `pickscore`.
AESTHETIC_SHARED = """
name = "aesthetic_shared"
kind = "aesthetic"
model = "pickscore"
layout = "transformers"
head = "pickscore/head.pth"
preprocess = "hf"
"""

PICKLED = """
name = "pickled"
kind = "clip"
model = "pickled"
layout = "transformers"
weights = "pytorch_model.bin"
preprocess = "hf"
tokenizer = "hf"
"""


IMAGE_REWARD = """
name = "image_reward"
kind = "image-reward"
model = "reward"
"""

# As safetensors, with a vocabulary elsewhere.
REWARDED = """
name = "rewarded"
kind = "image-reward"
model = "rewarded"
vocabulary = "bert"
"""


SIGLIP = """
name = "siglip"
kind = "siglip"
model = "siglip"
"""

AESTHETIC_SIGLIP = """
name = "aesthetic_siglip"
kind = "aesthetic-siglip"
model = "siglip"
head = "siglip/aesthetic_predictor_v2_5.pth"
"""

SIGLIP2 = """
name = "siglip2"
kind = "siglip"
model = "siglip2"
tokenizer = "siglip2"
"""


def write_scorers(out: Path, entries: list[str]) -> None:
    text = "# Random weights in the published layouts; written by build_checkpoints.py.\n"
    (out / "scorers.toml").write_text(text + "".join(f"\n[[scorer]]{entry}" for entry in entries))


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


def save_head(
    path: Path, width: int, seed: int, given: Path | None = None, names: tuple = LAION
) -> None:
    """A random head, or a copy of the given file."""
    if given is not None:
        path.write_bytes(given.read_bytes())
    elif not path.exists():
        torch.save(aesthetic_head(width, seed, names), path)


def main() -> None:
    transformers_logging.disable_progress_bar()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full", "vit-l", "siglip", "image-reward", "five"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--head", type=Path, help="with full: LAION's aesthetic head instead of a random one"
    )
    arguments = parser.parse_args()
    if arguments.head and arguments.size not in ("full", "five"):
        parser.error("--head has the width of the full size")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if arguments.size == "full":
            full(arguments.out, arguments.head)
        elif arguments.size == "vit-l":
            vit_l(arguments.out)
        elif arguments.size == "image-reward":
            published_reward(arguments.out)
        elif arguments.size == "siglip":
            siglip(arguments.out)
        elif arguments.size == "five":
            published_reward(arguments.out)
            full(arguments.out, arguments.head, [IMAGE_REWARD])
        else:
            small(arguments.out)
    print(arguments.out / "scorers.toml")


if __name__ == "__main__":
    main()
