"""The files of the repository, for the checks beside this one."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What git ignores at the top of the tree.
IGNORED = {".git", "eval", "out", "runs", "target"}


def files(*paths: str) -> list[str]:
    """All files that git tracks, or without git all files of the tree, below `paths`."""
    listed = subprocess.run(
        ["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return listed.stdout.splitlines()
    found = []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".venv")
            and name != "__pycache__"
            and not (here == Path() and name in IGNORED)
        ]
        found += [str(here / name) for name in names]
    return sorted(name for name in found if not paths or name.startswith(paths))
