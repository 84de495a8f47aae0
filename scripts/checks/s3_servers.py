#!/usr/bin/env python3
"""Runs `relabel` and `train` against servers of object storage that are not ours, and compares what
they write with runs on local files.

    python scripts/checks/s3_servers.py [moto] [s3s-fs]

moto comes from PyPI into target/moto. s3s-fs, which verifies signatures, comes from crates.io into
target/s3s-fs and is compiled for some minutes. data/sample lies in a bucket as Parquet and as tars; labels
are written to the bucket and read from there. Prints requests, bytes and seconds of each run; ends with 1
if anything differs.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remote_data import ROOT, SAMPLE, as_tars, environment, read_elsewhere, score, sha256, train, weights

MOTO = "moto[server]==5.2.5"
S3S_FS = "0.14.1"
KEY, SECRET = "the-key", "the-secret-1f0a"
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


class Server:
    """A running server with one bucket, `data`."""

    def start(self, command, port, folder):
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
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
            sys.exit(f"{command[0]} did not start: {(folder / 'server.log').read_text()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Moto(Server):
    """moto, reached by the client of its own environment."""

    def __init__(self, folder):
        self.bin, port = moto_environment(), free_port()
        self.start([self.bin / "moto_server", "-H", "127.0.0.1", "-p", str(port)], port, folder)
        self.boto("s3.create_bucket(Bucket='data')")

    def boto(self, code):
        """Runs a line with `s3`, the client."""
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


class S3sFs(Server):
    """s3s-fs, whose objects are files."""

    def __init__(self, folder):
        place, port = ROOT / "target/s3s-fs", free_port()
        if not (place / "bin/s3s-fs").exists():
            install = ["cargo", "install", "s3s-fs", "--version", S3S_FS, "--features", "binary"]
            subprocess.run([*install, "--root", place, "--target-dir", place / "build"], check=True)
        self.root = folder / "s3s-fs"
        (self.root / "data").mkdir(parents=True)
        words = ["--access-key", KEY, "--secret-key", SECRET, "--host", "127.0.0.1", "--port", str(port)]
        self.start([place / "bin/s3s-fs", *words, self.root], port, folder)

    def put(self, prefix, folder):
        shutil.copytree(folder, self.root / "data" / prefix)

    def object(self, key):
        return (self.root / "data" / key).read_bytes()


SERVERS = {"moto": Moto, "s3s-fs": S3sFs}


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


def check(name, arguments):
    """Whether everything is the same with this server."""
    relabel, trainer = arguments.relabel.resolve(), arguments.train.resolve()
    steps = ("--steps", 4, "--batch-size", 16, "--probe-pairs", 0)
    differ = []

    def compare(what, found, expected):
        same = found == expected
        print(f"{what}: {'the same bytes' if same else 'DIFFERS'}", flush=True)
        if not same:
            differ.append(what)

    print(f"== {name} ==", flush=True)
    with tempfile.TemporaryDirectory() as folder, SERVERS[name](Path(folder)) as server:
        place = Path(folder) / "runs"
        as_tars(place / "tars")
        server.put("sample", SAMPLE)
        server.put("tars", place / "tars")
        labels, tars = place / "labels.parquet", place / "tars.parquet"
        run("relabel, local", score(relabel, SAMPLE, labels))
        run("relabel, local tars", score(relabel, place / "tars", tars))
        run("train, local", train(trainer, SAMPLE, labels, place / "local", *steps))
        there = ("s3://data/out/labels.parquet", "s3://data/tars-out/labels.parquet")
        run("relabel, s3 to s3", score(relabel, "s3://data/sample", there[0]), server.variables, place)
        run("relabel, tars on s3 to s3", score(relabel, "s3://data/tars", there[1]), server.variables, place)
        compare("labels of s3", sha256(server.object("out/labels.parquet")), sha256(labels.read_bytes()))
        found = sha256(server.object("tars-out/labels.parquet"))
        compare("labels of tars on s3", found, sha256(tars.read_bytes()))
        # What is there is complete, and is not written again.
        run("relabel again", score(relabel, "s3://data/sample", there[0]), server.variables, place)
        remote = train(trainer, "s3://data/sample", there[0], place / "remote", *steps)
        run("train, s3", remote, server.variables, place)
        compare("weights", weights(place / "remote"), weights(place / "local"))
        left = [path.name for path in place.iterdir() if path.name.endswith(".work")]
        compare("work folders that are left", left, [])
        if os.environ.get("SERVER_LOG"):
            print((Path(folder) / "server.log").read_text())
    return not differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="*", choices=[*SERVERS, []], help="default: all")
    parser.add_argument("--relabel", type=Path, default=ROOT / "target/release/relabel")
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train")
    arguments = parser.parse_args()
    results = [check(name, arguments) for name in arguments.servers or SERVERS]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
