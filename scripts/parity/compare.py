"""Holds labels.parquet against the reference scores; exits 1 where they differ too much.

Bounds on |difference|: 1e-5 for cosines and probabilities; 1e-4 for aesthetic scores, whose head stretches a unit
vector to about 5 +- 0.65 (a norm of 18), so that 1e-4 there is 5.5e-6 of a feature; 1e-5 for
ImageReward, whose scores have a standard deviation of about 1. Votes, their
sum and the consensus are recomputed from the scores by DuckDB and must be the ones in the file.
"""

import argparse
import sys
from pathlib import Path

import duckdb
import pandas as pd
import tomllib

BOUNDS = {"clip": 1e-5, "aesthetic": 1e-4, "image-reward": 1e-5, "siglip": 1e-5, "aesthetic-siglip": 1e-4}


def recheck(labels: Path, scorers: list[str]) -> int:
    """Rows whose votes, sum or consensus are not what DuckDB computes from the scores."""
    votes = [f"(CASE WHEN {name}_score_0 >= {name}_score_1 THEN 1 ELSE -1 END)" for name in scorers]
    total = " + ".join(votes)
    wrong = [f"{name}_vote IS DISTINCT FROM {vote}" for name, vote in zip(scorers, votes)]
    wrong += [f"vote_sum IS DISTINCT FROM ({total})", f"consensus IS DISTINCT FROM sign({total})"]
    query = f"SELECT count(*) FROM read_parquet($1) WHERE status = 'ok' AND ({' OR '.join(wrong)})"
    return duckdb.execute(query, [str(labels)]).fetchone()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, required=True, help="written by relabel score")
    parser.add_argument(
        "--reference", type=Path, required=True, help="written by reference_scores.py"
    )
    parser.add_argument("--scorers-dir", type=Path, required=True)
    parser.add_argument(
        "--bound-scale",
        type=float,
        default=1.0,
        help="multiplies the bounds, for reduced precision (default 1)",
    )
    arguments = parser.parse_args()

    entries = tomllib.loads((arguments.scorers_dir / "scorers.toml").read_text(encoding="utf-8"))[
        "scorer"
    ]
    ours = pd.read_parquet(arguments.labels)
    theirs = pd.read_parquet(arguments.reference)
    failures = []
    if list(ours["pair_id"]) != list(theirs["pair_id"]):
        sys.exit(
            f"{arguments.labels}: its pairs are not those of {arguments.reference}, in the same order"
        )
    if not (ours["status"] == "ok").all():
        failures.append(
            f"{(ours['status'] != 'ok').sum()} rows have no votes: {ours['status'].value_counts().to_dict()}"
        )

    print(
        f"{'scorer':<18} {'max |diff|':>10} {'mean |diff|':>11} {'bound':>8} {'mean':>8} {'std':>8} "
        f"{'diff/std':>9} {'votes':>7}"
    )
    for entry in entries:
        name = entry["name"]
        columns = [f"{name}_score_0", f"{name}_score_1"]
        our, their = ours[columns].astype("float64"), theirs[columns].astype("float64")
        difference = (our - their).abs().to_numpy()
        bound = BOUNDS[entry["kind"]] * arguments.bound_scale
        spread = their.to_numpy().std()
        reference_votes = (their[columns[0]] >= their[columns[1]]).map({True: 1, False: -1})
        changed = int((ours[f"{name}_vote"].astype("Int64") != reference_votes).sum())
        # A null score compares as NaN: it must fail, so the question is asked the other way round.
        if not difference.max() <= bound or pd.isna(difference).any():
            failures.append(
                f"{name}: scores differ by {difference.max():.2e}, more than {bound:.0e}"
            )
        print(
            f"{name:<18} {difference.max():10.2e} {difference.mean():11.2e} {bound:8.0e} "
            f"{their.to_numpy().mean():8.4f} {spread:8.4f} "
            f"{difference.max() / spread:9.1e} {changed:3d}/{len(ours)}"
        )
    wrong = recheck(arguments.labels, [entry["name"] for entry in entries])
    print(f"DuckDB recomputes votes, vote_sum and consensus of {len(ours)} rows: {wrong} differ")
    if wrong:
        failures.append(f"{wrong} rows hold other votes than their scores say")
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
