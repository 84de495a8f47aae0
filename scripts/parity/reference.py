"""The reward models as the Python libraries compute them, from one scorers.toml.

Preprocessing, tokenization and scores follow what people run today:
`utils/{hps,clip,pickscore,aes}_utils.py` of SalesforceAIResearch/DiffusionDPO @ 5233e759, and for
the HPS transform `hpsv2/src/open_clip/transform.py` of tgxs002/HPSv2 @ 866735ec. Networks and
tokenizers are those of transformers and open_clip; nothing of the product is used.

Differences from those helpers, which change no score: weights are memory-mapped and
assigned instead of initialised twice; `.pooler_output` is taken from transformers 5's
`get_*_features`; the PIL image processor is named (transformers 5 would take torchvision's, whose
pixels differ); `antialias` of the resize is explicit (torchvision changed its default in 0.17);
images are converted to RGB first, as the training script's collate function does, for transformers by
its own processor, which puts transparent ones on white.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import image_reward
import numpy as np
import open_clip
import pyarrow.parquet as pq
import tomllib
import torch
import torch.nn.functional as functional
import torchvision.transforms.functional as vision_functional
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, CLIPModel, Siglip2Tokenizer, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

COLUMNS = ["ranking_id", "caption", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1"]


@dataclass
class Pair:
    pair_id: str
    caption: str
    uids: tuple[str, str]
    images: tuple[bytes, bytes]


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a Parquet file, or of the files of a folder in the order of their names."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    rows = [row for file in files for row in pq.read_table(file, columns=COLUMNS).to_pylist()]
    return [
        Pair(
            str(row["ranking_id"]),
            row["caption"],
            (row["image_0_uid"], row["image_1_uid"]),
            (row["jpg_0"], row["jpg_1"]),
        )
        for row in rows
    ]


def decode(data: bytes) -> Image.Image:
    """The image in its own mode: stock open_clip resizes before it converts to RGB."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


class LaionHead(nn.Module):
    """The aesthetic head: linear layers only; the dropouts between them are the identity here."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        widths = [state["layers.0.weight"].shape[1]] + [
            state[f"layers.{n}.weight"].shape[0] for n in (0, 2, 4, 6, 7)
        ]
        sizes = list(zip(widths, widths[1:]))
        self.layers = nn.Sequential(
            nn.Linear(*sizes[0]),
            nn.Dropout(0.2),
            nn.Linear(*sizes[1]),
            nn.Dropout(0.2),
            nn.Linear(*sizes[2]),
            nn.Dropout(0.1),
            nn.Linear(*sizes[3]),
            nn.Linear(*sizes[4]),
        )
        self.load_state_dict(state)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


def hps_transform(image: Image.Image, size: int, antialias: bool) -> torch.Tensor:
    """HPSv2's ResizeMaxSize on a float tensor: longest side to `size`, zero padding, normalised."""
    tensor = vision_functional.to_tensor(image)
    height, width = tensor.shape[1:]
    scale = size / float(max(height, width))
    if scale != 1.0:
        height, width = round(height * scale), round(width * scale)
        tensor = vision_functional.resize(
            tensor,
            [height, width],
            vision_functional.InterpolationMode.BICUBIC,
            antialias=antialias,
        )
    pad_width, pad_height = size - width, size - height
    left, top = pad_width // 2, pad_height // 2
    tensor = vision_functional.pad(tensor, [left, top, pad_width - left, pad_height - top], fill=0)
    return vision_functional.normalize(
        tensor, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    )


@dataclass
class Scorer:
    """One entry of scorers.toml with its network and its inputs' recipes."""

    name: str
    entry: dict
    folder: Path
    dtype: torch.dtype = torch.float32
    network: nn.Module = field(init=False)
    head: LaionHead | None = field(init=False, default=None)

    def load(self, shared: "Scorer | None" = None) -> "Scorer":
        """Loads the network, or takes that of `shared`, a loaded scorer of the same tower."""
        if shared is not None:
            self.network = shared.network
        elif self.entry["layout"] == "open_clip":
            self.network = load_open_clip(self.model_folder, self.entry)
        else:
            file = self.model_folder / self.entry.get("weights", "")
            # Files of older releases hold `position_ids`; transformers ignores them.
            self.network = CLIPModel.from_pretrained(
                self.model_folder,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=file.suffix != ".bin",
            )
        self.network = self.network.to(self.dtype).eval()
        if self.entry["kind"] == "aesthetic":
            state = torch.load(
                self.folder / self.entry["head"], map_location="cpu", weights_only=True
            )
            self.head = LaionHead(state).eval()
        self.prepare()
        return self

    @property
    def model_folder(self) -> Path:
        return self.folder / self.entry["model"]

    @property
    def tower(self) -> tuple:
        """Two scorers with equal towers share one network."""
        return (self.entry["model"], self.entry.get("weights"))

    @property
    def recipe(self) -> tuple:
        """Two scorers with equal recipes take the same pixels."""
        return (
            self.entry["preprocess"],
            self.entry.get("hps_resize") if self.entry["preprocess"] == "hps" else None,
            self.image_size,
        )

    def prepare(self) -> None:
        if self.entry["layout"] == "open_clip":
            size = self.network.visual.image_size
            self.image_size = size[0] if isinstance(size, tuple) else size
        else:
            self.image_size = self.network.config.vision_config.image_size
        if self.entry["preprocess"] == "hf":
            self.processor = CLIPImageProcessorPil(
                size={"shortest_edge": self.image_size},
                crop_size={"height": self.image_size, "width": self.image_size},
            )
        elif self.entry["preprocess"] == "open_clip":
            self.processor = open_clip.image_transform(
                self.image_size,
                is_train=False,
                mean=open_clip.OPENAI_DATASET_MEAN,
                std=open_clip.OPENAI_DATASET_STD,
            )
        if self.entry["kind"] == "clip":
            if self.entry["tokenizer"] == "hf":
                self.tokenizer = AutoTokenizer.from_pretrained(self.model_folder)
            else:
                self.tokenizer = open_clip.SimpleTokenizer(
                    context_length=self.network.context_length
                )

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The network's input [3,S,S] for one image."""
        if self.entry["preprocess"] == "hf":
            # It converts to RGB itself, with transparent images on white.
            return self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        if self.entry["preprocess"] == "hps":
            return hps_transform(
                image.convert("RGB"), self.image_size, self.entry.get("hps_resize", "legacy") == "antialias"
            )
        return self.processor(image)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B,3,S,S] to normalised features [B,D] in f32."""
        pixels = pixels.to(self.dtype)
        if self.entry["layout"] == "open_clip":
            features = self.network.encode_image(pixels)
        else:
            features = self.network.get_image_features(pixel_values=pixels).pooler_output
        return functional.normalize(features.float(), dim=-1)

    def text_features(self, captions: list[str]) -> torch.Tensor:
        """Captions to normalised features [B,D] in f32."""
        if self.entry["tokenizer"] == "hf":
            tokens = self.tokenizer(
                captions, padding=True, truncation=True, max_length=77, return_tensors="pt"
            )
        else:
            tokens = {"input_ids": self.tokenizer(captions)}
        if self.entry["layout"] == "open_clip":
            features = self.network.encode_text(tokens["input_ids"])
        else:
            features = self.network.get_text_features(**tokens).pooler_output
        return functional.normalize(features.float(), dim=-1)

    def scores(
        self, image_features: torch.Tensor, text_features: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores [B] of matching rows: the cosine, or the head's output."""
        if self.head is not None:
            return self.head(image_features).flatten()
        return (image_features * text_features).sum(-1)

    @property
    def needs_text(self) -> bool:
        return self.head is None


class ImageRewardScorer(Scorer):
    """ImageReward: an image's features are all tokens of the vision tower, a caption's its ids and mask."""

    # Pairs that BERT reads at once.
    TOGETHER = 16

    def load(self, shared: "Scorer | None" = None) -> "Scorer":
        folder = self.model_folder
        self.tokenizer = image_reward.tokenizer(self.folder / self.entry.get("vocabulary", self.entry["model"]))
        if shared is not None:
            self.network = shared.network
        else:
            self.network = image_reward.open_folder(folder).to(self.dtype).eval()
        self.image_size = self.network.blip.visual_encoder.patch_embed.img_size[0]
        # ImageReward's `_transform` is open_clip's.
        self.processor = open_clip.image_transform(
            self.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )
        return self

    @property
    def recipe(self) -> tuple:
        return ("open_clip", None, self.image_size)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor(image)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network.image_tokens(pixels.to(self.dtype))

    def text_features(self, captions: list[str]) -> torch.Tensor:
        return torch.cat(image_reward.tokenize(self.tokenizer, captions), dim=1)

    def scores(
        self, image_features: torch.Tensor, text_features: torch.Tensor | None
    ) -> torch.Tensor:
        ids, mask = text_features.split(image_reward.CONTEXT_LENGTH, dim=1)
        parts = [
            self.network.read(*part).float()
            for part in zip(*(side.split(self.TOGETHER) for side in (image_features, ids, mask)), strict=True)
        ]
        return torch.cat(parts)

    @property
    def needs_text(self) -> bool:
        return True


class SiglipScorer(Scorer):
    """SigLIP's probability, or the head of aesthetic-predictor-v2-5 on its image features."""

    def load(self, shared: "Scorer | None" = None) -> "Scorer":
        if shared is not None:
            self.network = shared.network
        else:
            self.network = SiglipModel.from_pretrained(
                self.model_folder, dtype=torch.float32, attn_implementation="sdpa"
            )
            self.network = self.network.to(self.dtype).eval()
        if self.entry["kind"] == "aesthetic-siglip":
            self.head = torch.load(
                self.folder / self.entry["head"], map_location="cpu", weights_only=True
            )
        self.image_size = self.network.config.vision_config.image_size
        self.processor = SiglipImageProcessorPil.from_pretrained(self.model_folder)
        named = self.entry.get("tokenizer") == "siglip2"
        if self.needs_text:
            kind = Siglip2Tokenizer if named else AutoTokenizer
            self.tokenizer = kind.from_pretrained(self.model_folder)
        return self

    @property
    def recipe(self) -> tuple:
        return ("siglip", self.entry["model"])

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.network.get_image_features(pixel_values=pixels.to(self.dtype))
        return functional.normalize(features.pooler_output.float(), dim=-1)

    def text_features(self, captions: list[str]) -> torch.Tensor:
        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        features = self.network.get_text_features(**tokens)
        return functional.normalize(features.pooler_output.float(), dim=-1)

    def scores(
        self, image_features: torch.Tensor, text_features: torch.Tensor | None
    ) -> torch.Tensor:
        if self.head is None:
            cosines = (image_features * text_features).sum(-1)
            scale, bias = self.network.logit_scale.float(), self.network.logit_bias.float()
            return torch.sigmoid(cosines * scale.exp() + bias)
        for layer in (0, 2, 4, 6, 8):
            weight, bias = (self.head[f"scoring_head.{layer}.{part}"] for part in ("weight", "bias"))
            image_features = functional.linear(image_features, weight, bias)
        return image_features.flatten()


def load_open_clip(folder: Path, entry: dict) -> nn.Module:
    """open_clip's own class with the checkpoint's tensors, strictly, in f32."""
    if "architecture" in entry:
        config = open_clip.get_model_config(entry["architecture"])
    else:
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    with torch.device("meta"):
        network = open_clip.model.CLIP(**config)
    state = torch.load(folder / entry["weights"], map_location="cpu", weights_only=True, mmap=True)
    state = state.get("state_dict", state)
    network.load_state_dict(
        {name: value.float() for name, value in state.items()}, strict=True, assign=True
    )
    # The causal mask is no part of a checkpoint.
    length = network.context_length
    network.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return network


def read_scorers(folder: Path, dtype: torch.dtype = torch.float32) -> list[Scorer]:
    """The scorers of `folder`/scorers.toml, not loaded yet."""
    entries = tomllib.loads((folder / "scorers.toml").read_text(encoding="utf-8"))["scorer"]
    kinds = {
        "image-reward": ImageRewardScorer,
        "siglip": SiglipScorer,
        "aesthetic-siglip": SiglipScorer,
    }
    return [kinds.get(entry["kind"], Scorer)(entry["name"], entry, folder, dtype) for entry in entries]


def load_all(scorers: list[Scorer]) -> None:
    """Loads every scorer, towers that several share once."""
    towers: dict[tuple, Scorer] = {}
    for scorer in scorers:
        scorer.load(towers.get(scorer.tower))
        towers.setdefault(scorer.tower, scorer)


def write_scores(path: Path, pairs: list[Pair], scores: dict[str, np.ndarray]) -> None:
    """A Parquet file of pair_id and `{scorer}_score_{0,1}` in the order given; `scores` are [N,2]."""
    import pyarrow as pa

    columns: dict = {"pair_id": [pair.pair_id for pair in pairs]}
    for name, values in scores.items():
        columns[f"{name}_score_0"] = np.asarray(values[:, 0], dtype=np.float32)
        columns[f"{name}_score_1"] = np.asarray(values[:, 1], dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
