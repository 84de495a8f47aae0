"""Golden of the event files: crates/runkit/tests/fixtures/tensorboard/events.out.tfevents.golden.

Needs tensorboard 2.21.0. With `--check FOLDER` it prints the entries that TensorBoard's reader
finds in the event files of a folder.
"""

import argparse
import math
import pathlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates" / "runkit" / "tests" / "fixtures" / "tensorboard" / "events.out.tfevents.golden"
TIME = 1_700_000_000.25


def write() -> None:
    value = Summary.Value
    scalars = [
        value(tag="loss", simple_value=math.log(2.0)),
        value(tag="z/mean", simple_value=-0.0),
        value(tag="bad", simple_value=math.nan),
    ]
    image = Summary.Image(height=3, width=640, colorspace=3, encoded_image_string=b"\x89PNG\0\1\2")
    events = [
        Event(wall_time=TIME, file_version="brain.Event:2"),
        Event(wall_time=TIME, step=101, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=TIME, step=101, summary=Summary(value=scalars)),
        Event(
            wall_time=TIME,
            step=1 << 40,
            summary=Summary(value=[value(tag="samples/a cat", image=image)]),
        ),
    ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    print(f"{OUT}: {OUT.stat().st_size} bytes")


def check(folder: str) -> None:
    found = EventAccumulator(folder)
    found.Reload()
    for tag in found.Tags()["scalars"]:
        print(tag, [(event.step, event.value) for event in found.Scalars(tag)])
    for tag in found.Tags()["images"]:
        print(tag, [(event.step, event.width, event.height) for event in found.Images(tag)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", metavar="FOLDER")
    arguments = parser.parse_args()
    check(arguments.check) if arguments.check else write()


if __name__ == "__main__":
    main()
