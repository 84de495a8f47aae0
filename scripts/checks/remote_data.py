"""What the checks and benchmarks of data elsewhere share: the server of tools/src/bin/data_server.rs,
pairs as tars, the words of a command and what a program says that it has read."""

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data/sample"
SCORERS = ROOT / "data/mini/scorers.toml"
MODEL = ROOT / "data/mini/sd"
# Variables of the caller that would change what a program does.
FOREIGN = ("SLURM_", "RELABEL_", "TRAIN_", "TORCHELASTIC_", "MASTER_", "AWS_", "HF_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RUNKIT_FAULT")
# What of a training run depends on neither the time nor the place of its inputs.
WEIGHTS = ("*.safetensors", "*.json")


def environment(variables=None):
    """The caller's variables without those that matter here, with these."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in RANKS
    }
    return kept | (variables or {})


class DataServer:
    """A running data_server: object storage and a hub that serve these folders from memory."""

    def __init__(self, folders, faults=False):
        built = subprocess.run(
            [ROOT / "scripts/parity/tool.sh", "data_server"], check=True, stdout=subprocess.PIPE, text=True
        )
        words = [f"{name}={folder}" for name, folder in folders.items()]
        self.process = subprocess.Popen(
            [built.stdout.strip(), *(["--faults"] if faults else []), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = json.loads(self.process.stdout.readline())
        self.variables = said["s3"] | said["hf"]
        self.control = said["control"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def ask(self, path):
        with urllib.request.urlopen(self.control + path, timeout=60) as answer:
            return answer.read()

    def traffic(self):
        """Requests to the object storage so far, and the bytes of its answers."""
        return json.loads(self.ask("/traffic"))

    def object(self, key):
        """The bytes of s3://data/KEY; None if there is no such object."""
        try:
            return self.ask(f"/object/data/{key}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


def score(program, pairs, out, *more):
    """The words of `relabel score` with the toy scorers."""
    return [str(program), "score", "--pairs", str(pairs), "--scorers", str(SCORERS), "--out", str(out),
            "--device", "cpu", *map(str, more)]  # fmt: skip


def train(program, pairs, labels, out, *more):
    """The words of `train run` with the toy model."""
    return [str(program), "run", "--recipe", "mini", "--model", str(MODEL), "--pairs", str(pairs),
            "--labels", str(labels), "--out", str(out), "--device", "cpu", "--lr", "1e-5",
            "--sample-every", "0", *map(str, more)]  # fmt: skip


def read_elsewhere(errors):
    """Requests, bytes and further attempts, as a program with -v says at its end."""
    found = re.findall(r"read from elsewhere.*?requests=(\d+).*?bytes=(\d+).*?retries=(\d+)", errors)
    return tuple(map(int, found[-1])) if found else (0, 0, 0)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def weights(run):
    """The SHA-256 of every file of a finished run's last model, by its name."""
    pipeline = Path(run) / "pipeline"
    files = sorted(path for pattern in WEIGHTS for path in pipeline.rglob(pattern))
    return {str(path.relative_to(pipeline)): sha256(path.read_bytes()) for path in files}


def as_tars(folder, source=SAMPLE):
    """Writes the pairs of Parquet files as one tar each, in the published form of webdataset."""
    folder.mkdir(parents=True)
    for path in sorted(source.glob("*.parquet")):
        with tarfile.open(folder / f"{path.stem}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, pair in enumerate(pq.read_table(path).to_pylist()):
                texts = ("label_0", "label_1", "ranking_id", "image_0_uid", "image_1_uid")
                members = {"jpg_0.jpg": pair["jpg_0"], "jpg_1.jpg": pair["jpg_1"]}
                members |= {f"{name}.txt": str(pair[name]).encode() for name in texts}
                members["original_prompt.txt"] = pair["caption"].encode()
                for name, data in members.items():
                    member = tarfile.TarInfo(f"{row:08}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
