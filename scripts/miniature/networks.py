"""The miniature networks: vocabulary, architecture, input recipes, saving, loading.

Both published layouts hold the same architecture (ViT with exact GELU). So the scripts train one class
of transformers, and rename its tensors for open_clip.
"""

import gzip
import io
import json
import pathlib

import numpy
import open_clip
import torch
import torchvision.transforms.functional as vision
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE = 64
CONTEXT_LENGTH = 77
EMBED_DIM = 128
VISION = {"width": 128, "layers": 4, "heads": 4, "patch_size": 8}
TEXT = {"width": 96, "layers": 3, "heads": 3}
MERGES = 2_000
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


# Vocabulary: the first merges of CLIP's own, ids as open_clip's SimpleTokenizer numbers them.


def merge_lines() -> list[str]:
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 1 + MERGES]


def vocabulary() -> list[str]:
    """Tokens by id: 256 bytes, 256 bytes that end a word, merges, start and end of text."""
    symbols = list(bytes_to_unicode().values())
    merged = ["".join(line.split()) for line in merge_lines()]
    return [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *merged,
        "<|startoftext|>",
        "<|endoftext|>",
    ]


def hf_tokenizer() -> CLIPTokenizerFast:
    ids = {token: number for number, token in enumerate(vocabulary())}
    merges = [tuple(line.split()) for line in merge_lines()]
    return CLIPTokenizerFast(vocab=ids, merges=merges, model_max_length=CONTEXT_LENGTH)


def save_merges(folder: pathlib.Path) -> None:
    """merges.txt, as CLIP's tokenizers read it."""
    lines = ["#version: 0.2", *merge_lines()]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def open_clip_tokenizer(folder: pathlib.Path) -> open_clip.SimpleTokenizer:
    """open_clip's tokenizer on the small vocabulary of a model folder."""
    path = folder / "bpe_simple_vocab.txt.gz"
    return open_clip.SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT_LENGTH)


def save_open_clip_vocabulary(folder: pathlib.Path) -> None:
    """The same merges in the file that open_clip reads; it takes every line, so the file has no empty one."""
    text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merge_lines()])
    packed = folder / "bpe_simple_vocab.txt.gz"
    with open(packed, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
        stream.write(text.encode())


# Input recipes: an image to the network's pixels, before normalisation.


def hf_levels(image: Image.Image) -> numpy.ndarray:
    """Hugging Face's recipe up to the crop: uint8 [64, 64, 3]."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_rescale=False,
        do_normalize=False,
    )
    pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    return numpy.ascontiguousarray(numpy.rint(pixels).astype(numpy.uint8).transpose(1, 2, 0))


def hps_values(image: Image.Image) -> torch.Tensor:
    """HPS's recipe up to the padding (no antialiasing): float [3, 64, 64], not clamped.

    ResizeMaxSize of tgxs002/HPSv2 @ 866735ec, hpsv2/src/open_clip/transform.py.
    """
    tensor = vision.to_tensor(image.convert("RGB"))
    height, width = tensor.shape[1:]
    scale = IMAGE_SIZE / float(max(height, width))
    if scale != 1.0:
        height, width = round(height * scale), round(width * scale)
        bicubic = vision.InterpolationMode.BICUBIC
        tensor = vision.resize(tensor, [height, width], bicubic, antialias=False)
    left, top = (IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2
    right, bottom = IMAGE_SIZE - width - left, IMAGE_SIZE - height - top
    return vision.pad(tensor, [left, top, right, bottom], fill=0)


def normalise(values: torch.Tensor) -> torch.Tensor:
    """[..., 3, 64, 64] in the range 0 to 1, by CLIP's mean and std."""
    return (values - MEAN) / STD


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# Networks.


def new_clip() -> CLIPModel:
    """A CLIP model of transformers with random weights."""
    end = len(vocabulary()) - 1
    config = CLIPConfig(
        text_config={
            "vocab_size": len(vocabulary()),
            "hidden_size": TEXT["width"],
            "intermediate_size": 4 * TEXT["width"],
            "num_hidden_layers": TEXT["layers"],
            "num_attention_heads": TEXT["heads"],
            "max_position_embeddings": CONTEXT_LENGTH,
            "projection_dim": EMBED_DIM,
            "hidden_act": "gelu",
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            "hidden_size": VISION["width"],
            "intermediate_size": 4 * VISION["width"],
            "num_hidden_layers": VISION["layers"],
            "num_attention_heads": VISION["heads"],
            "image_size": IMAGE_SIZE,
            "patch_size": VISION["patch_size"],
            "projection_dim": EMBED_DIM,
            "hidden_act": "gelu",
        },
        projection_dim=EMBED_DIM,
    )
    # Fused attention's backward pass is slow on a CPU at this size.
    config._attn_implementation = "eager"
    return CLIPModel(config)


def image_features(model: CLIPModel, pixels: torch.Tensor, kept_patches: int | None = None):
    """Projected image features [B, D]; `kept_patches` drops the other patches at random (FLIP)."""
    tower = model.vision_model
    hidden = tower.embeddings(pixels)
    if kept_patches is not None:
        noise = torch.rand(hidden.shape[0], hidden.shape[1] - 1)
        kept = 1 + noise.argsort(dim=1)[:, :kept_patches]
        kept = torch.cat([torch.zeros(len(kept), 1, dtype=kept.dtype), kept], dim=1)
        hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[2]))
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
    return model.visual_projection(tower.post_layernorm(hidden[:, 0]))


def text_features(model: CLIPModel, tokens: torch.Tensor) -> torch.Tensor:
    """Projected text features [B, D] of padded ids [B, L]."""
    return model.text_projection(model.text_model(input_ids=tokens).pooler_output)


def save_transformers(model: CLIPModel, folder: pathlib.Path) -> None:
    """The transformers layout: config, safetensors, preprocessor, vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # The library leaves its weights readable by their owner only.
    (folder / "model.safetensors").chmod(0o644)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    ).save_pretrained(folder)
    hf_tokenizer().save_pretrained(folder)
    ids = {token: number for number, token in enumerate(vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    save_merges(folder)


def load_transformers(folder: pathlib.Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()


def open_clip_config() -> dict:
    return {
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "layers": VISION["layers"],
                "width": VISION["width"],
                "head_width": VISION["width"] // VISION["heads"],
                "patch_size": VISION["patch_size"],
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(vocabulary()),
                "width": TEXT["width"],
                "heads": TEXT["heads"],
                "layers": TEXT["layers"],
            },
        },
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic",
            "resize_mode": "longest",
        },
    }


def new_open_clip() -> open_clip.CLIP:
    """The same architecture as open_clip's own class."""
    config = open_clip_config()["model_cfg"]
    return open_clip.CLIP(
        config["embed_dim"],
        open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        open_clip.CLIPTextCfg(**config["text_cfg"]),
        output_dict=False,
    )


def to_open_clip(model: CLIPModel) -> open_clip.CLIP:
    """The tensors of transformers' model in open_clip's class, strictly."""
    source = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    result = {"logit_scale": source["logit_scale"]}
    embeddings = "vision_model.embeddings."
    result["visual.class_embedding"] = source[embeddings + "class_embedding"]
    result["visual.conv1.weight"] = source[embeddings + "patch_embedding.weight"]
    result["visual.positional_embedding"] = source[embeddings + "position_embedding.weight"]
    result["visual.proj"] = source["visual_projection.weight"].T.contiguous()
    result["text_projection"] = source["text_projection.weight"].T.contiguous()
    embeddings = "text_model.embeddings."
    result["token_embedding.weight"] = source[embeddings + "token_embedding.weight"]
    result["positional_embedding"] = source[embeddings + "position_embedding.weight"]
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    towers = (("visual.", "vision_model.", VISION["layers"]), ("", "text_model.", TEXT["layers"]))
    for kind in ("weight", "bias"):
        for target, origin in norms.items():
            result[f"{target}.{kind}"] = source[f"{origin}.{kind}"]
        for prefix, origin, layers in towers:
            for layer in range(layers):
                block = f"{prefix}transformer.resblocks.{layer}."
                old = f"{origin}encoder.layers.{layer}."
                for target, name in parts.items():
                    result[f"{block}{target}.{kind}"] = source[f"{old}{name}.{kind}"]
                result[f"{block}attn.in_proj_{kind}"] = torch.cat(
                    [source[f"{old}self_attn.{one}_proj.{kind}"] for one in "qkv"]
                )
    converted = new_open_clip()
    converted.load_state_dict(result, strict=True)
    return converted.eval()


def save_open_clip(model: CLIPModel, folder: pathlib.Path) -> None:
    """The open_clip layout as HPS is published: {'state_dict': fp16 tensors}, and the config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in to_open_clip(model).state_dict().items()}
    torch.save({"state_dict": tensors}, folder / "open_clip_pytorch_model.pt")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(), indent=2) + "\n")
    save_merges(folder)
    save_open_clip_vocabulary(folder)


class AestheticHead(torch.nn.Module):
    """The LAION head's layers: linear only.

    christophschuhmann/improved-aesthetic-predictor @ 6934dd81, simple_inference.py, class MLP.
    """

    def __init__(self, width: int = EMBED_DIM) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 1024),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(1024, 128),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(128, 64),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(64, 16),
            torch.nn.Linear(16, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)
