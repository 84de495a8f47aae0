"""Compares the labels that `evaluate pairs` writes beside its pairs with those that `relabel score`
makes of the same pairs and the same scorers. DuckDB opens all three.

    own_pairs.py PAIRS_FOLDER LABELS.parquet

Rows, ids, captions and uids are equal, and scores up to the last bits, which depend on what an image
shares its batch with. Votes are equal wherever the two scores differ by more than that.
"""

import sys
from pathlib import Path

import duckdb

LAST_BITS = 1e-4


def main() -> None:
    folder, relabelled = Path(sys.argv[1]), sys.argv[2]
    database = duckdb.connect()
    database.execute(f"CREATE VIEW pairs AS FROM read_parquet('{folder}/pairs-*.parquet')")
    database.execute(f"CREATE VIEW own AS FROM '{folder}/labels.parquet'")
    database.execute(f"CREATE VIEW relabelled AS FROM '{relabelled}'")

    def number(query: str) -> int:
        return database.execute(query).fetchone()[0]

    pairs = number("SELECT count(*) FROM pairs WHERE octet_length(jpg_0) > 0 AND octet_length(jpg_1) > 0")
    columns = [row[0] for row in database.execute("DESCRIBE own").fetchall()]
    assert columns == [row[0] for row in database.execute("DESCRIBE relabelled").fetchall()], columns
    same = [*columns[:7], "status"]
    equal = " AND ".join(f"o.{name} IS NOT DISTINCT FROM r.{name}" for name in same)
    join = f"own o JOIN relabelled r ON {equal}"
    joined = number(f"SELECT count(*) FROM {join}")
    counts = (pairs, number("SELECT count(*) FROM own"), number("SELECT count(*) FROM relabelled"), joined)
    assert len(set(counts)) == 1 and pairs > 0, f"pairs, own, relabelled, joined: {counts}"
    clear = "true"
    for scorer in [name.removesuffix("_vote") for name in columns if name.endswith("_vote")]:
        far = " OR ".join(f"abs(o.{scorer}_score_{i} - r.{scorer}_score_{i}) > {LAST_BITS}" for i in (0, 1))
        assert number(f"SELECT count(*) FROM {join} WHERE {far}") == 0, f"scores of {scorer} differ"
        margin = f"abs(o.{scorer}_score_0 - o.{scorer}_score_1) > {2 * LAST_BITS}"
        assert number(f"SELECT count(*) FROM {join} WHERE {margin}") > pairs / 2, f"{scorer} decides little"
        votes = f"{margin} AND o.{scorer}_vote <> r.{scorer}_vote"
        assert number(f"SELECT count(*) FROM {join} WHERE {votes}") == 0, f"votes of {scorer} differ"
        clear += f" AND {margin}"
    different = "o.vote_sum <> r.vote_sum OR o.consensus <> r.consensus"
    assert number(f"SELECT count(*) FROM {join} WHERE {clear} AND ({different})") == 0, "consensus differs"
    print(f"{pairs} pairs: the labels beside them are those of relabel score")


if __name__ == "__main__":
    main()
