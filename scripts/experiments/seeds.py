"""What several seeds of a training say about noise, and what a fifth voter decides, as sections of Markdown.

    seeds.py --rows NAME... --seeds N... --tables DIR --voting FOUR.json FIVE.json --out SEEDS.md

DIR has `tables-seed-N/tables.csv`, which compares `base` and every `NAME-sN`. The two JSON files are what
`relabel inspect --voting --json` says of the same pairs with four voters and with five.

Intervals over seeds are the least and the greatest of them. Noise is the standard deviation between the seeds of one
row, pooled over the rows: with three seeds each it has two degrees of freedom a row. Two rows of three seeds differ
by more than noise if their means are further apart than t · s · √(2/3), with t of a two-sided test at 5 %.
"""

import argparse
import csv
import json
import math
import statistics
from pathlib import Path

STATISTICS = {"best_of_n": "best", "mean_of_n": "mean"}
# Quantiles of Student's t distribution at 0.975, by degrees of freedom.
T = {
    2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 18: 2.101, 20: 2.086,
}  # fmt: skip


class Rates:
    """Win rates in per cent, by seed."""

    def __init__(self, folder: Path, seeds: list[str]):
        self.cells: dict[tuple, float] = {}
        self.metrics: list[str] = []
        for seed in seeds:
            with open(folder / f"tables-seed-{seed}" / "tables.csv", newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["category"] or row["statistic"] not in STATISTICS:
                        continue
                    if row["metric"] not in self.metrics:
                        self.metrics.append(row["metric"])
                    a, b, rate = row["model_a"], row["model_b"], 100 * float(row["win_rate"])
                    self.cells[a, b, row["metric"], row["statistic"]] = rate
                    self.cells[b, a, row["metric"], row["statistic"]] = 100 - rate

    def over_seeds(self, name: str, other: str, seeds: list[str], metric: str, statistic: str) -> list[float]:
        """Of NAME against OTHER, both of one seed."""
        second = (lambda seed: "base") if other == "base" else (lambda seed: f"{other}-s{seed}")
        return [self.cells[f"{name}-s{seed}", second(seed), metric, statistic] for seed in seeds]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(rates: list[float]) -> str:
    return f"{statistics.mean(rates):.1f} <sub>{min(rates):.1f}–{max(rates):.1f}</sub>"


def against(rates: Rates, names: list[str], other: str, seeds: list[str]) -> str:
    columns = [(metric, statistic) for metric in rates.metrics for statistic in STATISTICS]
    rows = [
        [name, *(cell(rates.over_seeds(name, other, seeds, *column)) for column in columns)]
        for name in names
        if name != other
    ]
    header = ["Model", *(f"{metric} {STATISTICS[statistic]}" for metric, statistic in columns)]
    return (
        f"Win rates (%) against {other}, by the best of the five images and by their mean: the mean over "
        f"{len(seeds)} seeds, in small type the least and the greatest.\n\n" + table(header, rows)
    )


def noise(rates: Rates, names: list[str], seeds: list[str]) -> str:
    freedom = len(names) * (len(seeds) - 1)
    quantile = T[min(T, key=lambda known: (known > freedom, abs(known - freedom)))]
    rows = []
    for metric in rates.metrics:
        for statistic, short in STATISTICS.items():
            variances = [
                statistics.variance(rates.over_seeds(name, "base", seeds, metric, statistic)) for name in names
            ]
            pooled = math.sqrt(statistics.mean(variances))
            rows.append([
                f"{metric} {short}",
                f"{pooled:.1f}",
                f"{quantile * pooled * math.sqrt(2 / len(seeds)):.1f}",
                f"{quantile * pooled * math.sqrt(1 + 1 / len(seeds)):.1f}",
                f"{quantile * pooled * math.sqrt(2):.1f}",
            ])
    header = [
        "Win rate against base",
        "std between seeds",
        f"two rows of {len(seeds)} seeds",
        f"one seed and {len(seeds)}",
        "two rows of one seed",
    ]
    return (
        f"Points by which win rates against the base differ from seed to seed (standard deviation, pooled over "
        f"{len(names)} rows of {len(seeds)} seeds), and by how much two rows must differ to be more than that noise "
        f"(two-sided t test at 5 %, {freedom} degrees of freedom, not corrected for the number of comparisons).\n\n"
        + table(header, rows)
    )


def rate(found: dict | None) -> str:
    if not found:
        return "–"
    return f"{100 * found['rate']:.1f} <sub>{100 * found['low']:.1f}–{100 * found['high']:.1f}</sub>"


def rules(four: dict, five: dict) -> str:
    rows = []
    for study in (four, five):
        count = len(study["voters"])
        for rule in study["rules"]:
            ties = rule["on_ties_of_the_majority"]
            rows.append([
                f"{count} voters, {rule['name'].replace('_', '-')}",
                f"{100 * rule['coverage']:.1f}",
                rate(rule["human_agreement"]),
                rate(rule["human_agreement_ties_half"]),
                f"{round(ties['rate'] * ties['pairs'])} of {ties['pairs']}" if ties else "–",
            ])
    header = ["Rule", "pairs decided", "agreement of decided", "ties as half", "on the majority's ties"]
    return (
        f"Agreement (%) of rules with the human labels of {four['human_pairs']} pairs, with 95 % Wilson intervals "
        "(`relabel inspect --voting`). Weighted: weights of the other four of five folds.\n\n" + table(header, rows)
    )


def fifth(four: dict, five: dict) -> str:
    known = {voter["name"] for voter in four["voters"]}
    new = [voter for voter in five["voters"] if voter["name"] not in known]
    if not new:
        return "The two files of scorers have the same voters.\n"
    voter = new[0]
    majority = four["rules"][0]
    on_ties = voter["human_agreement_on_them"]
    agreed = "no person preferred an image of these"
    if on_ties:
        low, high = 100 * on_ties["low"], 100 * on_ties["high"]
        verdict = "which could be chance"
        if low > 50 or high < 50:
            verdict = "which is more often than chance" if low > 50 else "which is less often than chance"
        agreed = (
            f"of the {on_ties['pairs']} of them with a human preference, people agree with it on "
            f"{round(on_ties['rate'] * on_ties['pairs'])} ({100 * on_ties['rate']:.0f} %, 95 % interval {low:.0f} to "
            f"{high:.0f}), {verdict}"
        )
    pivotal = five["rules"][0]["pivotal"]
    others = ", ".join(f"{name} {100 * value:.0f} %" for name, value in pivotal.items() if name != voter["name"])
    return (
        f"The four leave {majority['ties']} of {four['voted_rows']} pairs undecided. The fifth voter, {voter['name']}, "
        f"decides {voter['ties_of_the_others']} of them; {agreed}. On all pairs it agrees with people on "
        f"{rate(voter['human_agreement'])} %. With five voters its opposite vote would change the majority on "
        f"{100 * pivotal[voter['name']]:.0f} % of the pairs ({others}).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--voting", nargs=2, type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    names, seeds = arguments.rows, arguments.seeds
    rates = Rates(arguments.tables, seeds)
    four, five = (json.loads(path.read_text(encoding="utf-8")) for path in arguments.voting)
    sections = {
        "Against the base": against(rates, names, "base", seeds),
        "Against balanced": against(rates, names, "balanced", seeds),
        "Noise": noise(rates, names, seeds),
        "Rules": rules(four, five),
        "The fifth voter": fifth(four, five),
    }
    text = "".join(f"## {title}\n\n{content}\n" for title, content in sections.items())
    partial = arguments.out.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(arguments.out)


if __name__ == "__main__":
    main()
