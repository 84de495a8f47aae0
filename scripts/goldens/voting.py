"""Goldens of the study of voting rules: relabel/tests/fixtures/voting.json.

Random votes of five voters with known rates, with missing votes, equal scores, human ties and rows without human
labels, and what `relabel inspect --voting` must say of all five and of the first four. Written from the papers (Dawid
and Skene 1979, Equations 2.3 to 2.5; Nitzan and Paroush 1982), row by row on dense arrays, with no code in common with
the program.

    python scripts/goldens/voting.py                      # writes the fixture
    python scripts/goldens/voting.py LABELS.parquet       # the same numbers of a labels file (needs pandas, pyarrow)

Needs numpy==2.4.6 scipy==1.16.3 statsmodels==0.14.5.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys

import numpy
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parents[2] / "relabel" / "tests" / "fixtures" / "voting.json"
VERSIONS = {"numpy": "2.4.6", "scipy": "1.16.3", "statsmodels": "0.14.5"}
VOTERS = ["clip", "hps", "pickscore", "aesthetic", "image_reward"]
# How often each voter is right where image 0 is better, and where image 1 is.
RIGHT = [[0.72, 0.66], [0.85, 0.81], [0.78, 0.86], [0.58, 0.61], [0.76, 0.7]]
ROWS = 300
FOLDS = 5
EVEN = 1e-9


def make_rows() -> list[dict]:
    random = numpy.random.default_rng(11)
    rows = []
    for number in range(ROWS):
        better = 0 if random.random() < 0.55 else 1
        scores = []
        for right in RIGHT:
            favoured = better if random.random() < right[better] else 1 - better
            size = int(random.integers(0, 24))
            low = int(random.integers(0, 64))
            pair = [low, low]
            pair[favoured] += size
            # A voter that failed has no scores.
            scores.append(None if random.random() < 0.06 else pair)
        if number == 17:
            scores = [None] * len(RIGHT)
        agrees = random.random() < 0.9
        human = float(1 - better if agrees else better)
        if random.random() < 0.1:
            human = 0.5
        rows.append({
            "caption": f"caption {number // 3}",
            # In units of 1/64, so that differences are exact.
            "scores": scores,
            "human_label_0": None if random.random() < 0.1 else human,
        })
    return rows


def rate(halves: list[float]) -> dict | None:
    if not halves:
        return None
    mean = float(numpy.mean(halves))
    low, high = proportion_confint(sum(halves), len(halves), alpha=0.05, method="wilson")
    return {"pairs": len(halves), "rate": mean, "low": max(float(low), 0.0), "high": min(float(high), 1.0)}


def agreement(decisions, human, rows) -> dict | None:
    return rate([0.5 if decisions[row] == 0 else float(decisions[row] == human[row]) for row in rows])


def sign(sums, all_weights):
    return numpy.where(numpy.abs(sums) <= EVEN * all_weights, 0, numpy.sign(sums)).astype(int)


def dawid_skene(votes):
    """Votes are rows × voters of +1, -1, 0. Classes are image 0 and image 1."""
    cast = numpy.stack([votes == 1, votes == -1], axis=2).astype(float)
    answers = cast.sum(axis=1) / cast.sum(axis=(1, 2))[:, None]
    before, iterations = -numpy.inf, 0
    while True:
        iterations += 1
        prior = answers.mean(axis=0)
        # errors[class, voter, vote]: Equation 2.3.
        counts = numpy.einsum("rc,rvl->cvl", answers, cast)
        with numpy.errstate(invalid="ignore", divide="ignore"):
            errors = counts / counts.sum(axis=2, keepdims=True)
            powers = numpy.where(cast[:, None] > 0, errors[None], 1.0)
            joint = prior * powers.prod(axis=(2, 3))
        total = joint.sum(axis=1)
        answers = joint / total[:, None]
        log_likelihood = float(numpy.log(total).sum())
        if abs(log_likelihood - before) < 1e-9:
            break
        before = log_likelihood
    return prior, errors, log_likelihood, iterations


def decide_dawid_skene(prior, errors, votes):
    cast = numpy.stack([votes == 1, votes == -1], axis=2)
    joint = prior * numpy.where(cast[:, None], errors[None], 1.0).prod(axis=(2, 3))
    first = joint[:, 0] / joint.sum(axis=1)
    return numpy.where(first > 0.5 + EVEN, 1, numpy.where(first < 0.5 - EVEN, -1, 0))


def study(voters, scores, human_label_0, captions) -> dict:
    """Scores are rows × voters × 2, with NaN where a voter has no score."""
    margins = (scores[:, :, 0] - scores[:, :, 1]).astype(numpy.float64)
    votes = numpy.where(numpy.isnan(margins), 0, numpy.where(margins >= 0, 1, -1))
    kept = (votes != 0).any(axis=1)
    rows_of_file = len(votes)
    margins, votes, human_label_0 = margins[kept], votes[kept], human_label_0[kept]
    captions = [caption for caption, is_kept in zip(captions, kept) if is_kept]
    human = numpy.nan_to_num(numpy.sign(human_label_0 - 0.5)).astype(int)
    labelled = [row for row in range(len(votes)) if human[row] != 0]
    folds = numpy.array([
        int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "little") % FOLDS for caption in captions
    ])

    def weights(rows):
        logs = []
        for voter in range(len(voters)):
            heard = [row for row in rows if votes[row, voter] != 0]
            p = (sum(votes[row, voter] == human[row] for row in heard) + 1) / (len(heard) + 2)
            logs.append(max(0.0, float(numpy.log(p / (1 - p)))))
        return numpy.array(logs)

    by_fold = numpy.array([weights([row for row in labelled if folds[row] != fold]) for fold in range(FOLDS)])
    sizes = numpy.zeros_like(margins)
    for voter in range(len(voters)):
        scored = ~numpy.isnan(margins[:, voter])
        size = numpy.abs(margins[scored, voter])
        sizes[scored, voter] = numpy.where(size == 0, 0, rankdata(size) / len(size))
    prior, errors, log_likelihood, iterations = dawid_skene(votes)

    def majority(ballots):
        return numpy.sign(ballots.sum(axis=1))

    def unanimous(ballots):
        first, second = (ballots == 1).any(axis=1), (ballots == -1).any(axis=1)
        return first.astype(int) * ~second - second.astype(int) * ~first

    rules = {
        "majority": majority,
        "weighted": lambda ballots: sign((ballots * by_fold[folds]).sum(axis=1), (numpy.abs(ballots) * by_fold[folds]).sum(axis=1)),
        "borda": lambda ballots: sign((ballots * sizes).sum(axis=1), (numpy.abs(ballots) * sizes).sum(axis=1)),
        "dawid_skene": lambda ballots: decide_dawid_skene(prior, errors, ballots),
        "unanimous": unanimous,
    }
    of_majority = majority(votes)
    found = []
    for name, rule in rules.items():
        decisions = rule(votes)
        pivotal = {}
        for voter, voter_name in enumerate(voters):
            turned = votes.copy()
            turned[:, voter] *= -1
            pivotal[voter_name] = float(((rule(turned) != decisions) & (votes[:, voter] != 0)).mean())
        decided = [row for row in labelled if decisions[row] != 0]
        found.append({
            "name": name,
            "decided": int((decisions != 0).sum()),
            "ties": int((decisions == 0).sum()),
            "coverage": float((decisions != 0).mean()),
            "human_agreement": agreement(decisions, human, decided),
            "human_agreement_ties_half": agreement(decisions, human, labelled),
            "on_ties_of_the_majority": agreement(decisions, human, [r for r in decided if of_majority[r] == 0]),
            "against_the_majority": agreement(decisions, human, [r for r in decided if of_majority[r] == -decisions[r]]),
            "pivotal": pivotal,
        })
    of_voters = []
    for voter, name in enumerate(voters):
        vote = votes[:, voter]
        ties = (vote != 0) & (votes.sum(axis=1) - vote == 0)
        of_voters.append({
            "name": name,
            "votes": int((vote != 0).sum()),
            "human_agreement": agreement(vote, human, [row for row in labelled if vote[row] != 0]),
            "weight": float(weights(labelled)[voter]),
            "ties_of_the_others": int(ties.sum()),
            "human_agreement_on_them": agreement(vote, human, [row for row in labelled if ties[row]]),
        })
    return {
        "rows": rows_of_file,
        "voted_rows": len(votes),
        "partial_rows": int((votes == 0).any(axis=1).sum()),
        "human_pairs": len(labelled),
        "folds": FOLDS,
        "rules": found,
        "voters": of_voters,
        "dawid_skene": {
            "class_prior": prior.tolist(),
            "reliability": {
                name: [float(errors[0, voter, 0]), float(errors[1, voter, 1])] for voter, name in enumerate(voters)
            },
            "log_likelihood": log_likelihood,
            "iterations": iterations,
            "converged": True,
        },
    }


def of_rows(rows: list[dict], voters: int) -> dict:
    none = [float("nan")] * 2
    scores = numpy.array([[pair or none for pair in row["scores"][:voters]] for row in rows], numpy.float64) / 64
    human = numpy.array([numpy.nan if row["human_label_0"] is None else row["human_label_0"] for row in rows])
    return study(VOTERS[:voters], scores, human, [row["caption"] for row in rows])


def of_file(path: str) -> dict:
    import pandas

    labels = pandas.read_parquet(path)
    voters = [name.removesuffix("_vote") for name in labels if name.endswith("_vote")]
    columns = [[f"{name}_score_{side}" for side in (0, 1)] for name in voters]
    scores = numpy.stack([labels[pair].to_numpy(numpy.float32) for pair in columns], axis=1)
    return study(voters, scores, labels["human_label_0"].to_numpy(float), labels["caption"].tolist())


def main() -> None:
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package) == version, package
    if len(sys.argv) > 1:
        print(json.dumps(of_file(sys.argv[1]), indent=1))
        return
    rows = make_rows()
    golden = {"voters": VOTERS, "rows": rows, "five": of_rows(rows, 5), "four": of_rows(rows, 4)}
    OUT.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows, {golden['five']['dawid_skene']['iterations']} iterations, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
