"""Checks a labels file with DuckDB and pandas, two readers that share no code with the writer.

    schemas sql LABELS.parquet > views.sql
    python scripts/checks/duckdb_recheck.py LABELS.parquet views.sql [--allow-broken-ties]

Without a second file the views are schemas/duckdb/labels.sql, which name the five default scorers.
Computes every vote, vote_sum and consensus again from the scores, and checks what types cannot
express: unique ids, no NaN. Exits with 1 if anything differs. `--allow-broken-ties` accepts a
consensus other than 0 although the votes cancel out (`relabel vote --ties ...`).
Needs duckdb, pandas and pyarrow.
"""

import argparse
import json
import pathlib
import re
import sys

import duckdb
import pandas


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels")
    default_views = pathlib.Path(__file__).parents[2] / "schemas/duckdb/labels.sql"
    parser.add_argument("views", nargs="?", default=default_views, type=pathlib.Path)
    parser.add_argument("--allow-broken-ties", action="store_true")
    arguments = parser.parse_args()

    quoted = arguments.labels.replace("'", "''")
    views = re.sub(
        r"read_parquet\('(?:[^']|'')*'\)",
        lambda _: f"read_parquet('{quoted}')",
        arguments.views.read_text(encoding="utf-8"),
    )
    database = duckdb.connect()
    database.execute(views)
    problems = []

    def one_row(query: str) -> tuple:
        return database.sql(query).fetchall()[0]

    differences = "FROM recheck"
    if arguments.allow_broken_ties:
        differences += " WHERE difference <> 'tie'"
    if count := one_row(f"SELECT count(*) {differences}")[0]:
        first = database.sql(f"{differences} LIMIT 10")
        problems.append(f"{count} differences, the first of them:\n{first}")

    rows, ids = one_row("SELECT count(*), count(DISTINCT pair_id) FROM labels")
    if rows != ids:
        problems.append(f"{rows} rows with {ids} different pair_ids")
    for name, kind in database.sql("SELECT column_name, column_type FROM (DESCRIBE labels)").fetchall():
        if kind in ("FLOAT", "DOUBLE"):
            bad = f"SELECT count(*) FROM labels WHERE NOT isfinite({name})"
            if count := one_row(bad)[0]:
                problems.append(f"{count} values of {name} are NaN or infinite")

    keys = {
        key.decode(): value.decode()
        for key, value in database.execute(
            "SELECT key, value FROM parquet_kv_metadata(?)", [arguments.labels]
        ).fetchall()
    }
    if "relabel.schema_version" not in keys:
        problems.append("no relabel.schema_version in the metadata")
    if "relabel.manifest" in keys:
        json.loads(keys["relabel.manifest"])

    frame = pandas.read_parquet(arguments.labels)
    if len(frame) != rows:
        problems.append(f"pandas reads {len(frame)} rows, DuckDB {rows}")
    if str(frame["source_file"].dtype) != "category":
        problems.append(f"pandas reads source_file as {frame['source_file'].dtype}, not a category")
    if any(frame[name].dtype == object for name in frame if name.endswith(("_score_0", "_score_1"))):
        problems.append("pandas reads scores as objects")

    for problem in problems:
        print(f"error: {arguments.labels}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{arguments.labels}: {rows} rows, every vote and consensus confirmed")
        print(database.sql("FROM agreement WHERE scorer_a < scorer_b"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
