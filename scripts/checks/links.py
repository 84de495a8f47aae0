#!/usr/bin/env python3
"""Checks the relative links of all Markdown pages, and the paths and tests that they name in `code`.

A link's file must be tracked by git, and its anchor exist. A path into the source folders must exist. On
the pages of promises and attacks every test that is named must be a function of the code.

    scripts/checks/links.py [PAGE...]     default: all pages that git tracks

Prints `file:line: what is wrong` and exits with 1 if there is a broken link.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

from tracked import ROOT, files

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$")
HTML = re.compile(r"(?:href|src)=\"([^\"]+)\"")
SOURCE = re.compile(r"`((?:crates|evaluate|relabel|schemas|scripts|tools|train)/[\w./-]+\.\w+)`")
TEST = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`")
PAGES_OF_TESTS = {"docs/attacks.md", "docs/reproducibility.md"}
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def lines_outside_code(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers; code blocks and code spans are blanked."""
    lines, fence = [], None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence is None and mark:
            fence = mark.group(1)
        elif fence is not None:
            if mark and mark.group(1).startswith(fence) and not line.strip().strip("`~"):
                fence = None
        else:
            lines.append((number, line))
    return lines


def without_code(line: str) -> str:
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", line)


def links(text: str) -> list[tuple[int, str]]:
    """All link targets of a page with their lines."""
    found = []
    for number, line in lines_outside_code(text):
        # A link's text may be code, so code goes only where it hides a whole link.
        bare = re.sub(r"`[^`\n]*\]\([^`\n]*`", "", line)
        found += [(number, match) for match in LINK.findall(bare)]
        found += [(number, match) for match in HTML.findall(without_code(line))]
        if match := REFERENCE.match(line):
            found.append((number, match.group(1)))
    return found


def names(page: str, text: str, tracked: set[str], functions: set[str]) -> list[str]:
    """Paths and tests that a page names in code spans and that do not exist."""
    wrong = []
    for number, line in lines_outside_code(text):
        paths = [path for path in SOURCE.findall(line) if path not in tracked and "NAME" not in path]
        wrong += [f"{page}:{number}: {path}: no such file in git" for path in paths]
        if page in PAGES_OF_TESTS:
            tests = [name for name in TEST.findall(line) if name not in functions]
            wrong += [f"{page}:{number}: {name}: no such test" for name in tests]
    return wrong


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mdBook make them."""
    found: set[str] = set()
    for _, line in lines_outside_code(text):
        found.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if not heading:
            continue
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1))
        slug = re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).replace(" ", "-")
        name, again = slug, 0
        while name in found:
            again += 1
            name = f"{slug}-{again}"
        found.add(name)
    return found


def main() -> int:
    tracked = set(files())
    folders = {str(parent) for name in tracked for parent in Path(name).parents}
    pages = sys.argv[1:] or sorted(name for name in tracked if name.endswith(".md"))
    functions = {
        name
        for file in tracked
        if file.endswith(".rs")
        for name in re.findall(r"\bfn (\w+)", (ROOT / file).read_text(encoding="utf-8"))
    }
    broken = checked = 0
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        for problem in names(page, text, tracked, functions):
            broken += 1
            print(problem)
        for number, target in links(text):
            if ELSEWHERE.match(target):
                continue
            checked += 1
            path, _, anchor = target.partition("#")
            found = (ROOT / page).parent.joinpath(unquote(path)).resolve() if path else ROOT / page
            problem = None
            try:
                name = str(found.relative_to(ROOT))
            except ValueError:
                name, problem = target, "leads out of the repository"
            if problem is None and name not in tracked and name not in folders:
                problem = "no such file in git"
            elif (
                problem is None
                and anchor
                and name.endswith(".md")
                and anchor not in anchors(found.read_text(encoding="utf-8"))
            ):
                problem = f"no heading #{anchor}"
            if problem:
                broken += 1
                print(f"{page}:{number}: {target}: {problem}")
    print(f"links: {checked} checked in {len(pages)} pages, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
