"""Make data/sample: image pairs in Pick-a-Pic's layout (v2 columns), with human-like labels.

Simulated people work at the same time. Each has one caption and two images, states a preference, keeps
the winner and receives a new challenger, two to five times, as in the real collection; so images
recur across pairs. The label comes from a noisy annotator described in data/README.md.

The images are composed from drawings of the splits "sample", which no model of data/mini has been
trained on, and "shared", which appear in training in other compositions (see composition.py).
"""

import csv
import datetime
import uuid

import composition
import numpy
import pyarrow
import pyarrow.parquet
from composition import SAMPLE, Composition

SEED = 7
PAIRS = 480
FILES = 3
ROWS_PER_GROUP = 64
CONCURRENT_PEOPLE = 6
PEOPLE = 24

# The annotator: utility = correctness + quality + taste + noise, and a tie below the threshold.
CORRECTNESS = 1.6
QUALITY = 1.1
TASTE = {"noto": 0.45, "twemoji": 0.15, "openmoji": -0.25}
PERSONAL_TASTE_STD = 0.15
NOISE_STD = 0.25
TIE_THRESHOLD = 0.19

SCHEMA = pyarrow.schema(
    [
        ("are_different", pyarrow.bool_()),
        ("best_image_uid", pyarrow.string()),
        ("caption", pyarrow.string()),
        ("created_at", pyarrow.timestamp("ns")),
        ("has_label", pyarrow.bool_()),
        ("image_0_uid", pyarrow.string()),
        ("image_0_url", pyarrow.string()),
        ("image_1_uid", pyarrow.string()),
        ("image_1_url", pyarrow.string()),
        ("jpg_0", pyarrow.binary()),
        ("jpg_1", pyarrow.binary()),
        ("label_0", pyarrow.float64()),
        ("label_1", pyarrow.float64()),
        ("model_0", pyarrow.string()),
        ("model_1", pyarrow.string()),
        ("ranking_id", pyarrow.int64()),
        ("user_id", pyarrow.int64()),
        ("num_example_per_prompt", pyarrow.int64()),
        ("__index_level_0__", pyarrow.int64()),
    ]
)


def utility(image: Composition, name: str, person_taste: dict[str, float]) -> float:
    """The utility of an image for one person and a caption that names `name`, before noise."""
    return (
        CORRECTNESS * (image.drawing.name == name)
        - QUALITY * image.severity
        + TASTE[image.drawing.style]
        + person_taste[image.drawing.style]
    )


def label_of(difference: float) -> float:
    """label_0 for a utility difference image 0 minus image 1, noise included."""
    if abs(difference) < TIE_THRESHOLD:
        return 0.5
    return 1.0 if difference > 0 else 0.0


class Sample:
    """The rows and the images made so far."""

    def __init__(self) -> None:
        self.generator = numpy.random.default_rng(SEED)
        self.by_name: dict[str, list[composition.Drawing]] = {}
        for drawing in composition.drawings():
            if drawing.split in ("sample", "shared"):
                self.by_name.setdefault(drawing.name, []).append(drawing)
        self.names = list(self.by_name)
        self.unused_names = list(self.generator.permutation(self.names))
        self.rows: list[dict] = []
        self.provenance: list[dict] = []
        self.tastes = [
            {
                style: float(self.generator.normal(0.0, PERSONAL_TASTE_STD))
                for style in composition.STYLES
            }
            for _ in range(PEOPLE)
        ]
        self.time = datetime.datetime(2023, 3, 1, 9, 0, 0)

    def publish(self, image: Composition, caption: str) -> dict:
        """Encodes an image and gives it a uid and a line of provenance."""
        data, file_format = composition.encode(image.image, self.generator)
        number = len(self.provenance)
        uid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"miniature world {SEED} {number}"))
        drawing = image.drawing
        self.provenance.append(
            {
                "image_uid": uid,
                "caption": caption,
                "drawing": drawing.name,
                "codepoints": drawing.codepoints,
                "style": drawing.style,
                "background": image.background,
                "degradation": image.degradation,
                "severity": f"{image.severity:.3f}",
                "width": image.image.width,
                "height": image.image.height,
                "format": file_format,
            }
        )
        return {
            "image": image,
            "uid": uid,
            "url": f"miniature://{drawing.style}/{drawing.codepoints}/{uid}.{file_format}",
            "jpg": data,
            "model": drawing.style,
        }

    def challenger(self, name: str, incumbent: Composition | None) -> Composition:
        """A new image for the caption: another style, another drawing, or a degraded one."""
        kind = self.generator.choice(("style", "wrong", "degraded"), p=(0.36, 0.24, 0.40))
        own = self.by_name[name]
        if kind == "wrong":
            others = [other for other in self.names if other != name]
            drawing = self.pick(self.by_name[str(self.generator.choice(others))])
        elif incumbent is not None and incumbent.drawing.name == name and kind == "style":
            drawing = self.pick([one for one in own if one.style != incumbent.drawing.style])
        elif incumbent is not None and incumbent.drawing.name == name:
            drawing = incumbent.drawing
        else:
            drawing = self.pick(own)
        image = composition.compose(drawing, self.generator, varied=True)
        if kind == "degraded":
            image = composition.degrade(image, self.generator)
        return image

    def pick(self, choices: list[composition.Drawing]) -> composition.Drawing:
        return choices[int(self.generator.integers(len(choices)))]

    def session(self):
        """One person with one caption: yields after each stated preference."""
        name = str(self.unused_names.pop())
        caption = composition.caption(name, self.generator)
        person = int(self.generator.integers(PEOPLE))
        pairs = int(self.generator.integers(2, 6))
        first = composition.compose(self.pick(self.by_name[name]), self.generator, varied=True)
        kept = self.publish(first, caption)
        for _ in range(pairs):
            fresh = self.publish(self.challenger(name, kept["image"]), caption)
            sides = [kept, fresh] if self.generator.random() < 0.5 else [fresh, kept]
            seen = [
                utility(side["image"], name, self.tastes[person])
                + float(self.generator.normal(0.0, NOISE_STD))
                for side in sides
            ]
            label = label_of(seen[0] - seen[1])
            self.time += datetime.timedelta(seconds=int(self.generator.integers(3, 40)))
            self.rows.append(
                {
                    "are_different": True,
                    "best_image_uid": {1.0: sides[0]["uid"], 0.0: sides[1]["uid"]}.get(label, "tie"),
                    "caption": caption,
                    "created_at": self.time,
                    "has_label": True,
                    "image_0_uid": sides[0]["uid"],
                    "image_0_url": sides[0]["url"],
                    "image_1_uid": sides[1]["uid"],
                    "image_1_url": sides[1]["url"],
                    "jpg_0": sides[0]["jpg"],
                    "jpg_1": sides[1]["jpg"],
                    "label_0": label,
                    "label_1": 1.0 - label,
                    "model_0": sides[0]["model"],
                    "model_1": sides[1]["model"],
                    "ranking_id": 100_000 + len(self.rows),
                    "user_id": person + 1,
                    "__index_level_0__": len(self.rows),
                }
            )
            if label != 0.5:
                kept = sides[0] if label == 1.0 else sides[1]
            yield

    def run(self) -> None:
        """Interleaves the sessions of several people until there are enough pairs."""
        sessions = [self.session() for _ in range(CONCURRENT_PEOPLE)]
        while len(self.rows) < PAIRS:
            place = int(self.generator.integers(CONCURRENT_PEOPLE))
            if next(sessions[place], "done") == "done":
                sessions[place] = self.session()
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row["caption"]] = counts.get(row["caption"], 0) + 1
        for row in self.rows:
            row["num_example_per_prompt"] = counts[row["caption"]]

    def write(self) -> None:
        """The Parquet files and provenance.csv."""
        SAMPLE.mkdir(parents=True, exist_ok=True)
        for old in SAMPLE.glob("*.parquet"):
            old.unlink()
        size = -(-len(self.rows) // FILES)
        for part in range(FILES):
            table = pyarrow.Table.from_pylist(self.rows[part * size : (part + 1) * size], SCHEMA)
            pyarrow.parquet.write_table(
                table,
                SAMPLE / f"pairs-{part:05d}-of-{FILES:05d}.parquet",
                row_group_size=ROWS_PER_GROUP,
                compression="snappy",
            )
        # The last image of a session that the end interrupts has no pair.
        used = {row[column] for row in self.rows for column in ("image_0_uid", "image_1_uid")}
        lines = [line for line in self.provenance if line["image_uid"] in used]
        with open(SAMPLE / "provenance.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def main() -> None:
    sample = Sample()
    sample.run()
    sample.write()
    labels = [row["label_0"] for row in sample.rows]
    captions = {row["caption"] for row in sample.rows}
    uids = {row[column] for row in sample.rows for column in ("image_0_uid", "image_1_uid")}
    print(
        f"{len(labels)} pairs, {len(captions)} captions, {len(uids)} images,",
        f"ties {labels.count(0.5) / len(labels):.1%}, image 0 preferred {labels.count(1.0) / len(labels):.1%}",
    )


if __name__ == "__main__":
    main()
