"""The captions of the experiments: data/mini/validation.tsv and data/mini/test.tsv, in the manner of
PartiPrompts, with the category of the named thing; and data/mini/train.txt, prompts to make pairs of.

The captions combine the names that the pipeline knows with the templates of its training, without
those of data/sample, which training sees. The two files share no name, so tuning on one tells nothing
about the names of the other. train.txt has captions of data/sample, so it shares no caption with the two, and no
name with validation.tsv.
"""

import json

import composition
import numpy
import pyarrow.parquet
from composition import DRAWINGS, MINI, ROOT
from train_diffusion import known_names

SEED = 31
TEMPLATES = ("{name}", "a picture of {article} {name}", "a drawing of {article} {name}")
# Groups of emoji to categories, by the beginning of their name; all else is an object.
CATEGORIES = {
    "animal": "Animals",
    "plant": "Plants",
    "food": "Food",
    "drink": "Food",
    "transport": "Transport",
    "place": "Places and sky",
    "sky": "Places and sky",
}
VALIDATION_NAMES = 40


def captions(names: list[str], known: set[str]) -> list[tuple[str, str]]:
    """(caption, name), template after template."""
    filled = (
        (template.format(name=name, article=composition.article(name)), name)
        for template in TEMPLATES
        for name in names
    )
    return [(caption, name) for caption, name in filled if caption not in known]


def category(group: str) -> str:
    found = (name for start, name in CATEGORIES.items() if group.startswith(start))
    return next(found, "Objects")


def main() -> None:
    sample: list[str] = []
    for file in sorted((ROOT / "data" / "sample").glob("*.parquet")):
        sample += pyarrow.parquet.read_table(file, columns=["caption"])["caption"].to_pylist()
    known = set(sample)
    catalogue = json.loads((DRAWINGS / "catalogue.json").read_text())
    categories = {entry["name"]: category(entry["category"]) for entry in catalogue}
    names = known_names()
    order = numpy.random.default_rng(SEED).permutation(len(names))
    shuffled = [names[index] for index in order]
    validation = captions(shuffled[:VALIDATION_NAMES], known)
    test = captions(shuffled[VALIDATION_NAMES:], known)
    for file, rows in (("validation.tsv", validation), ("test.tsv", test)):
        lines = ["Prompt\tCategory", *(f"{caption}\t{categories[name]}" for caption, name in rows)]
        (MINI / file).write_text("\n".join(lines) + "\n")
        print(f"{MINI / file}: {len(rows)} captions")
    of_test_names = {caption for caption, _ in captions(shuffled[VALIDATION_NAMES:], set())}
    train = [caption for caption in dict.fromkeys(sample) if caption in of_test_names]
    (MINI / "train.txt").write_text("\n".join(train) + "\n")
    print(f"{MINI / 'train.txt'}: {len(train)} captions")


if __name__ == "__main__":
    main()
