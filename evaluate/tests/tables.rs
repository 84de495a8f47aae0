//! Tables of scores: equal to an independent computation, the same in any order of the rows, and
//! with a note for everything they exclude.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Run, evaluate};
use evaluate::tables::{MetricAgreement, Tables, TablesConfig, TablesError};
use proptest::prelude::*;
use schemas::scores::{ScoreRow, ScoresFile, ScoresWriter};
use schemas::winrates::{Statistic, WinRateRow, WinRatesFile};
use tempfile::tempdir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name)
}

fn golden_scores() -> Vec<ScoreRow> {
    ScoresFile::open(fixture("scores.parquet")).unwrap().read().unwrap()
}

/// Few resamples: what they give is tested elsewhere.
fn config() -> TablesConfig {
    TablesConfig { bootstrap: 40, ..TablesConfig::default() }
}

fn compute(scores: &[ScoreRow]) -> Tables {
    Tables::compute(scores, &config()).unwrap()
}

fn score(model: &str, prompt: usize, seed: i64, metric: &str, score: f32) -> ScoreRow {
    ScoreRow {
        model: model.to_owned(),
        prompt_set: "set".to_owned(),
        prompt_id: format!("{prompt:04}"),
        prompt: format!("prompt {prompt}"),
        category: None,
        seed,
        metric: metric.to_owned(),
        score: Some(score),
        image: format!("images/{model}/{prompt:04}/{seed}.png"),
        error: None,
    }
}

/// Which cell it is.
fn key(row: &WinRateRow) -> [String; 7] {
    [
        row.prompt_set.clone(),
        row.category.clone().unwrap_or_default(),
        row.model_a.clone(),
        row.model_b.clone(),
        row.metric.clone(),
        row.statistic.to_string(),
        row.selected_by.clone().unwrap_or_default(),
    ]
}

fn by_key(tables: &Tables) -> BTreeMap<[String; 7], WinRateRow> {
    tables.win_rates.iter().map(|row| (key(row), row.clone())).collect()
}

/// `scripts/goldens/tables.py`: ties, missing images and prompts, failed scores, fewer seeds, a
/// changed text.
#[test]
fn win_rates_equal_those_of_pandas() {
    let tables = compute(&golden_scores());
    let mut found = by_key(&tables);
    assert_eq!(found.len(), tables.win_rates.len());
    let mut expected = csv::Reader::from_path(fixture("expected.csv")).unwrap();
    let mut statistics = BTreeMap::<String, usize>::new();
    for cell in expected.deserialize::<HashMap<String, String>>() {
        let cell = cell.unwrap();
        let names =
            ["prompt_set", "category", "model_a", "model_b", "metric", "statistic", "selected_by"];
        let key = names.map(|name| cell[name].clone());
        let row = found.remove(&key).unwrap_or_else(|| panic!("no cell {key:?}"));
        *statistics.entry(key[5].clone()).or_default() += 1;
        for (name, count) in [
            ("seeds", row.seeds),
            ("prompts", row.prompts),
            ("excluded", row.excluded),
            ("wins", row.wins),
            ("ties", row.ties),
            ("losses", row.losses),
        ] {
            assert_eq!(count, cell[name].parse::<i64>().unwrap(), "{name} of {key:?}");
        }
        for (name, number, exact) in [
            ("strict_rate", row.strict_rate, row.statistic != Statistic::AllPairs),
            ("win_rate", row.win_rate, row.statistic != Statistic::AllPairs),
            ("win_rate_low", row.win_rate_low, false),
            ("win_rate_high", row.win_rate_high, false),
            ("p_value", row.p_value, false),
            ("p_holm", row.p_holm, false),
            ("mean_difference", row.mean_difference, false),
        ] {
            let expected = cell[name].parse::<f64>().unwrap();
            let close = (number - expected).abs() < if exact { f64::MIN_POSITIVE } else { 1e-12 };
            assert!(close, "{name} of {key:?}: {number} {expected}");
        }
    }
    assert!(found.is_empty(), "too many: {:?}", found.keys());
    assert_eq!(statistics.len(), 4, "{statistics:?}");
    assert!(statistics.values().all(|&cells| cells > 20), "{statistics:?}");
}

#[test]
fn agreement_of_metrics_equals_that_of_pandas() {
    let tables = compute(&golden_scores());
    let expected =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tables/agreement.csv").to_owned();
    let mut csv = csv::Reader::from_path(expected).unwrap();
    let cells: Vec<HashMap<String, String>> = csv.deserialize().map(Result::unwrap).collect();
    assert_eq!(tables.agreement.len(), cells.len());
    for cell in cells {
        let key = [&cell["prompt_set"], &cell["metric_a"], &cell["metric_b"]];
        let of_cell =
            |row: &&MetricAgreement| [&row.prompt_set, &row.metric_a, &row.metric_b] == key;
        let row = tables.agreement.iter().find(of_cell).unwrap_or_else(|| panic!("no {key:?}"));
        for (name, number) in [
            ("prompts", row.prompts as f64),
            ("pairs", row.pairs as f64),
            ("agreement", row.agreement),
            ("agreement_low", row.agreement_low),
            ("agreement_high", row.agreement_high),
            ("kappa", row.kappa),
        ] {
            let expected = cell[name].parse::<f64>().unwrap();
            assert!((number - expected).abs() < 1e-12, "{name} of {key:?}: {number} {expected}");
        }
    }
}

#[test]
fn metrics_that_are_one_are_named() {
    let images = || (0..30).flat_map(|prompt| (0..3).map(move |seed| (prompt, seed)));
    let scores: Vec<ScoreRow> = images()
        .flat_map(|(prompt, seed)| {
            let value = ((prompt * 7 + seed * 5) % 11) as f32;
            // Any rising function of a metric orders alike; a falling one never does.
            [("hps", value), ("copy", value.exp()), ("opposite", -value)]
                .map(|(metric, value)| score("a", prompt, seed as i64, metric, value))
        })
        .collect();
    let tables = compute(&scores);
    let kappas: Vec<f64> = tables.agreement.iter().map(|row| row.kappa).collect();
    assert_eq!(kappas, [1.0, -1.0, -1.0], "{:?}", tables.agreement);
    let named: Vec<&String> =
        tables.notes.iter().filter(|note| note.contains("read their columns as one")).collect();
    assert_eq!(named.len(), 1, "{:?}", tables.notes);
    assert!(named[0].contains("hps and copy order 100.0 %"), "{named:?}");
}

#[test]
fn notes_name_what_is_excluded() {
    let notes = compute(&golden_scores()).notes;
    for part in [
        "parti: late was not scored on 31 of 46 prompts (the first is \"001\")",
        "hpd: late was not scored on 21 of 21 prompts",
        "parti: one id stands for different prompts (the first is \"007\"",
        "parti: the seeds differ (base 0–4, diffusion_dpo 0–4, balanced 0–4, late 0–2)",
        "parti: base has fewer than 5 images of ",
        "images of base have no score of hps (the first is prompt ",
        ": cannot decode).",
        "parti: late and base have no image in common with a score by clip",
    ] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:#?}");
    }
}

#[test]
fn pairs_come_in_the_order_of_the_paper() {
    let models = ["base", "dpo", "balanced"];
    let scores: Vec<ScoreRow> = models
        .iter()
        .enumerate()
        .flat_map(|(place, model)| {
            (0..40).map(move |prompt| score(model, prompt, 0, "hps", (prompt * place) as f32))
        })
        .collect();
    let pairs = |tables: &Tables| {
        let best = tables.win_rates.iter().filter(|row| row.statistic == Statistic::BestOfN);
        best.map(|row| format!("{}>{}", row.model_a, row.model_b)).collect::<Vec<_>>()
    };
    let tables = compute(&scores);
    assert_eq!(pairs(&tables), ["dpo>base", "balanced>base", "balanced>dpo"]);
    let first = &tables.win_rates[0];
    assert_eq!((first.wins, first.ties, first.losses, first.seeds), (39, 1, 0, 1));
    assert_eq!((first.strict_rate, first.win_rate), (39.0 / 40.0, 39.5 / 40.0));
    assert!(first.p_holm < 1e-10 && first.p_holm > first.p_value);
    assert_eq!(first.mean_difference, 19.5);
    assert!(first.mean_difference_low < 19.5 && first.mean_difference_high > 19.5);
    let models = Some(["balanced", "base"].map(str::to_owned).to_vec());
    let chosen = Tables::compute(&scores, &TablesConfig { models, ..config() }).unwrap();
    assert_eq!(pairs(&chosen), ["base>balanced"]);
    assert_eq!(chosen.win_rates[0].losses, 39);
}

#[test]
fn what_cannot_be_counted_is_rejected() {
    let fine = || vec![score("a", 0, 0, "hps", 1.0), score("b", 0, 0, "hps", 2.0)];
    let error = |scores: Vec<ScoreRow>, config: TablesConfig| {
        Tables::compute(&scores, &config).unwrap_err().to_string()
    };
    let mut twice = fine();
    twice.push(ScoreRow { prompt: "another text".to_owned(), ..score("b", 0, 0, "hps", 2.0) });
    let message = error(twice, config());
    for part in ["model \"b\"", "prompt \"0000\"", "seed 0", "metric \"hps\" more than once"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let unknown = TablesConfig { models: Some(vec!["c".to_owned()]), ..config() };
    assert_eq!(
        error(fine(), unknown),
        "no scores of the model \"c\"; hint: there are scores of a, b"
    );
    let unknown = TablesConfig { baselines: vec!["c".to_owned()], ..config() };
    assert!(error(fine(), unknown).contains("no scores of the model \"c\""));
    let unknown = TablesConfig { metrics: Some(vec!["clip".to_owned()]), ..config() };
    assert!(error(fine(), unknown).contains("no scores of the metric \"clip\""));
    let named = TablesConfig { models: Some(vec!["a".to_owned(); 2]), ..config() };
    assert!(error(fine(), named).contains("\"a\" is named twice"));
    assert!(error(Vec::new(), config()).contains("no scores"));
    assert!(error(fine(), TablesConfig { bootstrap: 0, ..config() }).contains("resample"));
    assert!(error(vec![score("a", 0, 0, "hps", f32::NAN)], config()).contains("score is NaN"));
    let mut all = fine();
    all[0].prompt_set = "all".to_owned();
    assert!(matches!(Tables::compute(&all, &config()), Err(TablesError::SetNamedAll)));
}

#[test]
fn models_without_a_common_prompt_have_no_win_rate() {
    let scores = [score("a", 0, 0, "hps", 1.0), score("b", 1, 0, "hps", 2.0)];
    let tables = compute(&scores);
    assert_eq!((tables.win_rates.len(), tables.means.len()), (0, 4));
    assert!(tables.notes.iter().any(|note| note.contains("no win rate")), "{:?}", tables.notes);
    // The same prompt, other seeds.
    let scores = [score("a", 0, 0, "hps", 1.0), score("b", 0, 1, "hps", 2.0)];
    let tables = compute(&scores);
    assert!(tables.win_rates.is_empty());
    assert!(tables.notes.iter().any(|note| note.contains("the seeds differ (a 0, b 1)")));
    // A scorer that failed on everything of one model.
    let failed = ScoreRow { score: None, error: Some("bad\nPNG".to_owned()), ..scores[0].clone() };
    let tables = compute(&[failed, score("b", 0, 0, "hps", 2.0)]);
    assert_eq!((tables.win_rates.len(), tables.means.len()), (0, 2));
    assert!(
        tables.notes.iter().any(|note| note.contains("seed 0: bad PNG)")),
        "{:?}",
        tables.notes
    );
    let alone = compute(&[score("a", 0, 0, "hps", 1.0)]);
    assert_eq!(alone.notes, ["There is one model, so there are no win rates."]);
    assert_eq!(alone.means[0].std, 0.0);
}

/// Random scores of three models with gaps and many ties.
fn scores() -> impl Strategy<Value = Vec<ScoreRow>> {
    // None: no image; null: no score.
    let value = prop_oneof![
        1 => Just(None),
        1 => Just(Some(None)),
        8 => (-3_i8..4).prop_map(|number| Some(Some(f32::from(number) / 4.0))),
    ];
    (1_usize..6, 1_usize..4).prop_flat_map(move |(prompts, seeds)| {
        let images = 3 * 2 * prompts * seeds;
        prop::collection::vec([value.clone(), value.clone()], images).prop_map(move |values| {
            let mut rows = Vec::new();
            for (place, values) in values.into_iter().enumerate() {
                let (seed, rest) = (place % seeds, place / seeds);
                let (prompt, rest) = (rest % prompts, rest / prompts);
                let (set, model) = (["one", "two"][rest % 2], ["a", "b", "c"][rest / 2]);
                for (metric, value) in ["hps", "clip"].into_iter().zip(values) {
                    let Some(value) = value else { continue };
                    rows.push(ScoreRow {
                        prompt_set: set.to_owned(),
                        category: prompt.is_multiple_of(2).then(|| "even".to_owned()),
                        score: value,
                        error: value.is_none().then(|| "failed".to_owned()),
                        ..score(model, prompt, seed as i64, metric, 0.0)
                    });
                }
            }
            rows
        })
    })
}

/// The models and metrics that have a row, in a fixed order.
fn in_order(rows: &[ScoreRow]) -> TablesConfig {
    let names = |name: fn(&ScoreRow) -> &String| {
        let mut names: Vec<String> = rows.iter().map(name).cloned().collect();
        names.sort();
        names.dedup();
        Some(names)
    };
    TablesConfig { models: names(|row| &row.model), metrics: names(|row| &row.metric), ..config() }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn swapping_two_models_swaps_the_cell(rows in scores()) {
        prop_assume!(!rows.is_empty());
        let forward = in_order(&rows);
        let mut backward = forward.clone();
        backward.models.as_mut().unwrap().reverse();
        let there = Tables::compute(&rows, &forward).unwrap();
        let back = by_key(&Tables::compute(&rows, &backward).unwrap());
        prop_assert_eq!(there.win_rates.len(), back.len());
        for row in &there.win_rates {
            let mut other = key(row);
            other.swap(2, 3);
            let other = &back[&other];
            prop_assert_eq!((row.wins, row.ties, row.losses), (other.losses, other.ties, other.wins));
            prop_assert_eq!((row.prompts, row.excluded), (other.prompts, other.excluded));
            prop_assert_eq!((row.p_value, row.p_holm), (other.p_value, other.p_holm));
            prop_assert!(close(row.win_rate, 1.0 - other.win_rate));
            prop_assert!(close(row.win_rate_low, 1.0 - other.win_rate_high) && close(row.win_rate_high, 1.0 - other.win_rate_low));
            prop_assert!(close(row.mean_difference, -other.mean_difference));
            prop_assert!(close(row.mean_difference_low, -other.mean_difference_high));
        }
    }

    #[test]
    fn another_seed_never_lowers_a_best_score(rows in scores(), added in -4_i8..5) {
        prop_assume!(!rows.is_empty());
        let mut more = rows.clone();
        for (place, row) in rows.iter().enumerate() {
            if row.seed == 0 {
                let value = f32::from(added) / 4.0 + (place % 3) as f32;
                more.push(ScoreRow { seed: 9, score: Some(value), error: None, ..row.clone() });
            }
        }
        // Prompts that had no score at all would only now count.
        let counted: Vec<_> = rows.iter().filter(|row| row.score.is_some()).collect();
        more.retain(|row| counted.iter().any(|other| {
            (&row.model, &row.prompt_set, &row.prompt_id, &row.metric)
                == (&other.model, &other.prompt_set, &other.prompt_id, &other.metric)
        }));
        prop_assume!(!more.is_empty());
        let before = Tables::compute(&rows, &config()).unwrap().means;
        let after = Tables::compute(&more, &config()).unwrap().means;
        for row in before.iter().filter(|row| row.statistic == Statistic::BestOfN) {
            let same = |other: &&evaluate::tables::MeanRow| {
                (&other.prompt_set, &other.model, &other.metric, other.statistic)
                    == (&row.prompt_set, &row.model, &row.metric, row.statistic)
            };
            let other = after.iter().find(same).unwrap();
            prop_assert_eq!(row.prompts, other.prompts);
            prop_assert!(other.mean >= row.mean - 1e-12 && other.min >= row.min && other.max >= row.max);
        }
    }

    #[test]
    fn the_order_of_the_rows_changes_nothing(
        (rows, shuffled) in scores().prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle()))
    ) {
        prop_assume!(!rows.is_empty());
        let config = in_order(&rows);
        let first = by_key(&Tables::compute(&rows, &config).unwrap());
        let second = by_key(&Tables::compute(&shuffled, &config).unwrap());
        prop_assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
        for (key, row) in &first {
            let other = &second[key];
            // The order in which sets are added up may change the last bit of all sets together.
            prop_assert!(close(row.mean_difference, other.mean_difference));
            prop_assert!(close(row.mean_difference_low, other.mean_difference_low));
            prop_assert!(close(row.mean_difference_high, other.mean_difference_high));
            let rest = |row: &WinRateRow| WinRateRow {
                mean_difference: 0.0,
                mean_difference_low: 0.0,
                mean_difference_high: 0.0,
                win_rate: (row.win_rate * 1e9).round(),
                strict_rate: (row.strict_rate * 1e9).round(),
                win_rate_low: (row.win_rate_low * 1e9).round(),
                win_rate_high: (row.win_rate_high * 1e9).round(),
                ..row.clone()
            };
            prop_assert_eq!(rest(row), rest(other));
        }
    }
}

fn write_scores(path: &Path, rows: &[ScoreRow]) {
    let mut writer = ScoresWriter::create(path, &BTreeMap::new()).unwrap();
    rows.iter().for_each(|row| writer.write(row.clone()).unwrap());
    writer.finish().unwrap();
}

#[test]
fn the_program_writes_every_form() {
    let folder = tempdir().unwrap();
    let [scores, out] = ["scores.parquet", "out"].map(|name| folder.path().join(name));
    let mut rows = golden_scores();
    // Names that mean something in Markdown, LaTeX and CSV.
    for row in rows.iter_mut().filter(|row| row.model == "late") {
        row.model = "la|te, \"v_1\" & <b>\u{1b}[2J".to_owned();
    }
    write_scores(&scores, &rows);
    let run = |more: &[&str]| {
        let mut arguments =
            vec!["tables", "--bootstrap", "200", "--scores", scores.to_str().unwrap()];
        arguments.extend(more);
        Run::of(&mut evaluate(arguments))
    };
    let shown =
        run(&["--out", out.to_str().unwrap(), "--baselines", "base,diffusion_dpo"]).expect_code(0);
    for part in
        ["balanced vs base", "80 % power", "note: parti: ", "tables.md, tables.csv", "la|te"]
    {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    assert!(!shown.stdout.contains('\u{1b}'));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();

    let markdown = read("tables.md");
    for part in [
        "# Tables\n\n- parti: minimum detectable effect at 80 % power: ±",
        "## Win rates\n",
        "| Model | parti hps | parti clip | parti aesthetic | hpd hps |",
        "## Win rates, all sets together",
        "| Model | over base hps |",
        "## Mean scores, parti",
        "| base | Std |",
        "## Every cell, hpd",
        "| Model | hps best | hps mean | hps all pairs |",
        "## Selected by one metric, scored by another, all",
        "## By category, parti",
        "## Notes",
        "la\\|te, \"v\\_1\" &amp; &lt;b&gt; \\[2J vs base",
    ] {
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
    // Every table is one: each of its lines has as many columns as its head.
    let mut columns = None;
    for line in markdown.lines() {
        let cells = line.replace("\\|", "").matches('|').count();
        if !line.starts_with('|') {
            columns = None;
            continue;
        }
        assert_eq!(*columns.get_or_insert(cells), cells, "{line}");
    }

    let latex = read("tables.tex");
    for part in ["\\toprule", "\\multicolumn{3}{c}{parti}", "la\\textbar{}te"] {
        assert!(latex.contains(part), "{part}");
    }
    assert_eq!(latex.matches("\\begin{").count(), latex.matches("\\end{").count());
    assert_eq!(latex.matches('{').count(), latex.matches('}').count());

    let cells = WinRatesFile::open(out.join("winrates.parquet")).unwrap().read().unwrap();
    let mut csv = csv::Reader::from_path(out.join("tables.csv")).unwrap();
    let rates: Vec<f64> = csv
        .deserialize::<HashMap<String, String>>()
        .map(|cell| cell.unwrap()["win_rate"].parse().unwrap())
        .collect();
    assert_eq!(rates, cells.iter().map(|row| row.win_rate).collect::<Vec<_>>());
    let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["models"][2], "balanced");
    assert_eq!(summary["prompt_sets"][2]["name"], "all");

    assert_eq!(summary["metric_agreement"].as_array().unwrap().len(), 9, "3 twos, 3 sets");
    assert!(markdown.contains("## Agreement of the metrics, hpd"), "{markdown}");
    assert_eq!(summary["hps_v2"], serde_json::json!([]));

    // The same again, byte for byte, and by default beside the scores.
    let before = std::fs::read(out.join("winrates.parquet")).unwrap();
    run(&["--baselines", "base,diffusion_dpo"]).expect_code(0);
    assert_eq!(std::fs::read(folder.path().join("winrates.parquet")).unwrap(), before);

    run(&["--preset", "hps-v2"]).expect_error(&[
        "sets anime",
        "found those of",
        "hint: score them",
    ]);
    run(&["--models", "base,nobody"]).expect_error(&["no scores of the model \"nobody\"", "hint"]);
    let twice = scores.to_str().unwrap();
    run(&[twice]).expect_error(&["more than once", "hint: name each scores.parquet once"]);
    let labels =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sample/pairs-00000-of-00003.parquet");
    let run = Run::of(&mut evaluate(["tables", "--scores", labels.to_str().unwrap()]));
    run.expect_error(&["pairs-00000-of-00003.parquet: not scores", "hint"]);
}

#[test]
fn the_benchmark_of_hps_v2_has_a_table_of_its_own() {
    let folder = tempdir().unwrap();
    let scores = folder.path().join("scores.parquet");
    let sets = ["anime", "concept-art", "photo"];
    let rows: Vec<ScoreRow> = ["base", "dpo"]
        .iter()
        .zip([0.25, 0.5])
        .flat_map(|(model, value)| {
            // Two groups of 80 prompts: 0.125 apart.
            let prompts = (0..160).map(move |prompt| (prompt, value + (prompt / 80) as f32 / 8.0));
            prompts.flat_map(move |(prompt, value)| {
                sets.map(|set| ScoreRow {
                    prompt_set: set.to_owned(),
                    ..score(model, prompt, 0, "hps21", value)
                })
            })
        })
        .collect();
    write_scores(&scores, &rows);
    let arguments = ["tables", "--preset", "hps-v2", "--bootstrap", "10", "--scores"];
    let run = Run::of(evaluate(arguments).arg(&scores)).expect_code(0);
    assert!(run.stdout.contains("The benchmark of HPS v2, hps21"), "{run:#?}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let expected = "| base | 31.25 <sub>6.2500</sub> | 31.25 <sub>6.2500</sub> | – | \
                    31.25 <sub>6.2500</sub> | 31.25 |";
    assert!(read("tables.md").contains(expected), "{}", read("tables.md"));
    let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    let dpo = &summary["hps_v2"][1];
    assert_eq!((&dpo["model"], &dpo["average"]), (&"dpo".into(), &56.25.into()));
    assert_eq!(
        dpo["styles"]["photo"],
        serde_json::json!({ "prompts": 160, "mean": 56.25, "std": 6.25 })
    );
    assert_eq!(dpo["styles"]["paintings"], serde_json::Value::Null);
}

/// Five models, 2,000 prompts, five seeds, four metrics: 200,000 scores, by default resampled
/// 10,000 times.
#[test]
fn a_large_evaluation_is_counted_in_seconds() {
    let folder = tempdir().unwrap();
    let mut rows = Vec::with_capacity(200_000);
    let mut state = 1_u64;
    for model in 0..5 {
        for prompt in 0..2000 {
            for seed in 0..5 {
                for metric in ["hps", "clip", "pickscore", "aesthetic"] {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let value = (state >> 40) as f32 / 1e6 + model as f32;
                    let category = Some(format!("category {}", prompt % 12));
                    let name = format!("model {model}");
                    rows.push(ScoreRow { category, ..score(&name, prompt, seed, metric, value) });
                }
            }
        }
    }
    let start = Instant::now();
    let tables = Tables::compute(&rows, &TablesConfig::default()).unwrap();
    let computed = start.elapsed();
    tables.write(folder.path(), &BTreeMap::new()).unwrap();
    let written = start.elapsed();
    println!("{} scores: computed in {computed:.2?}, written after {written:.2?}", rows.len());
    assert_eq!(tables.win_rates.len(), 10 * (4 + 4 + 4 + 12) + 10 * 4 * 12);
    assert!(written.as_secs() < 20, "{written:?}");
}
