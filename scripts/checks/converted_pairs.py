"""Opens the pairs that `relabel convert` wrote, in DuckDB and pyarrow, beside those they were made of.

    converted_pairs.py COPY_FOLDER ORIGINAL.parquet...

Rows, captions, uids, ids, human labels and the bytes of images are equal; row groups have at most 128 MiB,
each image column has an index of its pages, and the metadata name the original. The originals are in
Pick-a-Pic's columns.
"""

import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

SAME = ["caption", "image_0_uid", "image_1_uid", "label_0", "ranking_id"]
MOST_BYTES = 128 << 20


def main() -> None:
    folder, originals = Path(sys.argv[1]), sys.argv[2:]
    copies = sorted(str(path) for path in folder.rglob("*.parquet"))
    for path in copies:
        footer = pq.ParquetFile(path).metadata
        assert b"balanceddpo.pairs.source_file" in footer.metadata, f"{path}: not a copy"
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            assert group.total_byte_size < MOST_BYTES, f"{path}: row group {number} of {group.total_byte_size} bytes"
            columns = [group.column(column) for column in range(group.num_columns)]
            assert all(column.has_offset_index for column in columns), f"{path}: no index of pages"
    database = duckdb.connect()
    for name, files in [("copy", copies), ("original", originals)]:
        columns = ", ".join(f"CAST({column} AS VARCHAR) AS {column}" for column in SAME)
        table = f"SELECT {columns}, md5(jpg_0::BLOB) AS jpg_0, md5(jpg_1::BLOB) AS jpg_1 FROM read_parquet({files})"
        database.execute(f"CREATE TABLE {name} AS {table}")

    def count(query: str) -> int:
        return database.execute(f"SELECT count(*) FROM ({query})").fetchone()[0]

    rows = count("FROM original")
    assert rows > 0 and rows == count("FROM copy"), f"{rows} rows, {count('FROM copy')} in the copy"
    for one, other in [("copy", "original"), ("original", "copy")]:
        different = count(f"FROM {one} EXCEPT ALL FROM {other}")
        assert different == 0, f"{different} rows of the {one} are not in the {other}"
    print(f"{rows} pairs in {len(copies)} files are those of {len(originals)}")


if __name__ == "__main__":
    main()
