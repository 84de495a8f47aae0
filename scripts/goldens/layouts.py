#!/usr/bin/env python3
"""Goldens for schemas/src/layouts: the same ten pairs in every layout, as the published sets hold them.

Writes schemas/tests/fixtures/layouts. Run with Pillow 13.0.0 and pyarrow 26.0.1. Needs no network.
"""
import io
import json
import pathlib
import shutil
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2] / "schemas/tests/fixtures/layouts"
PAIRS = 10
# Where a set stores them: which image the annotators preferred.
LABELS = [1, 0, 0, 1, 1, 1, 0, 1, 0, 0]
CAPTIONS = [f"caption {row}" for row in range(PAIRS - 2)] + ["a fox, “jumping”\nover two lines", "ein Fuchs springt über den Zaun 🦊"]
# HPDv2's test.json and ImageRewardDB rank several images of one prompt; two of these are equal.
RANKED = ("four of them", [2, 1, 3, 1])


def jpeg(number):
    """A JPEG of 8 x 8 pixels, another one for each number."""
    image = Image.new("RGB", (8, 8))
    image.putdata([((x * 31 + number * 67) % 256, (y * 29 + number * 41) % 256, (x * y + number * 13) % 256) for y in range(8) for x in range(8)])
    out = io.BytesIO()
    image.save(out, "JPEG", quality=40)
    return out.getvalue()


# Image 0 and image 1 of every pair, then those that are ranked.
IMAGES = [(jpeg(2 * row), jpeg(2 * row + 1)) for row in range(PAIRS)]
FURTHER = [jpeg(100 + number) for number in range(len(RANKED[1]))]


def winner_first(row):
    first, second = IMAGES[row]
    return (first, second) if LABELS[row] == 1 else (second, first)


def put(name, data):
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def dump(name, records):
    put(name, json.dumps(records, ensure_ascii=False) + "\n")


def lines(name, records):
    put(name, "".join(json.dumps(record) + "\n" for record in records))


def parquet(name, columns, schema=None):
    (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), ROOT / name, row_group_size=4)


def pickapic():
    """Pick-a-Pic v1 and v2."""
    parquet("pickapic/train-00000-of-00001.parquet", {
        "are_different": [True] * PAIRS,
        "caption": CAPTIONS,
        "has_label": [True] * PAIRS,
        "image_0_uid": [f"uid-{row}-0" for row in range(PAIRS)],
        "image_1_uid": [f"uid-{row}-1" for row in range(PAIRS)],
        "jpg_0": pa.array([pair[0] for pair in IMAGES], pa.binary()),
        "jpg_1": pa.array([pair[1] for pair in IMAGES], pa.binary()),
        "label_0": [float(label) for label in LABELS],
        "label_1": [1.0 - label for label in LABELS],
        "ranking_id": list(range(5000, 5000 + PAIRS)),
    })


def chosen_rejected():
    """open-image-preferences-v1-binarized: structs as the datasets library writes an Image."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    struct = lambda data: {"bytes": data, "path": "image.jpg"}  # noqa: E731
    parquet("chosen-rejected/train-00000-of-00001.parquet", {
        "prompt": CAPTIONS,
        "chosen": pa.array([struct(winner_first(row)[0]) for row in range(PAIRS)], image),
        "rejected": pa.array([struct(winner_first(row)[1]) for row in range(PAIRS)], image),
    })


def verl_omni():
    """Offline pairs of verl-omni: paths beside the file, the prompt as a chat."""
    for row in range(PAIRS):
        for side, data in zip(("win", "lose"), winner_first(row)):
            put(f"verl-omni/images/{row:04}_{side}.png", data)
    parquet("verl-omni/train.parquet", {
        "data_source": ["pairs"] * PAIRS,
        "prompt": [[{"role": "user", "content": "Draw: " + caption}] for caption in CAPTIONS],
        "img_win": [f"images/{row:04}_win.png" for row in range(PAIRS)],
        "img_lose": [f"images/{row:04}_lose.png" for row in range(PAIRS)],
        "win_score": [0.9] * PAIRS,
        "lose_score": [0.1] * PAIRS,
        "extra_info": [{"index": row, "raw_prompt": caption} for row, caption in enumerate(CAPTIONS)],
    })


def image_reward_db():
    """ImageRewardDB: a row an image; a zip that stores, one that deflates, and a folder."""
    places = {part: {} for part in (1, 2, 3)}
    rows = []

    def add(prompt_id, prompt, part, name, data, rank):
        places[part][name] = data
        rows.append({
            "image_path": f"images/train/train_{part}/{name}", "prompt_id": prompt_id, "prompt": prompt,
            "classification": "People", "image_amount_in_total": 2, "rank": rank, "overall_rating": 7 - rank,
            "image_text_alignment_rating": 5, "fidelity_rating": 5,
        })

    for row in range(PAIRS):
        for side, data in enumerate(IMAGES[row]):
            rank = 1 if (side == 0) == (LABELS[row] == 1) else 2
            add(f"{row:06}-0001", CAPTIONS[row], row % 3 + 1, f"{row}-{side}.webp", data, rank)
    for number, (data, rank) in enumerate(zip(FURTHER, RANKED[1])):
        add("900000-0001", RANKED[0], 1, f"further-{number}.webp", data, rank)
    parquet("image-reward-db/metadata-train.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    for part, method in ((1, zipfile.ZIP_STORED), (2, zipfile.ZIP_DEFLATED)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, data in places[part].items():
                # The parts differ in whether their members carry the folder.
                member = name if part == 1 else f"train_{part}/{name}"
                archive.writestr(zipfile.ZipInfo(member), data, method)
        put(f"image-reward-db/images/train/train_{part}.zip", out.getvalue())
    for name, data in places[3].items():
        put(f"image-reward-db/images/train/train_3/{name}", data)


def hpdv2():
    """HPDv2: train.json with bare names, test.json with four images of one prompt."""
    for row in range(PAIRS):
        for side, data in enumerate(IMAGES[row]):
            put(f"hpdv2/train/{row}{side}.jpg", data)
    dump("hpdv2/train.json", [{
        "human_preference": [LABELS[row], 1 - LABELS[row]], "prompt": CAPTIONS[row],
        "file_path": [f"{row}0.jpg", f"{row}1.jpg"], "user_hash": "abc",
    } for row in range(PAIRS)])
    for number, data in enumerate(FURTHER):
        put(f"hpdv2/test/f{number}.jpg", data)
    dump("hpdv2/test.json", [{
        "prompt": RANKED[0], "image_path": [f"test/f{number}.jpg" for number in range(4)], "rank": RANKED[1],
        "raw_annotations": [{"rank": RANKED[1], "user_hash": "abc"}],
    }])


def records():
    """HPDv3, lines of JSON in both forms: beside one folder of images."""
    names = []
    for row in range(PAIRS):
        for side, data in enumerate(IMAGES[row]):
            put(f"records/images/{row}_{side}.jpg", data)
        pair = [f"images/{row}_{side}.jpg" for side in (0, 1)]
        names.append((pair, pair if LABELS[row] == 1 else pair[::-1]))
    dump("records/hpdv3.json", [{
        "prompt": CAPTIONS[row], "path1": chosen[0], "path2": chosen[1],
        "choice_dist": [12, 7] if row % 2 else None, "confidence": 0.97 if row % 2 else None, "model1": "a", "model2": "b",
    } for row, (_, chosen) in enumerate(names)])
    lines("records/images.jsonl", [
        {"prompt": CAPTIONS[row], "image_0": pair[0], "image_1": pair[1], "label_0": LABELS[row]}
        for row, (pair, _) in enumerate(names)
    ])
    lines("records/chosen.jsonl", [
        {"prompt": CAPTIONS[row], "chosen": chosen[0], "rejected": chosen[1]} for row, (_, chosen) in enumerate(names)
    ])


def tar(name, members, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, data in members:
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    put(name, out.getvalue())


def webdataset():
    """Tars as the webdataset library writes them; names of over 100 characters in GNU's and in pax form."""
    def text(value):
        return value.encode()

    members = []
    for row in range(PAIRS):
        key = f"{row:08}" if row != 3 else "long/" + "k" * 110
        members += [
            (f"{key}.jpg_0.jpg", IMAGES[row][0]), (f"{key}.jpg_1.jpg", IMAGES[row][1]),
            (f"{key}.label_0.txt", text(str(float(LABELS[row])))), (f"{key}.label_1.txt", text(str(1.0 - LABELS[row]))),
            (f"{key}.original_prompt.txt", text(CAPTIONS[row])),
        ]
    tar("webdataset/00000.tar", members, tarfile.PAX_FORMAT)
    members = []
    for row in range(PAIRS):
        key = f"part/{row:05}" if row != 3 else "long/" + "k" * 110
        record = {"caption" if row % 2 else "prompt": CAPTIONS[row], "label_0": LABELS[row]}
        members += [(f"{key}.0.jpg", IMAGES[row][0]), (f"{key}.1.jpg", IMAGES[row][1]), (f"{key}.json", text(json.dumps(record)))]
    tar("webdataset-json/00000.tar", members, tarfile.GNU_FORMAT)


def folders():
    """Images and texts in a folder, in both spellings."""
    for row in range(PAIRS):
        chosen, rejected = winner_first(row)
        put(f"folder/{row:02}_w.jpg", chosen)
        put(f"folder/{row:02}_l.jpg", rejected)
        put(f"folder/{row:02}.txt", CAPTIONS[row] + "\n")
        put(f"folder-rejected/{row:02}.png", chosen)
        put(f"folder-rejected/{row:02}-rejectedlabel.png", rejected)
        put(f"folder-rejected/{row:02}.txt", CAPTIONS[row])


if __name__ == "__main__":
    shutil.rmtree(ROOT, ignore_errors=True)
    for layout in (pickapic, chosen_rejected, verl_omni, image_reward_db, hpdv2, records, webdataset, folders):
        layout()
    print(sum(path.is_file() for path in ROOT.rglob("*")), "files,", sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()), "bytes")
