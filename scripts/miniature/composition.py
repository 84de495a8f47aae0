"""The images of the miniature data: drawings and their splits, composition, degradation, captions.

Shared by make_sample.py, train_models.py and evaluate_models.py. Everything random takes a numpy
generator, so that a seed determines every byte.
"""

import dataclasses
import functools
import io
import json
import pathlib

import numpy
from PIL import Image, ImageEnhance, ImageFilter

ROOT = pathlib.Path(__file__).resolve().parents[2]
DRAWINGS = ROOT / "data" / "downloads" / "drawings"
SAMPLE = ROOT / "data" / "sample"
MINI = ROOT / "data" / "mini"

# The styles of the sample. Drawings of further styles in the catalogue are for training.
STYLES = ("noto", "twemoji", "openmoji")
DEGRADATIONS = ("blur", "noise", "jpeg", "washed")

SPLIT_SEED = 20_250_301
# No model is trained on the Noto and Twemoji drawings of the sample's names, nor on one of the two for
# the held-out names. OpenMoji's are for training: line art differs so much from the other styles that a
# network of this size does not recognise it from them (46 % among 20 captions when it was held out).
HOLDABLE_STYLES = ("noto", "twemoji")
SAMPLE_NAMES = 160
HELD_OUT_NAMES = 120

# Plain backgrounds by the word that captions use. White comes up half of the time.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (198, 200, 204),
    "black": (24, 24, 28),
    "cream": (250, 240, 214),
    "pink": (247, 190, 208),
    "blue": (150, 198, 240),
    "green": (176, 222, 170),
    "yellow": (250, 226, 120),
    "orange": (244, 170, 96),
    "purple": (178, 154, 222),
    "red": (214, 84, 80),
    "teal": (70, 160, 160),
}
DEGRADATION_WORDS = {
    "blur": "blurry",
    "noise": "noisy",
    "jpeg": "badly compressed",
    "washed": "washed-out",
}
TEMPLATES = (
    "{name}",
    "a picture of {article} {name}",
    "an icon of {article} {name}",
    "a drawing of {article} {name}",
    "{article} {name}, digital art",
    "{article} {name}",
    "cute {name}",
    "{name} emoji",
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One emoji in one style, which compositions show."""

    name: str
    codepoints: str
    style: str
    # "train": shown in training; "held_out": never shown, its name is known from other styles;
    # "sample": the same, and part of data/sample; "shared": shown in training in other
    # compositions, and part of data/sample.
    split: str

    def load(self) -> Image.Image:
        """The drawing, RGBA, 64 x 64."""
        return _load(self.style, self.codepoints)


@functools.cache
def _load(style: str, codepoints: str) -> Image.Image:
    return Image.open(DRAWINGS / style / f"{codepoints}.png").convert("RGBA")


@dataclasses.dataclass(frozen=True)
class Composition:
    """A composed image with its properties."""

    image: Image.Image
    drawing: Drawing
    background: str
    degradation: str  # "none" or one of DEGRADATIONS
    severity: float  # 0 for a clean image, up to 1


@functools.cache
def drawings() -> tuple[Drawing, ...]:
    """Every drawing with its split, in a fixed order."""
    catalogue = json.loads((DRAWINGS / "catalogue.json").read_text())
    order = numpy.random.default_rng(SPLIT_SEED).permutation(len(catalogue))
    result = []
    for rank, index in enumerate(order):
        entry = catalogue[index]
        for style in STYLES:
            if rank < SAMPLE_NAMES:
                split = "sample" if style in HOLDABLE_STYLES else "shared"
            elif rank < SAMPLE_NAMES + HELD_OUT_NAMES and style == HOLDABLE_STYLES[rank % 2]:
                split = "held_out"
            else:
                split = "train"
            result.append(Drawing(entry["name"], entry["codepoints"], style, split))
        for style in entry["styles"][len(STYLES) :]:
            result.append(Drawing(entry["name"], entry["codepoints"], style, "train"))
    return tuple(result)


def names() -> list[str]:
    """Every name, in a fixed order."""
    return list(dict.fromkeys(drawing.name for drawing in drawings()))


def compose(drawing: Drawing, generator: numpy.random.Generator, *, varied: bool) -> Composition:
    """The drawing on a plain background; `varied` allows sizes other than 64 x 64.

    The drawing stays inside the central square, which is all that a centre crop keeps.
    """
    width = height = 64
    if varied and generator.random() < 0.4:
        width, height = (int(side) for side in generator.integers(64, 97, size=2))
        if generator.random() < 0.5:
            height = width
    square = min(width, height)
    side = round(square * generator.uniform(0.76, 1.0))
    if generator.random() < 0.5:
        background = "white"
    else:
        background = str(generator.choice(list(BACKGROUNDS)))
    canvas = Image.new("RGB", (width, height), BACKGROUNDS[background])
    ink = drawing.load()
    if side != 64:
        ink = ink.resize((side, side), Image.Resampling.LANCZOS)
    left, top = (
        (extent - square) // 2 + int(generator.integers(0, square - side + 1))
        for extent in (width, height)
    )
    canvas.paste(ink, (left, top), ink)
    return Composition(canvas, drawing, background, "none", 0.0)


def degrade(
    clean: Composition, generator: numpy.random.Generator, kind: str | None = None
) -> Composition:
    """The image degraded in one way, with a severity between 0.3 and 1."""
    kind = kind or str(generator.choice(DEGRADATIONS))
    severity = float(generator.uniform(0.3, 1.0))
    image = clean.image
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(0.8 + 1.9 * severity))
    elif kind == "noise":
        noise = generator.normal(0.0, 14.0 + 46.0 * severity, (image.height, image.width, 3))
        values = numpy.asarray(image, numpy.float64) + noise
        image = Image.fromarray(numpy.clip(numpy.rint(values), 0, 255).astype(numpy.uint8))
    elif kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(18 - 15 * severity))
        image = Image.open(buffer).convert("RGB")
    else:
        keep = 0.62 - 0.42 * severity
        image = ImageEnhance.Color(image).enhance(keep)
        values = 205.0 + (numpy.asarray(image, numpy.float64) - 205.0) * keep
        image = Image.fromarray(numpy.clip(numpy.rint(values), 0, 255).astype(numpy.uint8))
    return dataclasses.replace(clean, image=image, degradation=kind, severity=severity)


def encode(image: Image.Image, generator: numpy.random.Generator) -> tuple[bytes, str]:
    """The encoded image and its format: JPEG mostly, some PNG and WebP."""
    buffer = io.BytesIO()
    draw = generator.random()
    if draw < 0.80:
        image.save(
            buffer,
            "JPEG",
            quality=int(generator.integers(86, 97)),
            subsampling=int(generator.choice((0, 2), p=(0.3, 0.7))),
            progressive=bool(generator.random() < 0.15),
        )
        return buffer.getvalue(), "jpeg"
    if draw < 0.92:
        if generator.random() < 0.4:
            image = image.quantize(128)
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "png"
    image.save(buffer, "WEBP", lossless=bool(generator.random() < 0.7), quality=90)
    return buffer.getvalue(), "webp"


def caption(name: str, generator: numpy.random.Generator) -> str:
    """A caption that names the drawing and nothing else."""
    return str(generator.choice(TEMPLATES)).format(name=name, article=article(name))


def descriptive_caption(image: Composition, generator: numpy.random.Generator) -> str:
    """A caption that also names the background or the degradation, if the image has one."""
    name = image.drawing.name
    parts = []
    if image.degradation != "none":
        word = DEGRADATION_WORDS[image.degradation]
        parts.append(f"{article(word)} {word} picture of {article(name)} {name}")
    else:
        parts.append(f"a clear picture of {article(name)} {name}")
    if image.background != "white" or generator.random() < 0.3:
        parts.append(f"on {article(image.background)} {image.background} background")
    return " ".join(parts)


def article(word: str) -> str:
    """The indefinite article that the word takes, by its first letter."""
    return "an" if word[0].lower() in "aeiou" else "a"
