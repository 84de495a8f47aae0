"""Runs the examples of README.md, docs/relabel.md, docs/train.md and docs/evaluate.md again and puts
their output in its place.

An example is a fenced block that begins with `$ `. Each such line (with the lines it continues on) is
run by bash in the root of the repository, with target/release first in PATH; what it prints on
standard output replaces the lines up to the next command. Figures of time and rate differ from run to run,
so this is not a check; read the difference before you commit it.

    python3 scripts/docs/run_examples.py [FILE.md ...]
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/relabel.md", "docs/train.md", "docs/evaluate.md"]
BLOCK = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: str) -> str:
    environment = os.environ | {"PATH": f"{ROOT}/target/release:{os.environ['PATH']}", "NO_COLOR": "1"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lines = (line.rstrip() for line in result.stdout.splitlines())
    return "".join(f"{line}\n" for line in lines)


def refreshed(block: str) -> str:
    lines = block.splitlines()
    result, index = [], 0
    while index < len(lines):
        if not lines[index].startswith("$ "):
            index += 1  # output of an earlier run
            continue
        command = [lines[index]]
        while command[-1].endswith("\\"):
            index += 1
            command.append(lines[index])
        index += 1
        shown = "\n".join(command)
        print(shown, flush=True)
        result.append(f"{shown}\n{run(shown.removeprefix('$ '))}")
    return "".join(result)


for page in sys.argv[1:] or PAGES:
    file = ROOT / page
    text = file.read_text(encoding="utf-8")
    file.write_text(BLOCK.sub(lambda match: f"```\n{refreshed(match[1])}```", text), encoding="utf-8")
