"""Writes image pairs in Pick-a-Pic's own Parquet layout, made of synthetic textured images.

The images mean nothing; their statistics matter: the high frequencies of photographs (so that
JPEG decoding and resizing cost what they cost on real data), and large colour fields that differ
from image to image (so that features differ). Image identifiers recur as in the real
collection: within a prompt the winner stays and meets a new image, so `k` pairs of a prompt have
`k + 1` images. Everything follows from --seed.
"""

import argparse
import io
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SUBJECTS = [
    "a red fox",
    "an old lighthouse",
    "a robot barista",
    "two cats playing chess",
    "a knight in rusty armor",
    "a bowl of ramen",
    "a girl with a paper umbrella",
    "a steam locomotive",
    "a dragon made of glass",
    "an astronaut riding a horse",
    "a tiny house on a turtle's back",
    "a portrait of a sad clown",
    "a wolf howling at the moon",
    "a futuristic motorcycle",
    "an owl wearing spectacles",
    "a city in the clouds",
]
PLACES = [
    "in a snowy forest",
    "on a busy Tokyo street at night",
    "under the sea",
    "at the edge of a cliff",
    "in a sunlit kitchen",
    "in the ruins of a cathedral",
    "on Mars",
    "in a field of lavender",
    "inside a bottle",
    "during a thunderstorm",
]
STYLES = [
    "oil on canvas",
    "highly detailed, 8k, trending on artstation",
    "watercolor",
    "studio photo, f/1.8, bokeh",
    "pixel art",
    "in the style of Moebius",
    "ukiyo-e woodblock print",
    "cinematic lighting, octane render",
    "pencil sketch",
    "low poly",
]
# What real captions also hold: quotes that ftfy rewrites, entities, other scripts, long prompts.
UNUSUAL = [
    "a sign that says “don’t panic”, neon",
    "Tom &amp; Jerry as renaissance nobles",
    "un café à la crème sur une table, naïve painting",
    "桜の木の下の猫, 🌸🐈, anime",
    "(masterpiece:1.2), best quality, ultra-detailed, "
    + ", ".join(f"{s} {p}" for s, p in zip(SUBJECTS, PLACES)),
    "SUNSET   over\tthe   mountains!!!  1980s, vhs",
]


def prompts(count: int, generator: np.random.Generator) -> list[str]:
    """`count` distinct captions; every eighth is an unusual one while they last."""
    captions: list[str] = []
    unusual = list(UNUSUAL)
    while len(captions) < count:
        if unusual and len(captions) % 8 == 7:
            captions.append(unusual.pop(0))
            continue
        caption = (
            f"{generator.choice(SUBJECTS)} {generator.choice(PLACES)}, {generator.choice(STYLES)}"
        )
        if caption in captions:
            caption += f", version {len(captions)}"
        captions.append(caption)
    return captions


def textured_image(width: int, height: int, generator: np.random.Generator) -> Image.Image:
    """Noise of falling amplitude over five octaves in colour, a few discs, and fine grain."""
    field = np.zeros((height, width, 3), dtype=np.float32)
    field += generator.uniform(40, 215, size=3).astype(np.float32)
    for octave, amplitude in ((2, 60.0), (5, 40.0), (13, 25.0), (37, 16.0), (101, 9.0)):
        coarse = generator.normal(0.0, amplitude, size=(octave, octave, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(coarse[:, :, channel])
            field[:, :, channel] += np.asarray(
                plane.resize((width, height), Image.Resampling.BICUBIC)
            )
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(int(generator.integers(2, 6))):
        center_y, center_x = generator.uniform(0, height), generator.uniform(0, width)
        radius = generator.uniform(0.08, 0.3) * min(width, height)
        inside = (rows - center_y) ** 2 + (columns - center_x) ** 2 < radius**2
        field[inside] = 0.35 * field[inside] + 0.65 * generator.uniform(0, 255, size=3)
    field += generator.normal(0.0, 7.0, size=field.shape)
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


def varied_size(size: int, generator: np.random.Generator) -> tuple[int, int]:
    """Square, portrait, landscape, odd: what a collection made by many models may hold."""
    choices = [
        (size, size),
        (size * 3 // 2, size),
        (size, size * 3 // 2),
        (size + 1, size - 1),
        (size * 2 + 3, size),
        (max(size * 5 // 8, 8), size),
        (max(size // 4, 8), max(size // 3, 8)),
        (size * 3 // 4, size * 3 // 4),
    ]
    return choices[int(generator.integers(len(choices)))]


def encoded_image(size: int, varied: bool, generator: np.random.Generator) -> bytes:
    """One encoded image: JPEG as in the collection, or with `varied` any of nine encodings."""
    width, height = varied_size(size, generator) if varied else (size, size)
    image = textured_image(width, height, generator)
    file = io.BytesIO()
    kind = int(generator.integers(12)) if varied else 0
    if kind == 4:
        image.save(file, "JPEG", quality=75, progressive=True)
    elif kind == 5:
        image.save(file, "JPEG", quality=92, subsampling="4:4:4")
    elif kind == 6:
        image.convert("L").save(file, "JPEG", quality=88)
    elif kind == 7:
        image.convert("CMYK").save(file, "JPEG", quality=90)
    elif kind == 8:
        image.save(file, "PNG")
    elif kind == 9:
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(file, "PNG")
    elif kind == 10:
        alpha = Image.linear_gradient("L").resize(image.size)
        image.putalpha(alpha)
        image.save(file, "PNG")
    elif kind == 11:
        image.save(file, "WEBP", quality=85)
    else:
        image.save(file, "JPEG", quality=90)
    return file.getvalue()


def make_rows(arguments: argparse.Namespace) -> list[dict]:
    generator = np.random.default_rng(arguments.seed)
    prompt_count = max(1, -(-arguments.pairs // arguments.pairs_per_prompt))
    captions = prompts(prompt_count, generator)

    def new_image() -> tuple[str, bytes]:
        identifier = str(uuid.UUID(bytes=generator.bytes(16), version=4))
        return identifier, encoded_image(arguments.size, arguments.varied, generator)

    rows = []
    for caption in captions:
        pairs = min(arguments.pairs_per_prompt, arguments.pairs - len(rows))
        standing = new_image()
        for _ in range(pairs):
            challenger = new_image()
            first, second = (
                (standing, challenger) if generator.random() < 0.5 else (challenger, standing)
            )
            label = float(generator.choice([1.0, 0.0, 0.5], p=[0.445, 0.445, 0.11]))
            best = {1.0: first[0], 0.0: second[0], 0.5: "tie"}[label]
            number = len(rows)
            rows.append(
                {
                    "are_different": True,
                    "best_image_uid": best,
                    "caption": caption,
                    "created_at": 1_680_000_000_000_000_000 + number * 17_000_000_000,
                    "has_label": True,
                    "image_0_uid": first[0],
                    "image_0_url": f"https://example.invalid/{first[0]}.png",
                    "image_1_uid": second[0],
                    "image_1_url": f"https://example.invalid/{second[0]}.png",
                    "jpg_0": first[1],
                    "jpg_1": second[1],
                    "label_0": label,
                    "label_1": 1.0 - label,
                    "model_0": "synthetic",
                    "model_1": "synthetic",
                    "ranking_id": 1000 + number,
                    "user_id": int(generator.integers(1, 5000)),
                    "num_example_per_prompt": pairs,
                    "__index_level_0__": number,
                }
            )
            if label == 0.0:
                standing = second
            elif label == 1.0:
                standing = first
    # A collection is not sorted by prompt; images must be recognised wherever they recur.
    order = generator.permutation(len(rows))
    return [rows[index] for index in order]


SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the Parquet file, or with --files the folder"
    )
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument(
        "--pairs-per-prompt",
        type=int,
        default=16,
        help="16 is the mean of the real collection (default)",
    )
    parser.add_argument(
        "--size", type=int, default=512, help="side of an image in pixels (default 512)"
    )
    parser.add_argument(
        "--varied",
        action="store_true",
        help="also other sizes and shapes, PNG, WebP, CMYK, greyscale, progressive",
    )
    parser.add_argument(
        "--files", type=int, default=0, help="split into this many files in the folder --out"
    )
    parser.add_argument(
        "--row-group", type=int, default=256, help="rows of a row group (default 256)"
    )
    parser.add_argument(
        "--page-index",
        action="store_true",
        help="pages of a megabyte with an index, as `relabel convert` writes them",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rows = make_rows(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    files = max(arguments.files, 1)
    small_pages = {}
    if arguments.page_index:
        small_pages = {
            "write_page_index": True,
            "write_batch_size": 1,
            "data_page_size": 1 << 20,
            "use_dictionary": False,
        }
    for number in range(files):
        part = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        path = arguments.out
        if arguments.files:
            path = arguments.out / f"pairs-{number:05d}-of-{files:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(part, schema=SCHEMA),
            path,
            compression="snappy",
            row_group_size=arguments.row_group,
            **small_pages,
        )
    unique = len({row[key] for row in rows for key in ("image_0_uid", "image_1_uid")})
    captions = len({row["caption"] for row in rows})
    print(
        f"{arguments.out}: {len(rows)} pairs, {unique} images ({2 * len(rows) / unique:.2f} uses each), "
        f"{captions} captions"
    )


if __name__ == "__main__":
    main()
