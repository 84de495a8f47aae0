"""Train four of the miniature reward models and write data/mini (train_image_reward.py trains the fifth).

1. clip: contrastive on (image, caption), degraded images among them.
2. hps: clip tuned on preferences for quality given the caption, on HPS's input recipe.
3. pickscore: clip tuned on labels of the noisy annotator of make_sample.py.
4. aesthetic: a linear head on clip's image features, regressed on colour and contrast.

It uses only drawings of the splits "train" and "shared". `--quick` trains a few steps, for valid files
without skill.
"""

import argparse
import dataclasses
import math
import time
import typing

import composition
import make_sample
import networks
import numpy
import torch
from composition import MINI, Composition
from torch.nn import functional

SEED = 11
# One thread: the same bits on every machine, and no waiting if other work shares the cores.
THREADS = 1
STAGES = ("clip", "aesthetic", "pickscore", "hps")

# Contrastive training.
VARIANTS = 5  # composed images per drawing; about one in four is degraded
CLIP_BATCH = 192
DESCRIPTIVE_RATE = 0.25

# Preference tuning.
PREFERENCE_PAIRS = 10_000
PREFERENCE_STEPS = 400
PREFERENCE_BATCH = 64
PREFERENCE_LEARNING_RATE = 2e-4

# (fraction of the steps, how many of 64 patches a training image keeps from there on). Dropping the
# others at random (as FLIP does) is faster and keeps a small network from learning drawings by heart.
PREFERENCE_PATCHES = ((0.0, 36), (0.7, None))
# Contrastive training has rounds, each with newly composed images and its own cosine schedule. For
# each: steps, peak learning rate, patches, fraction of rotated and tinted images.
CLIP_ROUNDS = (
    (3_000, 1.2e-3, ((0.0, 20), (0.85, 40), (0.95, None)), 1.0),
    (2_200, 1.0e-3, ((0.0, 24), (0.70, 40), (0.92, None)), 0.3),
)

# The aesthetic head.
HEAD_STEPS = 3_000
HEAD_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long each training takes."""

    variants: int = VARIANTS
    clip_rounds: tuple = CLIP_ROUNDS
    preference_pairs: int = PREFERENCE_PAIRS
    preference_steps: int = PREFERENCE_STEPS
    head_steps: int = HEAD_STEPS


QUICK = Schedule(
    variants=1, clip_rounds=((20, 1e-3, ((0.0, 20),), 1.0),), preference_pairs=600, preference_steps=5, head_steps=100
)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short linear warm-up, then a cosine to a hundredth."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def patches_at(progress: float, plan: tuple[tuple[float, int | None], ...]) -> int | None:
    """How many patches an image keeps at this fraction of the steps; None for all."""
    return next(kept for start, kept in reversed(plan) if progress >= start)


def optimizer_for(model: torch.nn.Module, peak: float) -> torch.optim.AdamW:
    """AdamW; gains, biases and the logit scale do not decay."""
    decayed = [tensor for tensor in model.parameters() if tensor.ndim >= 2]
    others = [tensor for tensor in model.parameters() if tensor.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def update(model: torch.nn.Module, optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(math.log(5.0), math.log(100.0))


class Tokens:
    """Captions to ids, padded to the longest of a batch; each caption is tokenised once."""

    def __init__(self, encode: typing.Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.known: dict[str, list[int]] = {}

    @classmethod
    def hf(cls) -> "Tokens":
        tokenizer = networks.hf_tokenizer()
        return cls(lambda caption: tokenizer(caption)["input_ids"])

    @classmethod
    def open_clip(cls) -> "Tokens":
        networks.save_open_clip_vocabulary(MINI / "hps")
        tokenizer = networks.open_clip_tokenizer(MINI / "hps")
        ends = tokenizer.sot_token_id, tokenizer.eot_token_id
        return cls(lambda caption: [ends[0], *tokenizer.encode(caption), ends[1]])

    def __call__(self, captions: list[str]) -> torch.Tensor:
        rows = []
        for caption in captions:
            if caption not in self.known:
                self.known[caption] = self.encode(caption)
            rows.append(self.known[caption])
        length = max(len(row) for row in rows)
        # Every row ends with the end of text, and what follows it does not count.
        return torch.tensor([row + row[-1:] * (length - len(row)) for row in rows])


def training_image(
    drawing: composition.Drawing, generator: numpy.random.Generator, *, degraded: bool, kind=None
) -> Composition:
    """An image as the sample has them, encoded and decoded like them."""
    image = composition.compose(drawing, generator, varied=True)
    if degraded:
        image = composition.degrade(image, generator, kind)
    data, _ = composition.encode(image.image, generator)
    return dataclasses.replace(image, image=networks.decode(data))


def training_drawings() -> list[composition.Drawing]:
    return [drawing for drawing in composition.drawings() if drawing.split in ("train", "shared")]


def by_name(drawings: list[composition.Drawing]) -> dict[str, list[composition.Drawing]]:
    result: dict[str, list[composition.Drawing]] = {}
    for drawing in drawings:
        result.setdefault(drawing.name, []).append(drawing)
    return result


# 1. Contrastive.


def train_clip(schedule: Schedule, log) -> networks.CLIPModel:
    torch.manual_seed(SEED)
    model = networks.new_clip()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / 0.07))
    for number in range(len(schedule.clip_rounds)):
        train_clip_round(model, number, schedule, log)
    return model.eval()


def train_clip_round(model: networks.CLIPModel, number: int, schedule: Schedule, log) -> None:
    """One round on images composed for it."""
    steps, peak, patches, varied_rate = schedule.clip_rounds[number]
    seed = SEED + 1_000 * number
    if number > 0:
        torch.manual_seed(seed)
    generator = numpy.random.default_rng(seed)
    numbers_of: dict[str, list[int]] = {}
    levels, shown = [], []
    for drawing in training_drawings():
        for _ in range(schedule.variants):
            composed = training_image(drawing, generator, degraded=len(shown) % 4 == 3)
            numbers_of.setdefault(drawing.name, []).append(len(shown))
            levels.append(networks.hf_levels(composed.image))
            shown.append(composed)
    levels = torch.from_numpy(numpy.stack(levels)).permute(0, 3, 1, 2)
    log(f"clip: {len(shown)} images of {len(numbers_of)} names")

    names = list(numbers_of)
    tokens = Tokens.hf()
    model.train()
    optimizer = optimizer_for(model, peak)
    for step in range(steps):
        chosen = generator.choice(len(names), CLIP_BATCH, replace=False)
        numbers = [int(generator.choice(numbers_of[names[index]])) for index in chosen]
        told = generator.random(len(numbers)) < DESCRIPTIVE_RATE
        captions = [
            composition.descriptive_caption(shown[number], generator)
            if tell
            else composition.caption(shown[number].drawing.name, generator)
            for number, tell in zip(numbers, told, strict=True)
        ]
        pixels = shifted(levels[numbers], generator) / 255
        # If the caption names the background or a degradation, the image stays as it is.
        plain = ~told
        if varied_rate < 1.0:
            plain &= generator.random(len(numbers)) < varied_rate
        plain = torch.from_numpy(plain)
        pixels[plain] = varied(pixels[plain])
        pixels = networks.normalise(pixels)
        kept = patches_at(step / steps, patches)
        with torch.autocast("cpu", torch.bfloat16):
            image = networks.image_features(model, pixels, kept)
            text = networks.text_features(model, tokens(captions))
        image = functional.normalize(image.float(), dim=-1)
        text = functional.normalize(text.float(), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
        target = torch.arange(len(numbers))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        update(model, optimizer, loss, learning_rate(step, steps, peak))
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(1) == target).float().mean()
            log(f"clip: step {step} loss {loss:.3f} right {right:.3f} scale {model.logit_scale.exp():.1f}")


def shifted(levels: torch.Tensor, generator: numpy.random.Generator) -> torch.Tensor:
    """The batch [B, 3, 64, 64] moved by up to three pixels, edges repeated."""
    padded = functional.pad(levels.float(), (3, 3, 3, 3), mode="replicate")
    top, left = generator.integers(0, 7, size=2)
    return padded[:, :, top : top + networks.IMAGE_SIZE, left : left + networks.IMAGE_SIZE]


def varied(values: torch.Tensor) -> torch.Tensor:
    """Each image of the batch [B, 3, 64, 64], randomly rotated, scaled, sheared and tinted a little."""
    count = len(values)

    def between(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape)

    angle, scale, shear = between(-0.3, 0.3), between(0.85, 1.2), between(-0.15, 0.15)
    stretch = between(0.85, 1.15)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cosine * stretch, shear - sine, between(-0.1, 0.1)], dim=1),
            torch.stack([sine, cosine / stretch, between(-0.1, 0.1)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, list(values.shape), align_corners=False)
    moved = functional.grid_sample(values, grid, padding_mode="border", align_corners=False)
    grey = moved.mean(1, keepdim=True)
    coloured = grey + between(0.3, 1.3, 1, 1, 1) * (moved - grey)
    return (coloured * between(0.8, 1.15, 3, 1, 1)).clamp(0, 1)


# 2 and 3. Preferences.


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two images, a caption, and the probability that the first one is preferred."""

    images: tuple[Composition, Composition]
    name: str  # what the caption names
    caption: str
    label: float


def quality_preference(drawings: dict[str, list], generator: numpy.random.Generator) -> Preference:
    """Clean over degraded, mild over severe, right over wrong; style and background do not count."""
    names = list(drawings)
    name, other = (names[index] for index in generator.choice(len(names), 2, replace=False))
    kind = generator.choice(("degraded", "severe", "wrong"), p=(0.60, 0.15, 0.25))

    def make(of: str, degraded: bool, degradation=None) -> Composition:
        drawing = drawings[of][int(generator.integers(len(drawings[of])))]
        return training_image(drawing, generator, degraded=degraded, kind=degradation)

    if kind == "degraded":
        better, worse = make(name, False), make(name, True)
    elif kind == "severe":
        degradation = str(generator.choice(composition.DEGRADATIONS))
        better, worse = sorted(
            (make(name, True, degradation), make(name, True, degradation)),
            key=lambda image: image.severity,
        )
    else:
        degraded = bool(generator.random() < 0.2)
        better, worse = make(name, degraded), make(other, degraded)
    caption = composition.caption(name, generator)
    if generator.random() < 0.5:
        return Preference((better, worse), name, caption, 1.0)
    return Preference((worse, better), name, caption, 0.0)


def annotator_preference(drawings: dict[str, list], generator: numpy.random.Generator) -> Preference:
    """A pair as the sample has them, labelled by a noisy annotator of average taste."""
    names = list(drawings)
    name, other = (names[index] for index in generator.choice(len(names), 2, replace=False))
    shown = []
    for _ in range(2):
        kind = generator.choice(("clean", "wrong", "degraded"), p=(0.60, 0.20, 0.20))
        choices = drawings[other if kind == "wrong" else name]
        drawing = choices[int(generator.integers(len(choices)))]
        shown.append(training_image(drawing, generator, degraded=kind == "degraded"))
    average = dict.fromkeys(composition.STYLES, 0.0)
    seen = [
        make_sample.utility(image, name, average)
        + float(generator.normal(0.0, make_sample.NOISE_STD))
        for image in shown
    ]
    label = make_sample.label_of(seen[0] - seen[1])
    return Preference((shown[0], shown[1]), name, composition.caption(name, generator), label)


def tune(clip: networks.CLIPModel, kind: str, schedule: Schedule, log) -> networks.CLIPModel:
    """A copy of clip tuned on preferences: softmax over the two logits, as PickScore and HPS do."""
    generator = numpy.random.default_rng((SEED, 2 if kind == "hps" else 3))
    drawings = training_drawings()
    if kind == "pickscore":
        # The annotator's taste is about these styles.
        drawings = [drawing for drawing in drawings if drawing.style in composition.STYLES]
    drawings = by_name(drawings)
    make = quality_preference if kind == "hps" else annotator_preference
    pairs = [make(drawings, generator) for _ in range(schedule.preference_pairs)]
    pixels = torch.stack([input_values(one, kind) for pair in pairs for one in pair.images])
    labels = torch.tensor([pair.label for pair in pairs])
    log(f"{kind}: {len(pairs)} pairs")

    tokens = Tokens.open_clip() if kind == "hps" else Tokens.hf()
    model = networks.new_clip()
    model.load_state_dict(clip.state_dict())
    model.train()
    optimizer = optimizer_for(model, PREFERENCE_LEARNING_RATE)
    order = numpy.empty(0, numpy.int64)
    for step in range(schedule.preference_steps):
        if len(order) < PREFERENCE_BATCH:
            order = generator.permutation(len(pairs))
        batch, order = torch.from_numpy(order[:PREFERENCE_BATCH]), order[PREFERENCE_BATCH:]
        both = torch.stack([2 * batch, 2 * batch + 1], dim=1).flatten()
        inputs = networks.normalise(shifted(pixels[both], generator))
        kept = patches_at(step / schedule.preference_steps, PREFERENCE_PATCHES)
        with torch.autocast("cpu", torch.bfloat16):
            image = networks.image_features(model, inputs, kept)
            text = networks.text_features(model, tokens([pairs[index].caption for index in batch]))
        image = functional.normalize(image.float(), dim=-1).view(len(batch), 2, -1)
        text = functional.normalize(text.float(), dim=-1)
        logits = model.logit_scale.exp() * (image * text[:, None]).sum(-1)
        target = torch.stack([labels[batch], 1 - labels[batch]], dim=1)
        loss = functional.cross_entropy(logits, target)
        rate = learning_rate(step, schedule.preference_steps, PREFERENCE_LEARNING_RATE)
        update(model, optimizer, loss, rate)
        if step % 50 == 0 or step == schedule.preference_steps - 1:
            decided = labels[batch] != 0.5
            right = ((logits[:, 0] > logits[:, 1]) == (labels[batch] > 0.5))[decided].float().mean()
            log(f"{kind}: step {step} loss {loss:.3f} right {right:.3f}")
    return model.eval()


def input_values(image: Composition, kind: str) -> torch.Tensor:
    """The recipe that the scorer uses, before normalisation: [3, 64, 64] in half precision."""
    if kind == "hps":
        return networks.hps_values(image.image).half()
    return torch.from_numpy(networks.hf_levels(image.image)).permute(2, 0, 1).div(255).half()


# 4. The aesthetic head.


def aesthetic_value(image: Composition, clean: Composition) -> float:
    """The clean image's colourfulness and contrast, less a penalty for degradation: 1 to 10.

    Colourfulness after Hasler and Suesstrunk (2003); contrast is the std of luminance.
    """
    values = numpy.asarray(clean.image, numpy.float64)
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    opponents = (red - green, 0.5 * (red + green) - blue)
    spread = math.hypot(*(float(one.std()) for one in opponents))
    mean = math.hypot(*(float(one.mean()) for one in opponents))
    colourfulness = spread + 0.3 * mean
    contrast = float((0.299 * red + 0.587 * green + 0.114 * blue).std())
    value = 2.5 + 4.5 * min(colourfulness / 90, 1) + 3.0 * min(contrast / 75, 1)
    return min(10.0, max(1.0, value - 2.5 * image.severity))


def aesthetic_image(drawing: composition.Drawing, generator: numpy.random.Generator):
    """An image, one in three degraded, with its aesthetic value."""
    clean = composition.compose(drawing, generator, varied=True)
    image = composition.degrade(clean, generator) if generator.random() < 0.33 else clean
    value = aesthetic_value(image, clean)
    data, _ = composition.encode(image.image, generator)
    return dataclasses.replace(image, image=networks.decode(data)), value


@torch.no_grad()
def clip_image_features(clip: networks.CLIPModel, levels: torch.Tensor) -> torch.Tensor:
    """Normalised features [N, D] of uint8 [N, 3, 64, 64], as they are when scored: in f32."""
    features = [
        networks.image_features(clip, networks.normalise(part.float() / 255))
        for part in levels.split(256)
    ]
    return functional.normalize(torch.cat(features), dim=-1)


def train_head(clip: networks.CLIPModel, schedule: Schedule, log) -> networks.AestheticHead:
    generator = numpy.random.default_rng((SEED, 4))
    levels, values = [], []
    for drawing in training_drawings():
        for _ in range(min(2, schedule.variants)):
            image, value = aesthetic_image(drawing, generator)
            levels.append(networks.hf_levels(image.image))
            values.append(value)
    features = clip_image_features(clip, torch.from_numpy(numpy.stack(levels)).permute(0, 3, 1, 2))
    targets = torch.tensor(values)
    log(f"aesthetic: {len(values)} images, mean {targets.mean():.2f}, std {targets.std():.2f}")

    head = networks.AestheticHead().train()
    with torch.no_grad():
        head.layers[-1].bias.fill_(float(targets.mean()))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    for step in range(schedule.head_steps):
        batch = torch.from_numpy(generator.integers(0, len(targets), HEAD_BATCH))
        loss = functional.mse_loss(head(features[batch]).flatten(), targets[batch])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule.head_steps, 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0 or step == schedule.head_steps - 1:
            log(f"aesthetic: step {step} squared error {loss:.3f}")
    return head.eval()


# The scorers of the paper, in its order.
PAPER = """\
# The four miniature reward models of the kinds of the paper, in its order.

[[scorer]]
name = "clip"
kind = "clip"
model = "clip"
layout = "transformers"
preprocess = "hf"
tokenizer = "hf"

[[scorer]]
name = "hps"
kind = "clip"
model = "hps"
layout = "open_clip"
weights = "open_clip_pytorch_model.pt"
preprocess = "hps"
hps_resize = "legacy"
tokenizer = "open_clip"

[[scorer]]
name = "pickscore"
kind = "clip"
model = "pickscore"
layout = "transformers"
preprocess = "hf"
tokenizer = "hf"

[[scorer]]
name = "aesthetic"
kind = "aesthetic"
model = "clip"
layout = "transformers"
head = "aesthetic/linear-mse.pth"
preprocess = "hf"
"""
SCORERS = (
    PAPER.replace(
        "# The four miniature reward models of the kinds of the paper, in its order.",
        "# The five miniature reward models, in the published layouts.",
    )
    + """
[[scorer]]
name = "image_reward"
kind = "image-reward"
model = "image-reward"
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES,
        help="what to train; the later ones start from data/mini/clip",
    )
    arguments = parser.parse_args()
    schedule = QUICK if arguments.quick else Schedule()

    torch.set_num_threads(THREADS)
    start = time.monotonic()

    def log(message: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {message}", flush=True)

    for folder in ("aesthetic", "hps"):
        (MINI / folder).mkdir(parents=True, exist_ok=True)
    (MINI / "scorers.toml").write_text(SCORERS)
    (MINI / "paper.toml").write_text(PAPER)
    for number, stage in enumerate(STAGES):
        if stage not in arguments.stages:
            continue
        torch.manual_seed(SEED + number)
        if stage == "clip":
            networks.save_transformers(train_clip(schedule, log), MINI / "clip")
            continue
        clip = networks.load_transformers(MINI / "clip")
        if stage == "aesthetic":
            head = train_head(clip, schedule, log)
            torch.save(head.state_dict(), MINI / "aesthetic" / "linear-mse.pth")
        elif stage == "pickscore":
            networks.save_transformers(tune(clip, stage, schedule, log), MINI / "pickscore")
        else:
            networks.save_open_clip(tune(clip, stage, schedule, log), MINI / "hps")
    log("done")


if __name__ == "__main__":
    main()
