"""ImageReward put together from its published layout: timm's vision transformer, transformers' BERT
with cross-attention, and the head. Its state dict has the published keys.

THUDM/ImageReward, ImageReward/ImageReward.py and models/BLIP/{vit,med,blip_pretrain,blip}.py at v1.5,
which need transformers of 2023, so nothing of them is imported.
"""

import functools
import json
import math
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from transformers import BertConfig, BertModel, BertTokenizer

MEAN, STD = 0.16717362830052426, 1.0333394966054072
CONTEXT_LENGTH = 35
HEAD_LAYERS = (0, 2, 4, 6, 7)
# Sizes of ImageReward-v1.0: the vision transformer's, and what med_config.json says.
PUBLISHED_VISION = {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "mlp_ratio": 4.0}
PUBLISHED_TEXT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
PUBLISHED_HEAD = (1024, 128, 64, 16)


class Blip(torch.nn.Module):
    """The two networks, as `blip` in the state dict."""

    def __init__(self, vision: dict, text: dict) -> None:
        super().__init__()
        width = vision["embed_dim"]
        self.visual_encoder = VisionTransformer(
            num_heads=width // 64,
            qkv_bias=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            num_classes=0,
            global_pool="",
            **vision,
        )
        # Only a decoder gets cross-attention from the library; this one is not causal.
        config = BertConfig(is_decoder=True, use_cache=False, attn_implementation="eager", **text)
        self.text_encoder = BertModel(config, add_pooling_layer=False)
        config.is_decoder = False
        for module in self.text_encoder.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
        for layer in self.text_encoder.encoder.layer:
            for name in ("key", "value"):
                own = torch.nn.Linear(width, config.hidden_size)
                setattr(layer.crossattention.self, name, own)
        # BLIP's BERT adds no types of tokens.
        types = self.text_encoder.embeddings.token_type_embeddings.weight
        torch.nn.init.zeros_(types).requires_grad_(False)


class Head(torch.nn.Module):
    """Five linear layers without activations, as `mlp` in the state dict."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = [width, *hidden, 1]
        linear = [torch.nn.Linear(*pair) for pair in zip(widths, widths[1:])]
        layers = [torch.nn.Identity() for _ in range(HEAD_LAYERS[-1] + 1)]
        for place, layer in zip(HEAD_LAYERS, linear, strict=True):
            layers[place] = layer
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden)


class ImageReward(torch.nn.Module):
    """The whole network."""

    def __init__(self, vision=PUBLISHED_VISION, text=PUBLISHED_TEXT, head=PUBLISHED_HEAD) -> None:
        super().__init__()
        self.blip = Blip(vision, text)
        self.mlp = Head(text["hidden_size"], head)

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """All tokens [B, T, V] of pixels [B, 3, S, S]."""
        return self.blip.visual_encoder.forward_features(pixels)

    def read(self, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores [B] of image tokens [B, T, V] and caption ids and mask [B, L]."""
        hidden = self.blip.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens
        ).last_hidden_state
        return (self.mlp(hidden[:, 0])[:, 0] - MEAN) / STD

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.read(self.image_tokens(pixels), ids, mask)

    def published(self) -> dict[str, torch.Tensor]:
        """The state dict with the published keys."""
        return {
            name: value.detach().contiguous()
            for name, value in self.state_dict().items()
            if "token_type" not in name and not name.endswith("position_ids")
        }

    def load_published(self, state: dict[str, torch.Tensor]) -> None:
        """Reads such a state dict, strictly."""
        missing, unexpected = self.load_state_dict(state, strict=False, assign=True)
        missing = [name for name in missing if "token_type" not in name and not name.endswith("position_ids")]
        if missing or unexpected:
            raise SystemExit(f"missing {missing}, unexpected {unexpected}")


def open_folder(folder: Path) -> ImageReward:
    """The network of a model folder, f32: sizes from the shapes, as nothing names them."""
    file = next(path for name in ("ImageReward.pt", "model.safetensors") if (path := folder / name).exists())
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True, mmap=True)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    visual = {name.removeprefix("blip.visual_encoder."): value.shape for name, value in state.items()}
    _, tokens, width = visual["pos_embed"]
    patch = visual["patch_embed.proj.weight"][-1]
    vision = {
        "img_size": patch * math.isqrt(tokens - 1),
        "patch_size": patch,
        "embed_dim": width,
        "depth": sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in visual),
        "mlp_ratio": visual["blocks.0.mlp.fc1.bias"][0] / width,
    }
    head = tuple(state[f"mlp.layers.{layer}.bias"].shape[0] for layer in HEAD_LAYERS[:-1])
    model = ImageReward(vision, json.loads((folder / "med_config.json").read_text()), head)
    unused = re.compile(r"blip\.(vision_proj|text_proj)\.|.*position_ids$")
    model.load_published({name: value.float() for name, value in state.items() if not unused.match(name)})
    return model.eval()


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that behave as trained ones: attention is neither uniform nor frozen, branches
    do not drown the stream, and two images or captions have different scores."""
    generator = torch.Generator().manual_seed(seed)
    depth = len(model.blip.visual_encoder.blocks)
    for name, parameter in model.named_parameters():
        if "token_type" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if re.search(r"(norm\d?|LayerNorm)\.weight$", name):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.05 * noise
        elif re.search(r"cls_token|pos_embed|position_embeddings", name):
            value = 0.3 * noise
        elif "word_embeddings" in name:
            value = noise
        elif "patch_embed" in name:
            value = noise * 2 / math.sqrt(parameter[0].numel())
        else:
            value = noise / math.sqrt(parameter.shape[-1])
            if "visual_encoder" in name and re.search(r"attn\.proj|fc2", name):
                value *= 1.5 / math.sqrt(2 * depth)
            elif re.search(r"self\.(query|key)|attn\.qkv", name):
                value *= 1.2
        with torch.no_grad():
            parameter.copy_(value)
    return model.eval()


def add_unused(state: dict[str, torch.Tensor], seed: int, embed_dim: int = 256) -> dict[str, torch.Tensor]:
    """The state dict with what the published file holds and no score depends on."""
    generator = torch.Generator().manual_seed(seed)
    widths = {
        "vision_proj": state["blip.visual_encoder.cls_token"].shape[-1],
        "text_proj": state["blip.text_encoder.embeddings.word_embeddings.weight"].shape[-1],
    }
    result = dict(state)
    for name, width in widths.items():
        result[f"blip.{name}.weight"] = torch.randn(embed_dim, width, generator=generator)
        result[f"blip.{name}.bias"] = torch.randn(embed_dim, generator=generator)
    positions = state["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0]
    result["blip.text_encoder.embeddings.position_ids"] = torch.arange(positions).expand(1, -1).clone()
    return result


def tokenizer(folder: Path) -> BertTokenizer:
    """BLIP's `init_tokenizer`."""
    result = BertTokenizer.from_pretrained(folder)
    result.add_special_tokens({"bos_token": "[DEC]"})
    result.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return result


def tokenize(tokens: BertTokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, 35], as `ImageReward.score` makes them."""
    batch = tokens(
        captions, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt"
    )
    return batch.input_ids, batch.attention_mask
