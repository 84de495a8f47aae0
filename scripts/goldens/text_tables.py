"""Writes the tables of crates/media/assets from the Python packages whose behaviour crates/media matches.

    ftfy_6_3_1.json     encodings, character classes and patterns of ftfy 6.3.1 (Apache-2.0)
    html5_entities.tsv  html.entities.html5 of CPython 3.11 (names as in the WHATWG HTML standard)

Run once, by hand: python scripts/goldens/text_tables.py
Needs ftfy==6.3.1; the files it writes are committed, so a build needs no Python.
"""

import html.entities
import importlib.metadata
import json
import pathlib
import re

import ftfy.bad_codecs  # noqa: F401  registers the sloppy encodings
import ftfy.badness
import ftfy.chardata as chardata

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "crates" / "media" / "assets"


def rust_pattern(pattern: str) -> str:
    """A Python verbose pattern as a plain pattern of the regex crate, with Python's \\s and \\w."""
    out, inside, comment, index = [], False, False, 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if comment:
            comment = char != "\n"
        elif char == "\\":
            escape = pattern[index]
            index += 1
            if escape == "s":
                out.append(r"[\s\x1c-\x1f]")
            elif escape == "w":
                out.append(r"[\p{L}\p{N}_]")
            elif escape == "x":
                out.append("\\x" + pattern[index : index + 2])
                index += 2
            else:
                raise ValueError(f"unexpected escape \\{escape}")
        elif inside:
            inside = char != "]"
            out.append(char)
        elif char == "[":
            inside = True
            out.append(char)
        elif char == "#":
            comment = True
        elif not char.isspace():
            out.append(char)
    return "".join(out)


def members(body: str) -> str:
    """The characters of a class body such as "a-cx", sorted."""
    pattern = re.compile(f"[{body}]")
    return "".join(chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000 and pattern.match(chr(c)))


def main() -> None:
    assert importlib.metadata.version("ftfy") == "6.3.1"
    clues = {name: members(body) for name, body in chardata.UTF8_CLUES.items()}
    firsts = [set(clues[f"utf8_first_of_{n}"]) for n in (2, 3, 4)]
    # the Rust matcher takes the first alternative without backtracking, since the sets are disjoint
    assert not (firsts[0] & firsts[1] or firsts[0] & firsts[2] or firsts[1] & firsts[2])
    html5 = html.entities.html5
    tables = {
        "badness": rust_pattern(ftfy.badness.BADNESS_RE.pattern),
        "encodings": {
            name: bytes(range(0x80, 0x100)).decode(name) for name in chardata.CHARMAP_ENCODINGS if name != "latin-1"
        },
        "windows_1252_undefined": [b for b in range(256) if not bytes([b]).decode("windows-1252", "ignore")],
        "clues": clues,
        "ligatures": {chr(k): v for k, v in chardata.LIGATURES.items()},
        "widths": {chr(k): v for k, v in chardata.WIDTH_MAP.items()},
        "upper_case_entities": {
            name[1:]: value for name, value in chardata.HTML_ENTITIES.items() if name[1:] not in html5
        },
    }
    text = json.dumps(tables, ensure_ascii=True, indent=0, sort_keys=True)
    (ASSETS / "ftfy_6_3_1.json").write_text(text + "\n")
    lines = [f"{name}\t{' '.join(f'{ord(c):x}' for c in value)}\n" for name, value in sorted(html5.items())]
    (ASSETS / "html5_entities.tsv").write_text("".join(lines))


if __name__ == "__main__":
    main()
