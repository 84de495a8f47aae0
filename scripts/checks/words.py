#!/usr/bin/env python3
"""Finds words that were replaced by the field's words: STYLE.md has the glossary.

    scripts/checks/words.py [PATH...]     default: all files that git tracks

Prints `file:line: found "old"; say "new"` for each find, and exits with 1 if there is one.
"""

import re
import sys
from typing import NamedTuple

from tracked import ROOT, files

TEXT = {
    ".cff", ".cpp", ".css", ".cu", ".h", ".html", ".ipynb", ".js", ".md", ".py", ".rs", ".sh",
    ".sql", ".svg", ".toml", ".yml", "",
}
# The glossary names the old words, the changelog names what was renamed, a lock file names packages,
# benchmark pages keep what was measured under its name then.
UNCHECKED = re.compile(
    r"^(STYLE\.md|CHANGELOG\.md|Cargo\.lock|LICENSE|scripts/checks/words\.py|benchmarks/.*"
    r"|data/(?!README).*\.(csv|tsv|txt|json|jsonl))$"
)


class Word(NamedTuple):
    """A word that was replaced."""

    old: str  # a regular expression; the case of letters does not count
    new: str
    example: str  # a line that the check must find
    keep: str = r"(?!)"  # lines that may keep the word
    files: str = r""  # the check reads only files whose path matches


WORDS = [
    Word(r"pictures?", "image", "the pictures of a prompt",
         keep=r"(a|clear|framed|\}) picture|picture of"),
    Word(r"painters?", "generator", "the painter of a model"),
    Word(r"drawn|draws", "generated, sampled, rendered", "images are drawn in batches"),
    Word(r"drawings?", "image, generating", "while drawing images",
         keep=r"a drawing of|drawing\.svg", files=r"^(?!scripts/miniature|data/)"),
    Word(r"judg(e|es|ed|ing|ement|ements)", "score, scorer, metric",
         "images are judged by scorers"),
    Word(r"renew(s|ed|al|als|ing)?", "update the reference", "the reference is renewed"),
    Word(r"mirrored|mirroring", "horizontally flipped", "mirrored images"),
    Word(r"widen(s|ed|ing)?", "upcast", "weights are widened"),
    Word(r"perceptrons?", "MLP, FeedForward, GEGLU", "the perceptron of a block"),
    Word(r"(?<!standard )deviations?", "std", "z/deviation of a step",
         keep=r"deviation from|point deviation"),
    Word(r"(the|its|a|each|every|one|another|other|this) shares?|shares? of|shares? \d|\d shares",
         "shard (work), fraction (numbers)", "share 1/16 done", keep=r"shared|to share|can share"),
    Word(r"gone on with|goes on|go on (with|from|where)|went on|going on", "resumes",
         "the run goes on from there"),
    Word(r"forgets?|forgotten", "clear, delete", "forget the outputs"),
    Word(r"(is|are|was|were) told|is said (of|once|by|to)|tells of", "receives, reports, logs",
         "the user is told about it"),
    Word(r"(is|are|was|were) (?-i:none)|is no (jpeg|json|number|image|file|folder|threshold|checkpoint)",
         "is not a ...", "a folder without DONE is none", keep=r"is none(\(|\)|,|\"| or\b)|is none\s*$"),
    Word(r"of which", "a sentence with a subject", "two files of which one is empty",
         keep=r"(regardless|independent) of which"),
    Word(r"leases?", "permit of a memory budget", "the lease of a batch"),
    Word(r"keep away from", "negative prompt", "what to keep away from"),
    Word(r"unit normal|noise of its own", "standard normal noise; per-sample generator",
         "unit normal numbers"),
    Word(r"number formats?", "dtype", "in three number formats"),
    Word(r"combinations?", "image-caption pair",
         "each combination once", keep=r"linear combination|itertools"),
    Word(r"time steps?", "timestep", "at that time step"),
    Word(r"gradients (add|are added) up|adds? up (the )?gradients", "gradient accumulation",
         "micro-batches whose gradients add up"),
    Word(r"norm of the gradients", "gradient norm", "the norm of the gradients"),
    Word(r"(reads?|decodes?|reading|decoding)[ -]ahead", "prefetch", "one thread reads ahead"),
    Word(r"(noise is|takes?( the)? noise|take noise) (taken )?away", "denoising",
         "the noise is taken away"),
    Word(r"people's labels?|agreement with people", "human labels, human agreement",
         "agreement with people: 81 %"),
    Word(r"(error|model|reference) (better|other)|better and other", "chosen, rejected",
         "error/model_better"),
    Word(r"trains? in rows|images in rows|in rows in training", "contiguous NCHW", "trains_in_rows"),
    Word(r"miniature world", "toy setup", "in the miniature world", keep=r"uuid"),
    Word(r"slip of the finger", "typo", "a slip of the finger"),
    Word(r"on the probe:", "probe: loss A -> B", "on the probe: loss 1.2"),
]


def plain(line: str) -> str:
    """`line` with the words of identifiers apart: `keepPicture_of` is `keep Picture of`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line)


def compiled(word: Word) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{word.old})(?![\w-])", re.IGNORECASE)


PATTERNS = [(word, compiled(word), re.compile(word.keep, re.IGNORECASE)) for word in WORDS]


def finds(name: str, text: str) -> list[str]:
    """What `text` says in old words, a line each."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        spaced = plain(line)
        for word, pattern, keep in PATTERNS:
            if re.search(word.files, name) is None:
                continue
            match = pattern.search(spaced)
            if match and not keep.search(spaced):
                found.append(f'{name}:{number}: found "{match[0]}"; say "{word.new}"')
    return found


def main() -> int:
    for word, pattern, _ in PATTERNS:
        assert pattern.search(plain(word.example)), f"the check does not find {word.example!r}"
        assert not pattern.search(word.new), f"the check finds its own {word.new!r}"
    listed = files(*sys.argv[1:])
    found = []
    for name in listed:
        path = ROOT / name
        if UNCHECKED.match(name) or path.suffix not in TEXT or not path.is_file():
            continue
        try:
            found += finds(name, path.read_text())
        except UnicodeDecodeError:
            continue
    print("\n".join(found) if found else "no replaced word found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
