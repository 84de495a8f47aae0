"""Goldens of the statistics beside win rates: evaluate/tests/fixtures/statistics.json.

Exact sign tests, Wilson intervals, Holm's correction and percentiles, by the usual libraries.
Needs scipy==1.16.3 statsmodels==0.14.5 numpy.
"""

import importlib.metadata
import json
import pathlib

import numpy
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parents[2] / "evaluate" / "tests" / "fixtures" / "statistics.json"
VERSIONS = {"scipy": "1.16.3", "statsmodels": "0.14.5"}
# The paper's sample sizes, tiny ones, and more prompts than any evaluation has.
COUNTS = [1, 2, 5, 17, 100, 150, 297, 500, 1129, 1632, 10_000, 100_000]


def splits(count: int) -> list[int]:
    """Numbers of wins from none to all, most of them near one half, so that p is not tiny."""
    near = [count // 2 + round(step * count**0.5) for step in (-8, -4, -2, -1, -0.5, 0, 0.3, 1, 1.5, 3, 6)]
    far = [0, 1, count // 10, count // 3, 2 * count // 3, count - 1, count]
    return sorted({wins for wins in near + far if 0 <= wins <= count})


def main() -> None:
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package) == version, package
    signs = [
        [wins, count - wins, float(binomtest(wins, count).pvalue)]
        for count in COUNTS
        for wins in splits(count)
    ]
    # A tie counts as half a win.
    wilson = []
    for count in COUNTS:
        for wins in splits(count):
            for half in (0, 0.5):
                if wins + half <= count:
                    low, high = proportion_confint(wins + half, count, alpha=0.05, method="wilson")
                    wilson.append([wins + half, count, float(low), float(high)])
    random = numpy.random.default_rng(0)
    holm = []
    for tests in (1, 2, 12, 36, 240):
        p_values = random.beta(0.3, 1.5, tests)
        p_values[random.random(tests) < 0.2] = 1.0
        p_values[random.random(tests) < 0.2] = p_values[0]
        corrected = multipletests(p_values, alpha=0.05, method="holm")[1]
        holm.append([p_values.tolist(), corrected.tolist()])
    percentiles = []
    for count in (1, 2, 39, 1000):
        values = random.normal(size=count)
        percentiles.append([values.tolist(), numpy.percentile(values, [2.5, 97.5]).tolist()])
    golden = {"sign_test": signs, "wilson": wilson, "holm": holm, "percentiles": percentiles}
    OUT.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print({name: len(cases) for name, cases in golden.items()})


if __name__ == "__main__":
    main()
