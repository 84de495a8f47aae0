"""Fetch the three openly licensed emoji sets and unpack the drawings of the miniature world.

Writes data/downloads/drawings/{noto,twemoji,openmoji}/CODEPOINTS.png (64 x 64, RGBA) and
data/downloads/drawings/catalogue.json (a list of {"codepoints", "name", "category"}). The folder
data/downloads is ignored by git: about 140 MB come down once.
"""

import hashlib
import io
import json
import pathlib
import subprocess
import tarfile

import resvg_py
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOWNLOADS = ROOT / "data" / "downloads"
DRAWINGS = DOWNLOADS / "drawings"
SIDE = 64
# OpenMoji's grid leaves a margin around each drawing; the other two sets fill the square.
OPENMOJI_MARGIN = 9

# Package of the npm registry -> SHA-256 of its tarball. The first two packages carry PNG files of
# 64 pixels and are MIT themselves; their art is Apache-2.0 (Noto) and CC BY 4.0 (Twemoji).
# OpenMoji (CC BY-SA 4.0) carries SVG files, which resvg renders.
PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
}

WANTED_PATHS = ("/64/", "/color/svg/", "/emoji.json", "/data/openmoji.json")

# Groups whose drawings say what they are at 64 pixels. Left out: flags, keycaps, skin tones, people
# and hands (variants of one figure), yellow faces (a few pixels apart), signs and arrows.
GROUPS = {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects"}
FURTHER_SUBGROUPS = {"heart", "face-costume", "monkey-face"}
LEFT_OUT_WORDS = ("o’clock", "-thirty", " moon", "mahjong", "mailbox", "speaker ", "Japanese")


def download(package: str, expected: str) -> tarfile.TarFile:
    """The opened tarball of one npm package, fetched if absent and checked against its digest."""
    path = DOWNLOADS / (package.replace("@", "-") + ".tgz")
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=DOWNLOADS, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SystemExit(f"{path}: expected SHA-256 {expected}, found {digest}")
    return tarfile.open(path)


def main() -> None:
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    archives = {name: download(name, digest) for name, digest in PACKAGES.items()}
    files = {
        package.rsplit("@")[0]: {
            member.name: archive.extractfile(member).read()
            for member in archive
            if member.isfile() and any(part in member.name for part in WANTED_PATHS)
        }
        for package, archive in archives.items()
    }
    google, twitter, openmoji = (files[package.rsplit("@")[0]] for package in PACKAGES)
    names = {
        entry["hexcode"]: entry["annotation"]
        for entry in json.loads(openmoji["package/data/openmoji.json"])
    }

    catalogue = []
    for style in ("noto", "twemoji", "openmoji"):
        (DRAWINGS / style).mkdir(parents=True, exist_ok=True)
    for entry in json.loads(google["package/emoji.json"]):
        wanted = entry["category"] in GROUPS or entry["subcategory"] in FURTHER_SUBGROUPS
        if not (wanted and entry["has_img_google"] and entry["has_img_twitter"]):
            continue
        # OpenMoji leaves the emoji presentation selector out of most file names.
        spellings = (entry["unified"], entry["unified"].replace("-FE0F", ""))
        code = next((code for code in spellings if code in names), None)
        if code is None or any(word in names[code] for word in LEFT_OUT_WORDS):
            continue
        sources = {
            "noto": google[f"package/img/google/64/{entry['image']}"],
            "twemoji": twitter[f"package/img/twitter/64/{entry['image']}"],
            "openmoji": bytes(
                resvg_py.svg_to_bytes(
                    svg_string=openmoji[f"package/color/svg/{code}.svg"].decode(),
                    width=SIDE + 2 * OPENMOJI_MARGIN,
                    height=SIDE + 2 * OPENMOJI_MARGIN,
                    skip_system_fonts=True,
                )
            ),
        }
        for style, data in sources.items():
            picture = Image.open(io.BytesIO(data)).convert("RGBA")
            if style == "openmoji":
                edge = OPENMOJI_MARGIN + SIDE
                picture = picture.crop((OPENMOJI_MARGIN, OPENMOJI_MARGIN, edge, edge))
            if picture.size != (SIDE, SIDE):
                picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(DRAWINGS / style / f"{code}.png")
        catalogue.append(
            {"codepoints": code, "name": names[code], "category": entry["subcategory"]}
        )

    catalogue.sort(key=lambda entry: entry["codepoints"])
    (DRAWINGS / "catalogue.json").write_text(
        json.dumps(catalogue, ensure_ascii=False, indent=1) + "\n"
    )
    print(f"{len(catalogue)} names in three styles under {DRAWINGS}")


if __name__ == "__main__":
    main()
