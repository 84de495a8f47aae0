"""Makes the small ImageReward model under crates/nn/tests/fixtures/image_reward: random weights in the
published layout, and expected.json with the scores of scripts/parity/image_reward.py (timm and
transformers).

Run once, by hand: python scripts/goldens/image_reward.py
Needs torch==2.11.0, transformers==5.23.0, timm==1.0.31, Pillow==13.0.0.

expected.json: captions; for each the ids without padding; images as [width, height, seed], whose pixels
are made of whole numbers (`levels`, also in the Rust tests); every 53rd number of the first one's tokens; and scores[image][caption].
"""

import json
import pathlib
import sys

import numpy
import torch
import torchvision.transforms as transforms
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts" / "parity"), str(ROOT / "scripts" / "goldens")]

import distilbert  # noqa: E402
import image_reward  # noqa: E402

FOLDER = ROOT / "crates/nn/tests/fixtures/image_reward"
SIDE = 32
VISION = {"img_size": SIDE, "patch_size": 8, "embed_dim": 64, "depth": 2, "mlp_ratio": 1.0}
TEXT = {
    "hidden_act": "gelu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "encoder_width": 24,
    "add_cross_attention": True,
}
IMAGES = [(32, 32, 1), (70, 45, 2), (33, 64, 3)]
CAPTIONS = [
    "",
    "a photo of a cat",
    "A Photo, of a CAT!",
    "a [DEC] fox [ENC] in [PAD] the snow [SEP]",
    "the old castle on the river " * 6,
    "naïve café “quoted” 猫",
    "underwater lighthouse",
]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def levels(width: int, height: int, seed: int) -> numpy.ndarray:
    """Bytes [height, width, 3] from a multiplicative hash of their position."""
    place = numpy.arange(height * width * 3, dtype=numpy.uint64) + numpy.uint64(seed * 1_000_003)
    return ((place * numpy.uint64(2654435761) % numpy.uint64(2**32)) >> numpy.uint64(24)).astype(
        numpy.uint8
    ).reshape(height, width, 3)


def transform(side: int):
    """`_transform` of ImageReward.py."""
    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.txt").write_text(distilbert.vocabulary_file())
    tokenizer = image_reward.tokenizer(FOLDER)
    text = TEXT | {"vocab_size": len(tokenizer)}
    (FOLDER / "med_config.json").write_text(json.dumps(text, indent=1) + "\n")
    model = image_reward.randomize(image_reward.ImageReward(VISION, text, (16, 12, 8, 4)), 5)
    # The file is f16, the networks read it as f32.
    model.half().float()
    state = image_reward.add_unused(model.published(), 6, embed_dim=8)
    state = {f"module.{name}": value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(state, FOLDER / "ImageReward.pt")

    pixels = [transform(SIDE)(Image.fromarray(levels(*image))) for image in IMAGES]
    ids, mask = image_reward.tokenize(tokenizer, CAPTIONS)
    tokens = model.image_tokens(torch.stack(pixels))
    scores = [model.read(one.expand(len(CAPTIONS), -1, -1), ids, mask).double().tolist() for one in tokens]
    expected = {
        "captions": CAPTIONS,
        "ids": [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1), strict=True)],
        "images": IMAGES,
        "image_tokens": tokens[0].flatten().double().tolist()[::53],
        "scores": scores,
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected) + "\n")
    print(numpy.array(scores).round(4))
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.stat().st_size:8} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
