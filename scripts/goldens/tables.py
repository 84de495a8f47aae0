"""Goldens of the tables: evaluate/tests/fixtures/tables/{scores.parquet,expected.csv,agreement.csv}.

Random scores with many ties and every kind of gap, and the tables by pandas, scipy and statsmodels.
It has no code in common with the program: it merges models pair by pair, groups prompts and counts cells.
Needs pandas==2.3.3 pyarrow scipy==1.16.3 statsmodels==0.14.5.
"""

import importlib.metadata
import pathlib

import numpy
import pandas
import pyarrow
import pyarrow.parquet
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parents[2] / "evaluate" / "tests" / "fixtures" / "tables"
VERSIONS = {"pandas": "2.3.3", "scipy": "1.16.3", "statsmodels": "0.14.5"}
MODELS = ["base", "diffusion_dpo", "balanced", "late"]
METRICS = ["hps", "clip", "aesthetic"]
SETS = {"parti": 45, "hpd": 20}
SEEDS = range(5)
IMAGE = ["prompt_set", "prompt_id", "prompt", "seed"]


def make_scores() -> pandas.DataFrame:
    random = numpy.random.default_rng(7)
    rows = []
    for place, model in enumerate(MODELS):
        for prompt_set, prompts in SETS.items():
            for prompt in range(prompts):
                # `late` has only a few prompts, and `balanced` misses some.
                if model == "late" and (prompt_set == "hpd" or prompt % 3):
                    continue
                if model == "balanced" and random.random() < 0.05:
                    continue
                text = f"prompt {prompt}, \"quoted\""
                if model == "diffusion_dpo" and prompt == 7:
                    text += " and changed"
                category = f"kind {prompt % 3}" if prompt_set == "parti" and prompt != 4 else None
                for seed in SEEDS:
                    # An image that is missing, and a model with fewer seeds.
                    if random.random() < 0.03 or (model == "late" and seed > 2):
                        continue
                    for metric in METRICS:
                        failed = random.random() < 0.05 or (model == "late" and metric == "clip")
                        score = round(random.normal(place * 0.3, 1) * 4) / 8
                        rows.append({
                            "model": model,
                            "prompt_set": prompt_set,
                            "prompt_id": f"{prompt:03}",
                            "prompt": text,
                            "category": category,
                            "seed": seed,
                            "metric": metric,
                            "score": None if failed else score,
                            "image": f"images/{model}/{prompt:03}/{seed}.png",
                            "error": "cannot decode" if failed else None,
                        })
    return pandas.DataFrame(rows)


def write_scores(scores: pandas.DataFrame) -> None:
    types = {name: pyarrow.string() for name in scores}
    types |= {"seed": pyarrow.int64(), "score": pyarrow.float32()}
    table = pyarrow.Table.from_pandas(scores, pyarrow.schema(list(types.items())), preserve_index=False)
    pyarrow.parquet.write_table(table, OUT / "scores.parquet", compression="zstd")


def decided(by_prompt: pandas.DataFrame) -> pandas.DataFrame:
    """One value of each model for a prompt."""
    frame = by_prompt.copy()
    frame["strict"] = (frame.a > frame.b).astype(float)
    frame["half"] = frame.strict + 0.5 * (frame.a == frame.b)
    frame["difference"] = frame.a - frame.b
    return frame


def compare(a: pandas.DataFrame, b: pandas.DataFrame) -> list[tuple]:
    """(statistic, metric, selected_by, a row for each prompt that can be compared)."""
    prompt = ["prompt_set", "prompt_id", "prompt"]
    both = a.merge(b, on=IMAGE + ["metric"], suffixes=("_a", "_b")).dropna(subset=["score_a", "score_b"])
    both["category"] = both.category_a.combine_first(both.category_b)
    found = []
    for metric in METRICS:
        scores = both[both.metric == metric]
        grouped = scores.groupby(prompt)
        about = grouped.agg(category=("category", "first"), seeds=("seed", "size"))
        best = about.join(grouped.agg(a=("score_a", "max"), b=("score_b", "max")))
        found.append(("best_of_n", metric, metric, decided(best)))
        mean = about.join(grouped.agg(a=("score_a", "mean"), b=("score_b", "mean")))
        found.append(("mean_of_n", metric, None, decided(mean)))
        crossed = scores[prompt + ["score_a"]].merge(scores[prompt + ["score_b"]], on=prompt)
        crossed["strict"] = (crossed.score_a > crossed.score_b).astype(float)
        crossed["half"] = crossed.strict + 0.5 * (crossed.score_a == crossed.score_b)
        crossed["lead"] = numpy.sign(crossed.score_a - crossed.score_b).astype(int)
        shares = about.join(crossed.groupby(prompt).agg(
            strict=("strict", "mean"), half=("half", "mean"), lead=("lead", "sum")
        ))
        shares["difference"] = mean.a - mean.b
        found.append(("all_pairs", metric, None, shares))
    wide = both.pivot(index=IMAGE, columns="metric", values=["score_a", "score_b"])
    category = both.drop_duplicates(prompt).set_index(prompt).category
    for chooser in METRICS:
        for metric in METRICS:
            columns = [(side, name) for side in ("score_a", "score_b") for name in (chooser, metric)]
            if chooser == metric or not all(column in wide for column in columns):
                continue
            scored = wide.dropna(subset=columns).sort_index()
            if scored.empty:
                continue
            grouped = scored.groupby(level=prompt)
            frame = pandas.DataFrame({"seeds": grouped.size()})
            for side in "ab":
                chosen = grouped[[(f"score_{side}", chooser)]].idxmax().iloc[:, 0]
                frame[side] = scored.loc[chosen, (f"score_{side}", metric)].to_numpy()
            frame["category"] = category.reindex(frame.index)
            found.append(("cross_selection", metric, chooser, decided(frame)))
    return found


def cell(frame: pandas.DataFrame, known: int) -> dict:
    # The model that wins more of its comparisons wins a prompt.
    lead = frame.lead if "lead" in frame else numpy.sign(frame.difference)
    count, wins, losses = len(frame), int((lead > 0).sum()), int((lead < 0).sum())
    rate = float(frame.half.mean())
    low, high = proportion_confint(rate * count, count, alpha=0.05, method="wilson")
    return {
        "seeds": int(frame.seeds.max()),
        "prompts": count,
        "excluded": known - count,
        "wins": wins,
        "ties": count - wins - losses,
        "losses": losses,
        "strict_rate": float(frame.strict.mean()),
        "win_rate": rate,
        "win_rate_low": float(low),
        "win_rate_high": float(high),
        "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        "mean_difference": float(frame.difference.mean()),
    }


def cohen_kappa(table: numpy.ndarray) -> float:
    """Of a 2 x 2 table of counts."""
    fractions = table / table.sum()
    alike, chance = numpy.trace(fractions), float(fractions.sum(axis=0) @ fractions.sum(axis=1))
    return (alike - chance) / (1 - chance)


def agreement(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Every two metrics: which of two images of a prompt scores higher, of all ordered pairs of images."""
    wide = scores.pivot(index=["prompt_set", "prompt_id", "prompt", "model", "seed"], columns="metric", values="score")
    metrics = list(dict.fromkeys(scores.metric))
    rows = []
    for place, later in enumerate(metrics):
        for earlier in metrics[:place]:
            tables = []
            for (prompt_set, *_), images in wide.groupby(level=["prompt_set", "prompt_id", "prompt"]):
                one, other = images[earlier].to_numpy(float), images[later].to_numpy(float)
                first, second = (numpy.sign(values[:, None] - values[None, :]) for values in (one, other))
                orders = ~numpy.isnan(first) & ~numpy.isnan(second) & (first != 0) & (second != 0)
                table = numpy.array([
                    [(orders & (first == a) & (second == b)).sum() for b in (1, -1)] for a in (1, -1)
                ], float)
                if table.sum():
                    tables.append((prompt_set, table))
            for name in [*SETS, "all"]:
                found = [table for prompt_set, table in tables if name in (prompt_set, "all")]
                # A prompt is the unit: each counts alike, however many images it has.
                mean = sum(table / table.sum() for table in found) / len(found)
                low, high = proportion_confint(numpy.trace(mean) * len(found), len(found), alpha=0.05, method="wilson")
                rows.append({
                    "prompt_set": name,
                    "metric_a": earlier,
                    "metric_b": later,
                    "prompts": len(found),
                    "pairs": int(sum(table.sum() for table in found) / 2),
                    "agreement": numpy.trace(mean),
                    "agreement_low": low,
                    "agreement_high": high,
                    "kappa": cohen_kappa(mean),
                })
    return pandas.DataFrame(rows)


def main() -> None:
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package) == version, package
    OUT.mkdir(parents=True, exist_ok=True)
    scores = make_scores()
    write_scores(scores)
    scores["score"] = scores.score.astype(float)
    rows = []
    for place, later in enumerate(MODELS):
        for earlier in MODELS[:place]:
            a, b = scores[scores.model == later], scores[scores.model == earlier]
            prompts = pandas.concat([a, b]).drop_duplicates(["prompt_set", "prompt_id", "prompt"])
            for statistic, metric, chooser, frame in compare(a, b):
                names = frame.index.get_level_values("prompt_set")
                scopes = [(name, None, names == name, prompts.prompt_set == name) for name in SETS]
                scopes.append(("all", None, names == names, prompts.prompt_set == prompts.prompt_set))
                if statistic == "best_of_n":
                    scopes += [
                        (name, kind, (names == name) & (frame.category == kind),
                         (prompts.prompt_set == name) & (prompts.category == kind))
                        for name in SETS
                        for kind in sorted(prompts.category.dropna().unique())
                    ]
                for prompt_set, category, inside, known in scopes:
                    if inside.any():
                        rows.append({
                            "prompt_set": prompt_set,
                            "category": category,
                            "model_a": later,
                            "model_b": earlier,
                            "metric": metric,
                            "statistic": statistic,
                            "selected_by": chooser,
                            **cell(frame[inside], int(known.sum())),
                        })
    expected = pandas.DataFrame(rows)
    family = expected.statistic + numpy.where(
        expected.category.notna(), " category", numpy.where(expected.prompt_set == "all", " all", " set")
    )
    expected["p_holm"] = 1.0
    for name in family.unique():
        of_family = family == name
        corrected = multipletests(expected.p_value[of_family], alpha=0.05, method="holm")[1]
        expected.loc[of_family, "p_holm"] = corrected
    expected.to_csv(OUT / "expected.csv", index=False)
    agreement(scores).to_csv(OUT / "agreement.csv", index=False)
    print(f"{len(scores)} scores, {len(expected)} cells, {int((expected.ties > 0).sum())} of them with ties")


if __name__ == "__main__":
    main()
