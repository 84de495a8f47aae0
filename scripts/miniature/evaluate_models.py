"""Measure data/mini on held-out images and on data/sample; write report.json and golden_scores.json.

Held out are drawings (a name in one style) of the splits "sample" and "held_out" of composition.py: none of
them is part of a training image, but the models know the name from its other styles. transformers,
open_clip and timm compute the scores in f32 from the saved folders. Exits with 1 if a bound does not hold.
"""

import io
import itertools
import json
import pathlib
import sys

import composition
import make_sample
import networks
import numpy
import open_clip
import pyarrow.parquet
import torch
import train_models
from composition import MINI, SAMPLE
from PIL import Image
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
import image_reward  # noqa: E402

SEED = 23
SCORERS = ("clip", "hps", "pickscore", "aesthetic", "image_reward")
CANDIDATES = 20
PAIRS = 1_000
GOLDEN_PAIRS = 16
# Pairs of images whose aesthetic values differ by less are not counted.
AESTHETIC_MARGIN = 0.5

# The bounds.
LEAST_RETRIEVAL = 0.80
LEAST_AGREEMENT = 0.80
MOST_PAIRWISE_AGREEMENT = 0.95


class TransformersModel:
    """A folder in the transformers layout, through its own files alone."""

    def __init__(self, name: str) -> None:
        self.model = CLIPModel.from_pretrained(MINI / name, dtype=torch.float32).eval()
        self.processor = CLIPImageProcessorPil.from_pretrained(MINI / name)
        self.tokenizer = AutoTokenizer.from_pretrained(MINI / name)

    def token_ids(self, caption: str) -> list[int]:
        return self.tokenizer(caption, truncation=True, max_length=networks.CONTEXT_LENGTH)["input_ids"]

    def image(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.cat([self.processor(one, return_tensors="pt")["pixel_values"] for one in images])
        return normalised(self.model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(64))

    def text(self, captions: list[str]) -> torch.Tensor:
        return normalised(
            self.model.get_text_features(input_ids=torch.tensor([self.token_ids(caption)])).pooler_output
            for caption in captions
        )


class OpenClipModel:
    """A folder in the open_clip layout."""

    def __init__(self, name: str) -> None:
        config = json.loads((MINI / name / "open_clip_config.json").read_text())["model_cfg"]
        self.model = open_clip.CLIP(
            config["embed_dim"],
            open_clip.CLIPVisionCfg(**config["vision_cfg"]),
            open_clip.CLIPTextCfg(**config["text_cfg"]),
        ).eval()
        saved = torch.load(MINI / name / "open_clip_pytorch_model.pt", weights_only=True)
        # The file is fp16, the model f32: copying converts.
        self.model.load_state_dict(saved["state_dict"], strict=True)
        self.tokenizer = networks.open_clip_tokenizer(MINI / name)

    def token_ids(self, caption: str) -> list[int]:
        ids = self.tokenizer(caption)[0].tolist()
        return ids[: ids.index(self.tokenizer.eot_token_id) + 1]

    def image(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([networks.normalise(networks.hps_values(one)) for one in images])
        return normalised(self.model.encode_image(part) for part in pixels.split(64))

    def text(self, captions: list[str]) -> torch.Tensor:
        return normalised(self.model.encode_text(self.tokenizer(caption)) for caption in captions)


class ImageRewardModel:
    """The folder in ImageReward's layout."""

    def __init__(self) -> None:
        folder = MINI / "image-reward"
        self.model = image_reward.open_folder(folder)
        self.tokenizer = image_reward.tokenizer(folder)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        # ImageReward's `_transform` is open_clip's.
        self.transform = open_clip.image_transform(networks.IMAGE_SIZE, is_train=False, mean=mean, std=std)

    def scores(self, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
        pixels = torch.stack([self.transform(image) for image in images])
        ids, mask = image_reward.tokenize(self.tokenizer, captions)
        return torch.cat([self.model(*part) for part in zip(pixels.split(64), ids.split(64), mask.split(64))])


def normalised(parts) -> torch.Tensor:
    return functional.normalize(torch.cat(list(parts)), dim=-1)


class World:
    """The five scorers."""

    def __init__(self) -> None:
        self.clip = TransformersModel("clip")
        self.hps = OpenClipModel("hps")
        self.pickscore = TransformersModel("pickscore")
        self.head = networks.AestheticHead().eval()
        state = torch.load(MINI / "aesthetic" / "linear-mse.pth", weights_only=True)
        self.head.load_state_dict(state, strict=True)
        self.image_reward = ImageRewardModel()

    def scores(self, images: list[Image.Image], captions: list[str]) -> dict[str, numpy.ndarray]:
        """One score per scorer for every image with its caption."""
        result = {}
        distinct = list(dict.fromkeys(captions))
        place = [distinct.index(caption) for caption in captions]
        for name in ("clip", "hps", "pickscore"):
            model = getattr(self, name)
            features = model.image(images)
            result[name] = (features * model.text(distinct)[place]).sum(-1).numpy()
            if name == "clip":
                result["aesthetic"] = self.head(features).flatten().numpy()
        result["image_reward"] = self.image_reward.scores(images, captions).numpy()
        return result


def held_out() -> list[composition.Drawing]:
    return [drawing for drawing in composition.drawings() if drawing.split in ("sample", "held_out")]


def rate(hits) -> float:
    return round(float(numpy.mean(hits)), 4)


def unfamiliar(image: composition.Composition, generator: numpy.random.Generator) -> Image.Image:
    """The image degraded in a way that training never used: large pixels, or darkness."""
    if generator.random() < 0.5:
        small = image.image.resize((30, 30), Image.Resampling.BOX)
        return small.resize(image.image.size, Image.Resampling.NEAREST)
    return image.image.point(lambda level: round(0.55 * level))


def retrieval(world: World, generator: numpy.random.Generator) -> dict[str, float]:
    """How often the right caption of 20 has the highest cosine, by kind of image."""
    names = composition.names()
    text = world.clip.text([f"a picture of {composition.article(name)} {name}" for name in names])
    seen = [one for one in train_models.training_drawings() if one.style in composition.STYLES][::3]

    def clean(drawing: composition.Drawing) -> composition.Composition:
        return train_models.training_image(drawing, generator, degraded=False)

    def degraded(drawing: composition.Drawing) -> composition.Composition:
        return train_models.training_image(drawing, generator, degraded=True)

    sets = {
        "new_images": (seen, [clean(one).image for one in seen]),
        "new_images_of_untrained_degradations": (
            seen,
            [unfamiliar(clean(one), generator) for one in seen],
        ),
        "new_drawings": (held_out(), [clean(one).image for one in held_out()]),
        "new_drawings_degraded": (held_out(), [degraded(one).image for one in held_out()]),
    }
    result = {}
    for label, (drawings, images) in sets.items():
        cosines = (world.clip.image(images) @ text.T).numpy()
        hits = []
        for row, drawing in enumerate(drawings):
            right = names.index(drawing.name)
            others = numpy.delete(numpy.arange(len(names)), right)
            for _ in range(10):
                chosen = generator.choice(others, CANDIDATES - 1, replace=False)
                hits.append(cosines[row, right] > cosines[row, chosen].max())
        result[label] = rate(hits)
    return result


def preferences(world: World, kind: str, generator: numpy.random.Generator) -> dict[str, float]:
    """Agreement of a preference model with its training target, on held-out drawings."""
    drawings = train_models.by_name(held_out())
    if kind == "hps":
        pairs = [train_models.quality_preference(drawings, generator) for _ in range(PAIRS)]
    else:
        pairs = [train_models.annotator_preference(drawings, generator) for _ in range(PAIRS)]
    images = [image.image for pair in pairs for image in pair.images]
    captions = [pair.caption for pair in pairs for _ in range(2)]
    scores = world.scores(images, captions)[kind].reshape(-1, 2)
    votes = scores[:, 0] >= scores[:, 1]
    labels = numpy.array([pair.label for pair in pairs])
    if kind == "hps":
        return {"agreement": rate(votes == (labels == 1.0))}
    average = dict.fromkeys(composition.STYLES, 0.0)
    differences = []
    for pair in pairs:
        first, second = (make_sample.utility(one, pair.name, average) for one in pair.images)
        differences.append(first - second)
    differences = numpy.array(differences)
    clear = numpy.abs(differences) >= make_sample.TIE_THRESHOLD
    decided = labels != 0.5
    return {
        "agreement": rate((votes == (differences > 0))[clear]),
        "agreement_with_noisy_labels": rate((votes == (labels == 1.0))[decided]),
        "noisy_labels_with_property": rate(((labels == 1.0) == (differences > 0))[decided & clear]),
    }


def aesthetics(world: World, generator: numpy.random.Generator) -> dict[str, float]:
    """Agreement of the head with the order of aesthetic values."""
    composed = [train_models.aesthetic_image(one, generator) for one in held_out() for _ in range(2)]
    values = numpy.array([value for _, value in composed])
    features = world.clip.image([image.image for image, _ in composed])
    scores = world.head(features).flatten().numpy()
    first, second = generator.integers(0, len(values), (2, 20_000))
    differ = numpy.abs(values[first] - values[second]) >= AESTHETIC_MARGIN
    agree = (scores[first] >= scores[second]) == (values[first] >= values[second])
    return {
        "agreement": rate(agree[differ]),
        "correlation": round(float(numpy.corrcoef(scores, values)[0, 1]), 4),
    }


def sample_rows() -> list[dict]:
    rows = []
    for path in sorted(SAMPLE.glob("*.parquet")):
        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
            rows.append(row | {"file": path.name, "row": number})
    return rows


def on_sample(world: World) -> tuple[dict, dict]:
    """Votes and agreements on data/sample, and the golden scores of some of its pairs."""
    rows = sample_rows()
    # In their own modes, as ImageReward resizes them; the others make them RGB first.
    images = [Image.open(io.BytesIO(row[column])) for row in rows for column in ("jpg_0", "jpg_1")]
    captions = [row["caption"] for row in rows for _ in range(2)]
    scores = {name: value.reshape(-1, 2) for name, value in world.scores(images, captions).items()}
    votes = {name: numpy.where(scores[name][:, 0] >= scores[name][:, 1], 1, -1) for name in SCORERS}
    consensus = numpy.sign(sum(votes.values()))
    labels = numpy.array([row["label_0"] for row in rows])
    decided = labels != 0.5
    human = numpy.where(labels == 1.0, 1, -1)
    report = {
        "pairs": len(rows),
        "pairwise_agreement": {
            f"{one} {other}": rate(votes[one] == votes[other])
            for one, other in itertools.combinations(SCORERS, 2)
        },
        "agreement_with_human": {
            name: rate((votes[name] == human)[decided]) for name in SCORERS
        },
        "consensus_ties": rate(consensus == 0),
        "consensus_agreement_with_human": rate((consensus == human)[decided & (consensus != 0)]),
        "human_ties": rate(~decided),
        "score_mean": {name: round(float(scores[name].mean()), 4) for name in SCORERS},
        "score_std": {name: round(float(scores[name].std()), 4) for name in SCORERS},
    }
    golden = []
    for number in range(0, len(rows), len(rows) // GOLDEN_PAIRS):
        row = rows[number]
        golden.append(
            {
                "file": row["file"],
                "row": row["row"],
                "ranking_id": row["ranking_id"],
                "caption": row["caption"],
                "image_0_uid": row["image_0_uid"],
                "image_1_uid": row["image_1_uid"],
                "formats": [file_format(row[column]) for column in ("jpg_0", "jpg_1")],
                "hf_ids": world.clip.token_ids(row["caption"]),
                "open_clip_ids": world.hps.token_ids(row["caption"]),
                "scores": {name: [float(one) for one in scores[name][number]] for name in SCORERS},
            }
        )
    libraries = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    return report, {"dtype": "f32", "libraries": libraries, "pairs": golden}


def file_format(data: bytes) -> str:
    """jpeg, png, or webp with its coding."""
    if data[:2] == b"\xff\xd8":
        return "jpeg"
    if data[:4] == b"\x89PNG":
        return "png"
    return "webp lossless" if data[12:16] == b"VP8L" else "webp lossy"


@torch.inference_mode()
def main() -> int:
    torch.set_num_threads(train_models.THREADS)
    world = World()
    report = {
        "retrieval_of_20": retrieval(world, numpy.random.default_rng((SEED, 1))),
        "hps_quality": preferences(world, "hps", numpy.random.default_rng((SEED, 2))),
        "pickscore_annotator": preferences(world, "pickscore", numpy.random.default_rng((SEED, 3))),
        "aesthetic_value": aesthetics(world, numpy.random.default_rng((SEED, 4))),
        "image_reward_annotator": preferences(world, "image_reward", numpy.random.default_rng((SEED, 5))),
    }
    report["sample"], golden = on_sample(world)
    bounds = {
        "retrieval of 20, held out": report["retrieval_of_20"]["new_drawings"] >= LEAST_RETRIEVAL,
        "hps, held out": report["hps_quality"]["agreement"] >= LEAST_AGREEMENT,
        "pickscore, held out": report["pickscore_annotator"]["agreement"] >= LEAST_AGREEMENT,
        "aesthetic, held out": report["aesthetic_value"]["agreement"] >= LEAST_AGREEMENT,
        "image_reward, held out": report["image_reward_annotator"]["agreement"] >= LEAST_AGREEMENT,
        "no two scorers alike": max(report["sample"]["pairwise_agreement"].values())
        <= MOST_PAIRWISE_AGREEMENT,
    }
    report["bounds_hold"] = bounds
    file = MINI / "report.json"
    if file.exists():
        # What evaluate_diffusion.py measured stays until it measures again.
        before = json.loads(file.read_text())
        report |= {name: before[name] for name in ("diffusion",) if name in before}
        report["bounds_hold"] = before.get("bounds_hold", {}) | bounds
    text = json.dumps(report, indent=2)
    print(text)
    file.write_text(text + "\n")
    (MINI / "golden_scores.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(bounds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
