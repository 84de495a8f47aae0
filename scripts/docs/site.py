#!/usr/bin/env python3
"""Gathers the pages that docs/SUMMARY.md names, with their images, in target/site/src for mdBook.

    scripts/docs/site.py [REPOSITORY]     for instance https://github.com/OWNER/NAME

Paths stay as in the repository, so links between pages work. Links to files that are not in the
book lead to REPOSITORY, or become plain text without one.
"""

import posixpath
import re
import shutil
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "target" / "site" / "src"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def inside(page: str, target: str) -> str:
    """A page's link as a path from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def main() -> None:
    repository = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else ""
    summary = (ROOT / "docs" / "SUMMARY.md").read_text(encoding="utf-8")
    pages = [inside("docs/SUMMARY.md", target) for _, _, target in LINK.findall(summary)]
    # One page a run, below the page of benchmarks.
    runs = sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("benchmarks/*/README.md"))
    shutil.rmtree(BOOK.parent, ignore_errors=True)

    def rewrite(page: str, match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, _ = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path or inside(page, path) in (*pages, *runs):
            return match.group(0)
        name = inside(page, path)
        if image or name.endswith((".png", ".svg")):
            copy = BOOK / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
            return match.group(0)
        return f"[{text}]({repository}/blob/main/{name})" if repository else text

    for page in (*pages, *runs):
        text = (ROOT / page).read_text(encoding="utf-8")
        copy = BOOK / page
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(LINK.sub(partial(rewrite, page), text), encoding="utf-8")
    entries = LINK.sub(
        lambda match: f"[{match.group(2)}]({inside('docs/SUMMARY.md', match.group(3))})", summary
    )
    listed = "".join(f"  - [{Path(run).parent.name}]({run})\n" for run in runs)
    entries = re.sub(r"(- \[Benchmarks\].*\n)", lambda match: match.group(1) + listed, entries)
    (BOOK / "SUMMARY.md").write_text(entries, encoding="utf-8")
    print(f"site: {len(pages) + len(runs)} pages in {BOOK.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
