"""Train the miniature image-reward and write data/mini/image-reward, in the layout of ImageReward-v1.0.

1. Vision: the tower of data/mini/clip, its tensors rewritten for BLIP's (timm's ViT, heads of 64
   numbers, no normalisation before the blocks). It is not trained further.
2. Matching, as BLIP is pretrained: BERT reads captions alone, compared with images (contrastive), and
   with the image, to say whether they belong together. The second begins in the space of the first.
3. Preferences of the noisy annotator of make_sample.py, as ImageReward is trained: of two images of a
   caption, the preferred one gets the higher score.

It uses only drawings of the splits "train" and "shared". About four minutes on two cores (`--threads 2`).
"""

import argparse
import dataclasses
import json
import math
import sys
import time

import composition
import make_sample
import networks
import numpy
import torch
import train_models
from composition import MINI
from tokenizers import normalizers, pre_tokenizers
from torch.nn import functional
from transformers import CLIPModel

sys.path.insert(0, str(composition.ROOT / "scripts" / "parity"))
import image_reward  # noqa: E402

SEED = 17
FOLDER = MINI / "image-reward"

# The tower of clip has heads of 32 numbers and BLIP's have 64, so each keeps half of its numbers at
# zero, and the stream is twice as wide. One more block stands for the normalisation before the others.
VISION = {
    "img_size": networks.IMAGE_SIZE,
    "patch_size": networks.VISION["patch_size"],
    "embed_dim": 2 * networks.VISION["width"],
    "depth": networks.VISION["layers"] + 1,
    "mlp_ratio": 2.0,
}
# How large the embeddings are that stay in the stream beside their normalised form.
REMNANT = 0.05
TEXT = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "initializer_range": 0.06,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "encoder_width": 128,
    "add_cross_attention": True,
}
HEAD = (64, 32, 16, 8)
JOINT = 128

VARIANTS = 2  # composed images per drawing for the matching
PREFERENCE_VARIANTS = 8  # and for the preferences
CONTRASTIVE_BATCH = 224
MATCHING_BATCH = 96
PREFERENCE_BATCH = 96
# How many of 64 patches BERT sees of an image in training, besides the class token.
PATCHES = 16
PEAK = 1.5e-3
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary() -> list[str]:
    """BERT's special tokens, letters and marks, and the words of all captions."""
    normalizer = normalizers.BertNormalizer()
    words: dict[str, None] = {}
    texts = [*composition.names(), *composition.TEMPLATES, *composition.BACKGROUNDS]
    texts += [*composition.DEGRADATION_WORDS.values(), "a clear picture of an on background the in with"]
    for text in texts:
        text = normalizer.normalize_str(text.replace("{", " ").replace("}", " "))
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
            words.setdefault(word)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~’“”"
    known = [*SPECIALS, *marks, *letters, *(f"##{letter}" for letter in letters), "##s"]
    return [*known, *(word for word in words if word not in known)]


# The vision tower.


def vision_tower(clip: CLIPModel) -> dict[str, torch.Tensor]:
    """clip's vision tower as tensors of BLIP's: the stream holds clip's twice, side by side.

    A normalisation over both copies is that over one. The first block replaces the embeddings by their
    normalised form: gelu(x) - gelu(-x) = x lets an MLP pass on what it reads.
    """
    source = {name: tensor.detach() for name, tensor in clip.vision_model.state_dict().items()}
    width, heads = networks.VISION["width"], networks.VISION["heads"]
    half = width // heads

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        """Both copies of rows."""
        return torch.cat([tensor, tensor])

    def reading(weight: torch.Tensor) -> torch.Tensor:
        """A weight that reads the first copy."""
        return torch.cat([weight, torch.zeros_like(weight)], dim=1)

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        """Rows of heads of 32 numbers as rows of heads of 64."""
        rest = tensor.shape[1:]
        split = tensor.view(heads, half, *rest)
        return torch.cat([split, torch.zeros_like(split)], dim=1).reshape(2 * width, *rest)

    embeddings = "embeddings."
    result = {
        "cls_token": REMNANT * twice(source[embeddings + "class_embedding"]).view(1, 1, -1),
        "pos_embed": REMNANT * twice(source[embeddings + "position_embedding.weight"].T).T[None],
        "patch_embed.proj.weight": REMNANT * twice(source[embeddings + "patch_embedding.weight"]),
        "patch_embed.proj.bias": torch.zeros(2 * width),
    }
    hidden = 4 * width
    pass_on = torch.zeros(hidden, 2 * width)
    pass_on[:width, :width] = torch.eye(width)
    pass_on[width : 2 * width, :width] = -torch.eye(width)
    back = torch.zeros(width, hidden)
    back[:, :width], back[:, width : 2 * width] = torch.eye(width), -torch.eye(width)
    result |= {
        "blocks.0.norm1.weight": torch.ones(2 * width),
        "blocks.0.norm1.bias": torch.zeros(2 * width),
        "blocks.0.attn.qkv.weight": torch.zeros(6 * width, 2 * width),
        "blocks.0.attn.qkv.bias": torch.zeros(6 * width),
        "blocks.0.attn.proj.weight": torch.zeros(2 * width, 2 * width),
        "blocks.0.attn.proj.bias": torch.zeros(2 * width),
        "blocks.0.norm2.weight": twice(source["pre_layrnorm.weight"]),
        "blocks.0.norm2.bias": twice(source["pre_layrnorm.bias"]),
        "blocks.0.mlp.fc1.weight": pass_on,
        "blocks.0.mlp.fc1.bias": torch.zeros(hidden),
        "blocks.0.mlp.fc2.weight": twice(back),
        "blocks.0.mlp.fc2.bias": torch.zeros(2 * width),
    }
    for layer in range(networks.VISION["layers"]):
        old, new = f"encoder.layers.{layer}.", f"blocks.{layer + 1}."
        for target, origin in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
            for kind in ("weight", "bias"):
                result[f"{new}{target}.{kind}"] = twice(source[f"{old}{origin}.{kind}"])
        # Wider heads divide by a larger root.
        factors = {"q": math.sqrt(2), "k": 1.0, "v": 1.0}
        for kind in ("weight", "bias"):
            parts = []
            for name, factor in factors.items():
                part = source[f"{old}self_attn.{name}_proj.{kind}"]
                parts.append(factor * spread(reading(part) if kind == "weight" else part))
            result[f"{new}attn.qkv.{kind}"] = torch.cat(parts)
        out = source[old + "self_attn.out_proj.weight"]
        result[new + "attn.proj.weight"] = twice(spread(out.T.contiguous()).T)
        result[new + "attn.proj.bias"] = twice(source[old + "self_attn.out_proj.bias"])
        result[new + "mlp.fc1.weight"] = reading(source[old + "mlp.fc1.weight"])
        result[new + "mlp.fc1.bias"] = source[old + "mlp.fc1.bias"]
        for kind in ("weight", "bias"):
            result[f"{new}mlp.fc2.{kind}"] = twice(source[f"{old}mlp.fc2.{kind}"])
    for kind in ("weight", "bias"):
        result[f"norm.{kind}"] = twice(source[f"post_layernorm.{kind}"])
    return result


@torch.no_grad()
def tokens_of(clip: CLIPModel, images: list[composition.Composition]) -> torch.Tensor:
    """What the tower makes of images, one copy: f16 [N, 65, 128]."""
    tower, result = clip.vision_model, []
    for start in range(0, len(images), 128):
        levels = numpy.stack([networks.hf_levels(one.image) for one in images[start : start + 128]])
        pixels = networks.normalise(torch.from_numpy(levels).permute(0, 3, 1, 2) / 255)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tower.embeddings(pixels))).last_hidden_state
        result.append(tower.post_layernorm(hidden.float()).half())
    return torch.cat(result)


# Training.


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long each part takes."""

    contrastive_steps: int = 300
    matching_steps: int = 500
    preference_steps: int = 500
    preference_variants: int = PREFERENCE_VARIANTS


QUICK = Schedule(contrastive_steps=10, matching_steps=10, preference_steps=10, preference_variants=4)


class Reader(torch.nn.Module):
    """The network without its vision tower, with the projections of the contrastive loss."""

    def __init__(self, model: image_reward.ImageReward, clip: CLIPModel) -> None:
        super().__init__()
        self.model = model
        self.text_proj = torch.nn.Linear(TEXT["hidden_size"], JOINT)
        self.vision_proj = torch.nn.Linear(VISION["embed_dim"], JOINT)
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(20.0)))
        with torch.no_grad():
            projection = clip.visual_projection.weight
            self.vision_proj.weight.copy_(torch.cat([projection, torch.zeros_like(projection)], dim=1))
            self.vision_proj.bias.zero_()

    def captions(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model.blip.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return functional.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def images(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.vision_proj(tokens[:, 0]), dim=-1)


class Captions:
    """Captions to ids and masks, padded to the longest of a batch."""

    def __init__(self) -> None:
        self.tokenizer = image_reward.tokenizer(FOLDER)
        self.known: dict[str, list[int]] = {}

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        for caption in captions:
            if caption not in self.known:
                limit = image_reward.CONTEXT_LENGTH
                self.known[caption] = self.tokenizer(caption, truncation=True, max_length=limit)["input_ids"]
        rows = [self.known[caption] for caption in captions]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return ids, mask


def kept(tokens: torch.Tensor) -> torch.Tensor:
    """The class token and some patches of each image, in both copies: f32 [B, 1 + PATCHES, 256]."""
    order = torch.rand(tokens.shape[0], tokens.shape[1] - 1).argsort(dim=1)[:, :PATCHES]
    places = torch.cat([torch.zeros(len(order), 1, dtype=order.dtype), 1 + order], dim=1)
    chosen = tokens.float().gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat([chosen, chosen], dim=-1)


def optimizer_for(reader: Reader) -> torch.optim.AdamW:
    trained = [
        one
        for name, one in reader.named_parameters()
        if one.requires_grad and "visual_encoder" not in name
    ]
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": 0.05},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), fused=True)


def update(reader: Reader, optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
    optimizer.step()


def contrastive_loss(
    reader: Reader, captions: Captions, tokens: torch.Tensor, texts: list[str], others: list[str]
) -> torch.Tensor:
    """BLIP's first loss: which caption belongs to which image. `others` belong to none."""
    scale = reader.logit_scale.exp().clamp(max=50.0)
    logits = scale * reader.images(tokens) @ reader.captions(*captions([*texts, *others])).T
    target = torch.arange(len(texts))
    to_images = functional.cross_entropy(logits[:, : len(texts)].T, target)
    return (functional.cross_entropy(logits, target) + to_images) / 2


@torch.no_grad()
def start_matching(reader: Reader, tokens: torch.Tensor) -> None:
    """Lets the last cross-attention begin with the class token, as the contrastive loss sees it: added to
    a caption that it fits, it makes a longer vector than added to one that it does not."""
    block = reader.model.blip.text_encoder.encoder.layer[-1].crossattention
    heads, width = TEXT["num_attention_heads"], TEXT["hidden_size"]
    seen = torch.cat([tokens, tokens], dim=-1).float()
    classes, patches = seen[:, 0], seen[:, 1:].mean(1)
    apart = classes.mean(0) - patches.mean(0)
    size = width // heads
    for head in range(heads):
        block.self.key.weight[head * size] = apart / apart.square().sum()
        block.self.query.weight[head * size] = 0
        block.self.query.bias[head * size] = 5 * math.sqrt(size)
    block.self.value.weight.copy_(reader.vision_proj.weight)
    block.self.value.bias.copy_(reader.vision_proj.bias)
    block.output.dense.weight.copy_(reader.text_proj.weight.T)
    length = block.output.dense(block.self.value(classes)).norm(dim=-1).mean()
    block.output.dense.weight.mul_(0.7 * math.sqrt(width) / length)


def matching_loss(
    reader: Reader, captions: Captions, tokens: torch.Tensor, texts: list[str], others: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """BLIP's second loss: does a caption belong to an image; and how often the answer is right."""
    ids, mask = captions([*texts, *others])
    scores = reader.model.read(torch.cat([tokens, tokens]), ids, mask)
    belongs = torch.cat([torch.ones(len(texts)), torch.zeros(len(others))])
    right = ((scores > 0) == (belongs > 0.5)).float().mean()
    return functional.binary_cross_entropy_with_logits(scores, belongs), right


class Matching:
    """Composed images by name."""

    def __init__(self, clip: CLIPModel) -> None:
        self.generator = numpy.random.default_rng((SEED, 1))
        shown = [
            train_models.training_image(drawing, self.generator, degraded=number % 4 == 3)
            for number, drawing in enumerate(train_models.training_drawings() * VARIANTS)
        ]
        self.tokens = tokens_of(clip, shown)
        self.numbers_of: dict[str, list[int]] = {}
        for number, one in enumerate(shown):
            self.numbers_of.setdefault(one.drawing.name, []).append(number)

    def batch(self, size: int) -> tuple[torch.Tensor, list[str], list[str]]:
        """Tokens of images, a caption for each, and as many captions that belong to none of them."""
        names = list(self.numbers_of)
        chosen = [names[index] for index in self.generator.choice(len(names), 2 * size, replace=False)]
        numbers = [int(self.generator.choice(self.numbers_of[name])) for name in chosen[:size]]
        texts = [composition.caption(name, self.generator) for name in chosen]
        return kept(self.tokens[numbers]), texts[:size], texts[size:]


def train_matching(reader: Reader, captions: Captions, data: Matching, schedule: Schedule, log) -> None:
    contrastive, steps = schedule.contrastive_steps, schedule.matching_steps
    optimizer = optimizer_for(reader)
    for step in range(contrastive):
        loss = contrastive_loss(reader, captions, *data.batch(CONTRASTIVE_BATCH))
        update(reader, optimizer, loss, train_models.learning_rate(step, contrastive, PEAK))
        if step % 50 == 0 or step == contrastive - 1:
            log(f"contrastive: step {step} loss {loss:.3f}")
    start_matching(reader, data.tokens[::10])
    optimizer = optimizer_for(reader)
    for step in range(steps):
        batch = data.batch(MATCHING_BATCH)
        matching, right = matching_loss(reader, captions, *batch)
        loss = 2 * matching + contrastive_loss(reader, captions, *batch)
        update(reader, optimizer, loss, train_models.learning_rate(step, steps, PEAK))
        if step % 50 == 0 or step == steps - 1:
            log(f"matching: step {step} loss {matching:.3f} right {right:.3f}")


class Preferences:
    """Composed images of the sample's styles, paired anew for each step as train_models.py's
    annotator_preference pairs them, with new noise of the annotator."""

    def __init__(self, clip: CLIPModel, variants: int) -> None:
        self.generator = numpy.random.default_rng((SEED, 2))
        drawings = [one for one in train_models.training_drawings() if one.style in composition.STYLES]
        self.shown = [
            train_models.training_image(drawing, self.generator, degraded=number % 4 == 3)
            for drawing in drawings
            for number in range(variants)
        ]
        self.tokens = tokens_of(clip, self.shown)
        self.clean: dict[str, list[int]] = {}
        self.degraded: dict[str, list[int]] = {}
        for number, one in enumerate(self.shown):
            side = self.clean if one.degradation == "none" else self.degraded
            side.setdefault(one.drawing.name, []).append(number)

    def batch(self, size: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Tokens of first and second images, captions, and labels."""
        names = list(self.clean)
        numbers, captions, labels = [[], []], [], []
        average = dict.fromkeys(composition.STYLES, 0.0)
        for _ in range(size):
            name, other = (names[index] for index in self.generator.choice(len(names), 2, replace=False))
            seen = []
            for side in numbers:
                kind = self.generator.choice(("clean", "wrong", "degraded"), p=(0.60, 0.20, 0.20))
                pool = self.degraded if kind == "degraded" else self.clean
                side.append(int(self.generator.choice(pool[other if kind == "wrong" else name])))
                utility = make_sample.utility(self.shown[side[-1]], name, average)
                seen.append(utility + float(self.generator.normal(0.0, make_sample.NOISE_STD)))
            captions.append(composition.caption(name, self.generator))
            labels.append(make_sample.label_of(seen[0] - seen[1]))
        return kept(self.tokens[numbers[0] + numbers[1]]), captions, torch.tensor(labels)


def train_preferences(
    reader: Reader, captions: Captions, clip: CLIPModel, matching: Matching, schedule: Schedule, log
) -> None:
    data = Preferences(clip, schedule.preference_variants)
    log(f"preferences: {len(data.shown)} images")
    optimizer = optimizer_for(reader)
    for step in range(schedule.preference_steps):
        tokens, texts, labels = data.batch(PREFERENCE_BATCH)
        ids, mask = captions(texts)
        scores = reader.model.read(tokens, torch.cat([ids, ids]), torch.cat([mask, mask])).view(2, -1)
        difference = scores[0] - scores[1]
        loss = functional.binary_cross_entropy_with_logits(difference, labels)
        # The scores as a whole stay near 0, which the differences do not fix. What belongs together is still
        # trained.
        loss = loss + 0.01 * scores.mean().square()
        loss = loss + 0.5 * matching_loss(reader, captions, *matching.batch(MATCHING_BATCH // 2))[0]
        rate = train_models.learning_rate(step, schedule.preference_steps, PEAK / 3)
        update(reader, optimizer, loss, rate)
        if step % 50 == 0 or step == schedule.preference_steps - 1:
            decided = labels != 0.5
            right = ((difference > 0) == (labels > 0.5))[decided].float().mean()
            log(f"preferences: step {step} loss {loss:.3f} right {right:.3f}")


@torch.no_grad()
def held_out_agreement(reader: Reader, captions: Captions, clip: CLIPModel) -> float:
    """Agreement with the annotator's utility on held-out drawings, if it differs by a tie's width or
    more; evaluate_models.py measures it on other pairs and with the saved files."""
    generator = numpy.random.default_rng((SEED, 3))
    drawings = [one for one in composition.drawings() if one.split in ("sample", "held_out")]
    drawings = train_models.by_name(drawings)
    made = [train_models.annotator_preference(drawings, generator) for _ in range(500)]
    tokens = tokens_of(clip, [image for pair in made for image in pair.images]).float()
    ids, mask = captions([pair.caption for pair in made for _ in range(2)])
    parts = zip(tokens.split(100), ids.split(100), mask.split(100))
    scores = torch.cat([reader.model.read(torch.cat([part, part], dim=-1), *text) for part, *text in parts])
    average = dict.fromkeys(composition.STYLES, 0.0)
    right = []
    for pair, (first, second) in zip(made, scores.view(-1, 2).tolist(), strict=True):
        one, other = (make_sample.utility(image, pair.name, average) for image in pair.images)
        if abs(one - other) >= make_sample.TIE_THRESHOLD:
            right.append((first >= second) == (one > other))
    return float(numpy.mean(right))


def save(reader: Reader) -> None:
    """ImageReward.pt, a plain state dict with the published keys in f16."""
    state = reader.model.published()
    for name in ("vision_proj", "text_proj"):
        for kind, tensor in getattr(reader, name).state_dict().items():
            state[f"blip.{name}.{kind}"] = tensor.detach()
    positions = torch.arange(TEXT["max_position_embeddings"]).expand(1, -1).clone()
    state["blip.text_encoder.embeddings.position_ids"] = positions
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(half, FOLDER / "ImageReward.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--threads", type=int, default=train_models.THREADS)
    arguments = parser.parse_args()
    schedule = QUICK if arguments.quick else Schedule()
    torch.set_num_threads(arguments.threads)
    start = time.monotonic()

    def log(message: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {message}", flush=True)

    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary()), encoding="utf-8")
    captions = Captions()
    text = TEXT | {"vocab_size": len(captions.tokenizer)}
    (FOLDER / "med_config.json").write_text(json.dumps(text, indent=2) + "\n")
    clip = networks.load_transformers(MINI / "clip")
    torch.manual_seed(SEED)
    model = image_reward.ImageReward(VISION, text, HEAD)
    model.blip.visual_encoder.load_state_dict(vision_tower(clip), strict=True)
    check = torch.randn(4, 3, networks.IMAGE_SIZE, networks.IMAGE_SIZE)
    with torch.no_grad():
        tower = clip.vision_model
        hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tower.embeddings(check))).last_hidden_state
        apart = (model.image_tokens(check)[..., : hidden.shape[-1]] - tower.post_layernorm(hidden)).abs().max()
    log(f"vision: largest difference of a token {apart:.3f}, vocabulary {text['vocab_size']}")
    reader = Reader(model, clip)
    matching = Matching(clip)
    log(f"matching: {len(matching.tokens)} images of {len(matching.numbers_of)} names")
    train_matching(reader, captions, matching, schedule, log)
    train_preferences(reader, captions, clip, matching, schedule, log)
    reader.eval()
    log(f"held-out pairs: {held_out_agreement(reader, captions, clip):.3f} right")
    save(reader)
    log("done")


if __name__ == "__main__":
    main()
