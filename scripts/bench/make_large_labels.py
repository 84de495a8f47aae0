"""Writes a labels.parquet of a million rows, for timing `relabel vote` and `relabel inspect`.

Scores are random with the spread of the real scorers; votes and consensus follow from them; one row
in a thousand failed. Real captions recur: about 16 rows share one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Mean and standard deviation of each scorer's scores on generated images.
SCORERS = {
    "clip": (0.33, 0.05),
    "hps": (0.27, 0.02),
    "pickscore": (0.21, 0.012),
    "aesthetic": (5.5, 0.5),
}
ROWS_PER_FILE = 1500
BATCH = 122_880


def batch(start: int, rows: int, generator: np.random.Generator) -> pa.Table:
    number = np.arange(start, start + rows)
    ok = generator.random(rows) >= 0.001
    files = pa.array(
        [f"train-{index:05d}-of-00645.parquet" for index in range(number[-1] // ROWS_PER_FILE + 1)]
    )
    columns: dict[str, pa.Array] = {
        "pair_id": pa.array([str(1_000_000 + value) for value in number]),
        "source_file": pa.DictionaryArray.from_arrays(
            pa.array(number // ROWS_PER_FILE, pa.int32()), files
        ),
        "source_row": pa.array(number % ROWS_PER_FILE, pa.int64()),
        "caption": pa.array(
            [
                f"a highly detailed portrait of subject {value // 16}, trending on artstation, 8k"
                for value in number
            ]
        ),
        "image_0_uid": pa.array(
            [f"{value:08x}-0000-4000-8000-{value * 7919 % 2**32:012x}" for value in number]
        ),
        "image_1_uid": pa.array(
            [f"{value + 1:08x}-0000-4000-8000-{value * 104729 % 2**32:012x}" for value in number]
        ),
        "human_label_0": pa.array(
            generator.choice([1.0, 0.0, 0.5], size=rows, p=[0.445, 0.445, 0.11])
        ),
    }
    votes = np.zeros(rows, dtype=np.int64)
    common = generator.normal(size=(2, rows))
    for name, (mean, std) in SCORERS.items():
        # Half of what a scorer sees is what the others see, so that they agree as scorers do.
        scores = (
            mean + std * np.sqrt(0.5) * (common + generator.normal(size=(2, rows)))
        ).astype(np.float32)
        vote = np.where(scores[0] >= scores[1], 1, -1)
        votes += vote
        for side in (0, 1):
            columns[f"{name}_score_{side}"] = pa.array(scores[side], mask=~ok)
        columns[f"{name}_vote"] = pa.array(vote.astype(np.int8), mask=~ok)
    columns["vote_sum"] = pa.array(votes.astype(np.int8), mask=~ok)
    columns["consensus"] = pa.array(np.sign(votes).astype(np.int8), mask=~ok)
    columns["status"] = pa.array(np.where(ok, "ok", "decode_error"))
    columns["error"] = pa.array(
        [None if good else "image 0: truncated JPEG" for good in ok], pa.string()
    )
    return pa.table(columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    generator = np.random.default_rng(arguments.seed)
    required = {"pair_id", "source_file", "source_row", "status"}
    metadata = {
        "relabel.schema_version": "1",
        "relabel.fingerprint": "synthetic",
        "relabel.manifest": json.dumps(
            {"synthetic": True, "scorers": [{"name": name} for name in SCORERS]}
        ),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for start in range(0, arguments.rows, BATCH):
        table = batch(start, min(BATCH, arguments.rows - start), generator)
        if writer is None:
            schema = pa.schema(
                [field.with_nullable(field.name not in required) for field in table.schema],
                metadata=metadata,
            )
            writer = pq.ParquetWriter(
                arguments.out,
                schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=["source_file", "status"],
                write_page_index=True,
            )
        writer.write_table(table.cast(schema), row_group_size=BATCH)
    if writer is not None:
        writer.close()
    print(f"{arguments.out}: {arguments.rows} rows, {arguments.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
