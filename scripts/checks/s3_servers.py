#!/usr/bin/env python3
"""Runs `relabel` and `train` against a server of object storage that is not ours, moto, and compares
what they write with runs on local files.

    python scripts/checks/s3_servers.py

moto comes from PyPI into target/moto. data/sample lies in a bucket as Parquet and as tars; labels are
written to the bucket and read from there. Prints requests, bytes and seconds of each run; ends with 1
if anything differs.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remote_data import ROOT, SAMPLE, as_tars, environment, read_elsewhere, score, sha256, train, weights

MOTO = "moto[server]==5.2.5"
KEY, SECRET = "moto-key", "moto-secret-1f0a"
# A start that hangs is an error of its own.
LIMIT = 240


def moto_environment():
    """The folder of an environment with moto, made once."""
    place = ROOT / "target/moto"
    if not (place / "READY").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin/python", "-m", "pip", "install", "--quiet", MOTO], check=True)
        (place / "READY").touch()
    return place / "bin"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Moto:
    """A running server with one bucket."""

    def __init__(self, folder):
        self.bin = moto_environment()
        port = free_port()
        self.log = (folder / "moto.log").open("w")
        self.process = subprocess.Popen(
            [self.bin / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=self.log, stderr=self.log
        )
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"moto did not start: {(folder / 'moto.log').read_text()}")
        self.boto("s3.create_bucket(Bucket='data')")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def boto(self, code):
        """Runs a line with the client of moto's own environment."""
        code = f"import boto3, sys; s3 = boto3.client('s3'); {code}"
        done = subprocess.run(
            [self.bin / "python", "-c", code], env=environment(self.variables), stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    def put(self, prefix, folder):
        names = [(str(path), f"{prefix}/{path.name}") for path in sorted(folder.iterdir())]
        self.boto(f"[s3.upload_file(path, 'data', key) for path, key in {names!r}]")

    def object(self, key):
        return self.boto(f"sys.stdout.buffer.write(s3.get_object(Bucket='data', Key={key!r})['Body'].read())")


def run(what, command, variables=None, folder=None):
    """Runs to the end and prints what it read; ends this program if it fails."""
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "-v"], env=environment(variables), cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, timeout=LIMIT,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"{what} ended with {done.returncode}:\n{done.stderr}")
    if SECRET in done.stderr:
        sys.exit(f"{what} shows the secret:\n{done.stderr}")
    requests, read, retries = read_elsewhere(done.stderr)
    print(f"{what}: {seconds:.1f} s, {requests} requests, {read} bytes, {retries} further attempts", flush=True)
    return done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relabel", type=Path, default=ROOT / "target/release/relabel")
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train")
    arguments = parser.parse_args()
    relabel, trainer = arguments.relabel.resolve(), arguments.train.resolve()
    steps = ("--steps", 4, "--batch-size", 16, "--probe-pairs", 0)
    differ = []

    def compare(what, found, expected):
        same = found == expected
        print(f"{what}: {'the same bytes' if same else 'DIFFERS'}", flush=True)
        if not same:
            differ.append(what)

    with tempfile.TemporaryDirectory() as name, Moto(Path(name)) as moto:
        place = Path(name)
        as_tars(place / "tars")
        moto.put("sample", SAMPLE)
        moto.put("tars", place / "tars")
        labels, tars = place / "labels.parquet", place / "tars.parquet"
        run("relabel, local", score(relabel, SAMPLE, labels))
        run("relabel, local tars", score(relabel, place / "tars", tars))
        run("train, local", train(trainer, SAMPLE, labels, place / "local", *steps))
        there = ("s3://data/out/labels.parquet", "s3://data/out/tars.parquet")
        run("relabel, s3 to s3", score(relabel, "s3://data/sample", there[0]), moto.variables, place)
        run("relabel, tars on s3 to s3", score(relabel, "s3://data/tars", there[1]), moto.variables, place)
        compare("labels of s3", sha256(moto.object("out/labels.parquet")), sha256(labels.read_bytes()))
        compare("labels of tars", sha256(moto.object("out/tars.parquet")), sha256(tars.read_bytes()))
        # What is there is complete, and is not written again.
        run("relabel again", score(relabel, "s3://data/sample", there[0]), moto.variables, place)
        remote = train(trainer, "s3://data/sample", there[0], place / "remote", *steps)
        run("train, s3", remote, moto.variables, place)
        compare("weights", weights(place / "remote"), weights(place / "local"))
        left = [path.name for path in place.iterdir() if path.name.endswith(".work")]
        compare("work folders that are left", left, [])
        if os.environ.get("MOTO_LOG"):
            print((place / "moto.log").read_text())
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
