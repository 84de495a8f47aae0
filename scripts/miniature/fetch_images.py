"""Fetch openly licensed emoji sets and unpack the drawings of the miniature data.

Three styles make the sample; six more are for training only, so that the models know a name from
several drawings before they see a new one. Writes
data/downloads/drawings/STYLE/CODEPOINTS.png (64 x 64, RGBA) and data/downloads/drawings/catalogue.json
(a list of {"codepoints", "name", "category", "styles"}). git ignores the folder data/downloads, which
gets about 160 MB.
"""

import hashlib
import io
import json
import pathlib
import re
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

# Styles for training only: package and SHA-256. Iconify's packages hold SVG bodies by name.
# Licences: EmojiOne 2 CC BY 4.0, EmojiOne 1 CC BY-SA 4.0, Firefox OS Emoji Apache-2.0, Fluent Emoji
# MIT, Streamline Emojis CC BY 4.0. (Noto's first edition is not used: it is too close to today's.)
FURTHER_STYLES = {
    "emojione": (
        "@iconify-json/emojione@1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    "emojione-v1": (
        "@iconify-json/emojione-v1@1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
    ),
    "fxemoji": (
        "@iconify-json/fxemoji@1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
    "fluent-flat": (
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji@1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "streamline": (
        "@iconify-json/streamline-emojis@1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    ),
}
# Names with drawings in fewer of those styles are not used.
LEAST_FURTHER_STYLES = 4

WANTED_PATHS = ("/64/", "/color/svg/", "/emoji.json", "/data/openmoji.json")

# Groups with drawings that are recognisable at 64 pixels. Not used: flags, keycaps, skin tones, people
# and hands (variants of one figure), yellow faces (a few pixels apart), signs and arrows.
GROUPS = {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects"}
FURTHER_SUBGROUPS = {"heart", "face-costume", "monkey-face"}
LEFT_OUT_WORDS = ("o’clock", "-thirty", " moon", "mahjong", "mailbox", "speaker ", "Japanese")


def download(package: str, expected: str) -> tarfile.TarFile:
    """The opened tarball of one npm package, fetched if absent and checked against its digest."""
    path = DOWNLOADS / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=DOWNLOADS, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SystemExit(f"{path}: expected SHA-256 {expected}, found {digest}")
    return tarfile.open(path)


def plain(name: str) -> str:
    """A name without case, spaces and punctuation, by which the sets agree."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def rendered(svg: str, side: int) -> Image.Image:
    """An SVG drawing at side x side pixels, RGBA."""
    data = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return opened(bytes(data))


def opened(data: bytes) -> Image.Image:
    """A PNG drawing, RGBA."""
    return Image.open(io.BytesIO(data)).convert("RGBA")


def inner(svg: str) -> Image.Image:
    """An OpenMoji drawing without its margin, RGBA."""
    edge = OPENMOJI_MARGIN + SIDE
    return rendered(svg, edge + OPENMOJI_MARGIN).crop((OPENMOJI_MARGIN, OPENMOJI_MARGIN, edge, edge))


def further_drawings(package: str, digest: str) -> dict[str, str]:
    """The SVG texts of an Iconify package by plain name."""
    icons = json.load(download(package, digest).extractfile("package/icons.json"))
    svgs = {plain(name): svg_of(icon, icons) for name, icon in icons["icons"].items()}
    for name, alias in icons.get("aliases", {}).items():
        # Aliases that rotate or flip their parent are not used.
        if set(alias) == {"parent"} and plain(alias["parent"]) in svgs:
            svgs.setdefault(plain(name), svgs[plain(alias["parent"])])
    return svgs


def svg_of(icon: dict, defaults: dict) -> str:
    """The SVG text of one Iconify icon, which may have a grid of its own."""
    box = [
        icon.get(key, defaults.get(key, fallback))
        for key, fallback in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


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

    further = {
        style: further_drawings(package, digest)
        for style, (package, digest) in FURTHER_STYLES.items()
    }

    catalogue = []
    for style in ("noto", "twemoji", "openmoji", *further):
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
        name = names[code]
        others = {style: svgs[plain(name)] for style, svgs in further.items() if plain(name) in svgs}
        if len(others) < LEAST_FURTHER_STYLES:
            continue
        found = {
            "noto": opened(google[f"package/img/google/64/{entry['image']}"]),
            "twemoji": opened(twitter[f"package/img/twitter/64/{entry['image']}"]),
            "openmoji": inner(openmoji[f"package/color/svg/{code}.svg"].decode()),
        }
        found |= {style: rendered(svg, SIDE) for style, svg in others.items()}
        for style, image in found.items():
            image.save(DRAWINGS / style / f"{code}.png")
        catalogue.append(
            {
                "codepoints": code,
                "name": name,
                "category": entry["subcategory"],
                "styles": list(found),
            }
        )

    catalogue.sort(key=lambda entry: entry["codepoints"])
    (DRAWINGS / "catalogue.json").write_text(
        json.dumps(catalogue, ensure_ascii=False, indent=1) + "\n"
    )
    count = sum(len(entry["styles"]) for entry in catalogue)
    print(f"{len(catalogue)} names, {count} drawings under {DRAWINGS}")


if __name__ == "__main__":
    main()
