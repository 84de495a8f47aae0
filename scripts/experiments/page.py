"""Puts the tables of an evaluation into a Markdown page.

    page.py PAGE.md TABLES.md:HEADING=NAME...

Between `<!-- NAME -->` and `<!-- end -->` in the page comes what stands in TABLES.md under the first
heading that begins with HEADING, without the heading.
"""

import re
import sys
from pathlib import Path


def section(file: Path, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}[^\n]*\n(.*?)(?=^## |\Z)", file.read_text(), re.M | re.S)
    if not found:
        sys.exit(f"{file}: no heading that begins with {heading!r}")
    return found[1].strip()


def main() -> None:
    page = Path(sys.argv[1])
    text = page.read_text()
    for argument in sys.argv[2:]:
        source, name = argument.rsplit("=", 1)
        file, heading = source.split(":", 1)
        block = re.compile(rf"<!-- {re.escape(name)} -->\n.*?<!-- end -->", re.S)
        if not block.search(text):
            sys.exit(f"{page}: no <!-- {name} --> with its <!-- end -->")
        content = f"<!-- {name} -->\n{section(Path(file), heading)}\n<!-- end -->"
        text = block.sub(lambda _: content, text)
    partial = page.with_suffix(".part")
    partial.write_text(text)
    partial.rename(page)


if __name__ == "__main__":
    main()
