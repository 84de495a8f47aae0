//! `evaluate pairs`: which images become pairs, how they are dealt out, and what the labels say.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Fixture, Generated as _, Run, evaluate, model};
use evaluate::pairs::{By, Choose, Config};
use schemas::labels::{LabelRow, LabelsFile, Status, consensus, vote};
use schemas::layouts::{Sizes, is_swapped};
use schemas::pairs::{Discovered, NoVote, PairFile, PairRow, discover};
use schemas::scores::{ScoreRow, ScoresWriter};
use testkit::Folder;

const METRICS: [&str; 3] = ["clip", "hps", "pickscore"];
const SCORERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini/paper.toml");

/// An image of a model with its scores by [`METRICS`]; NaN stands for none.
type Scored<'a> = (&'a str, i64, [f32; 3]);

/// A folder with images of bytes of their own, and their scores.
struct Case {
    folder: Folder,
    rows: Vec<ScoreRow>,
}

impl Case {
    fn new() -> Self {
        Self { folder: Folder::new(), rows: Vec::new() }
    }

    fn add(&mut self, set: &str, id: &str, prompt: &str, images: &[Scored<'_>]) {
        for (model, seed, scores) in images {
            let image = format!("images/{model}/{set}-{id}/{seed}.png");
            self.folder.put(&format!("eval/{image}"), image.as_bytes());
            for (metric, score) in METRICS.into_iter().zip(scores) {
                self.rows.push(ScoreRow {
                    model: (*model).to_owned(),
                    prompt_set: set.to_owned(),
                    prompt_id: id.to_owned(),
                    prompt: prompt.to_owned(),
                    category: None,
                    seed: *seed,
                    metric: metric.to_owned(),
                    score: Some(*score).filter(|score| score.is_finite()),
                    image: image.clone(),
                    error: score.is_nan().then(|| "cut".to_owned()),
                });
            }
        }
    }

    /// Prompts with five images each, whose scores are all different.
    fn many(prompts: usize) -> Self {
        let mut case = Self::new();
        for number in 0..prompts {
            let score = |seed: i64, metric: i64| {
                let mixed = (number as i64 + 3) * (seed + 2) * (metric + 5) * 7919 % 9973;
                mixed as f32 / 9973.0 + seed as f32 * 1e-5
            };
            let images: Vec<Scored<'_>> =
                (0..5).map(|seed| ("base", seed, [0, 1, 2].map(|m| score(seed, m)))).collect();
            case.add("mine", &format!("{number:05}"), &format!("fox number {number}"), &images);
        }
        case.save();
        case
    }

    fn save(&self) {
        let path = self.folder.path("eval/scores.parquet");
        let mut writer = ScoresWriter::create(path, &BTreeMap::new()).unwrap();
        self.rows.iter().for_each(|row| writer.write(row.clone()).unwrap());
        writer.finish().unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = evaluate(["pairs"]);
        command.arg("--scores").arg(self.folder.path("eval/scores.parquet"));
        command.arg("--out").arg(self.folder.path("pairs")).args(more);
        command
    }

    #[track_caller]
    fn run(&self, more: &[&str]) -> Made {
        let run = Run::of(&mut self.command(more)).expect_code(0);
        Made { stdout: run.stdout, ..Made::of(&self.folder.path("pairs")) }
    }

    /// The caption, seeds and models of each pair, the preferred image first, sorted.
    fn chosen(&self, more: &[&str]) -> Vec<(String, [String; 2])> {
        let made = self.run(&[&["--fresh"], more].concat());
        let mut chosen: Vec<_> = made
            .pairs
            .iter()
            .map(|pair| {
                let mut images = pair.image.each_ref().map(|image| {
                    let path = String::from_utf8(image.as_ref().unwrap().to_vec()).unwrap();
                    let parts: Vec<&str> = path.trim_end_matches(".png").split('/').collect();
                    format!("{} {}", parts[1], parts[3])
                });
                if is_swapped(&pair.pair_id) {
                    images.reverse();
                }
                (pair.caption.clone().unwrap(), images)
            })
            .collect();
        chosen.sort();
        chosen
    }
}

/// What the command made.
#[derive(Debug, Default)]
struct Made {
    stdout: String,
    pairs: Vec<PairRow>,
    labels: Vec<LabelRow>,
    scorers: Vec<String>,
}

impl Made {
    /// Reads a folder of pairs as `relabel` and `train` do, and checks what every one must hold.
    #[track_caller]
    fn of(folder: &Path) -> Self {
        let Discovered { files, own, .. } = discover(&[folder.to_owned()], &[]).unwrap();
        assert_eq!(own, [folder.join("labels.parquet")], "a walk over pairs skips the labels");
        let mut pairs = Vec::new();
        let mut by_place = BTreeMap::new();
        for file in &files {
            let opened = PairFile::open(file).unwrap();
            let rows = opened.rows_with_images(7).unwrap().collect_rows().unwrap();
            for row in rows {
                by_place.insert((file.source_file.clone(), row.row), row.clone());
                pairs.push(row);
            }
        }
        let labels = LabelsFile::open(folder.join("labels.parquet")).unwrap();
        let scorers = labels.schema().scorers().to_vec();
        let labels = labels.read_rows().unwrap();
        assert_eq!(labels.len(), pairs.len());
        for (label, pair) in labels.iter().zip(&pairs) {
            // The join of `train`: the place, then id, caption and images.
            let place = (label.source_file.clone(), label.source_row);
            assert_eq!(by_place.remove(&place).as_ref(), Some(pair));
            assert_eq!((&label.pair_id, &label.caption), (&pair.pair_id, &pair.caption));
            assert_eq!(label.image_uid, pair.image_uid);
            assert_eq!((label.status, &label.error), (Status::Ok, &None));
            let votes: Vec<i8> = label
                .scores
                .iter()
                .map(|scores| vote(scores[0].unwrap(), scores[1].unwrap()))
                .collect();
            let sum: i8 = votes.iter().sum();
            assert_eq!(label.votes, votes.into_iter().map(Some).collect::<Vec<_>>());
            assert_eq!((label.vote_sum, label.consensus), (Some(sum), Some(consensus(sum))));
            // Nobody gave the label that the ranking is.
            assert_eq!((label.human_label_0, pair.human_label_0), (None, None));
            assert_eq!(pair.no_vote, Some(NoVote::HasLabelFalse));
            for (uid, image) in pair.image_uid.iter().zip(&pair.image) {
                let hash = blake3::hash(image.as_ref().unwrap()).to_hex().to_string();
                assert_eq!(uid.as_ref(), Some(&hash));
            }
        }
        let mut ids: Vec<&String> = pairs.iter().map(|pair| &pair.pair_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), pairs.len(), "ids are unique");
        Self { stdout: String::new(), pairs, labels, scorers }
    }
}

fn pair(prompt: &str, images: [&str; 2]) -> (String, [String; 2]) {
    (prompt.to_owned(), images.map(str::to_owned))
}

/// The raw column label_0, which readers of human labels do not take.
fn label_0(folder: &Path) -> Vec<f64> {
    use arrow::array::AsArray as _;
    use arrow::datatypes::Float64Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let file = std::fs::File::open(folder.join("pairs-00000.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut labels = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let column = |name| batch.column_by_name(name).unwrap();
        let [first, second] =
            ["label_0", "label_1"].map(|name| column(name).as_primitive::<Float64Type>());
        let flags = column("has_label").as_boolean();
        for row in 0..batch.num_rows() {
            assert_eq!(first.value(row) + second.value(row), 1.0);
            assert!(!flags.value(row));
            labels.push(first.value(row));
        }
    }
    labels
}

#[test]
fn best_and_worst_are_dealt_by_the_id_and_the_labels_follow_the_scores() {
    let case = Case::many(60);
    let made = case.run(&[]);
    assert!(made.stdout.starts_with("60 pairs of 60 prompts, 60 of them new\n"), "{}", made.stdout);
    assert_eq!((made.pairs.len(), &*made.scorers), (60, &METRICS.map(str::to_owned)[..]));
    let swapped = made.pairs.iter().filter(|pair| is_swapped(&pair.pair_id)).count();
    assert!((15..45).contains(&swapped), "{swapped} of 60 are swapped");
    let labels = label_0(&case.folder.path("pairs"));
    let mut agree = 0;
    for ((pair, label), ranking) in made.pairs.iter().zip(&made.labels).zip(labels) {
        assert_eq!(ranking, if is_swapped(&pair.pair_id) { 0.0 } else { 1.0 });
        agree += usize::from(f64::from(label.consensus.unwrap()) == 2.0 * ranking - 1.0);
        // The scores are those of the image on that side.
        for (side, image) in pair.image.iter().enumerate() {
            let file = String::from_utf8(image.as_ref().unwrap().to_vec()).unwrap();
            for (number, metric) in METRICS.into_iter().enumerate() {
                let is_row = |row: &&ScoreRow| row.image == file && row.metric == metric;
                let row = case.rows.iter().find(is_row).unwrap();
                assert_eq!(label.scores[number][side], row.score, "{file} {metric}");
            }
        }
    }
    assert!(agree > 50, "the best by mean rank mostly has the majority: {agree} of 60");
}

#[test]
fn each_choice_takes_its_pairs() {
    let mut case = Case::new();
    // Mean ranks 2, 1.33, 3, 3.67.
    let images = [
        ("a", 0, [0.9, 0.2, 0.8]),
        ("a", 1, [0.8, 0.8, 0.9]),
        ("a", 2, [0.2, 0.3, 0.1]),
        ("a", 3, [0.1, 0.1, 0.2]),
    ];
    case.add("mine", "1", "a fox", &images);
    case.save();
    let fox = |images: [&str; 2]| pair("a fox", images);
    let adjacent = [fox(["a 0", "a 2"]), fox(["a 1", "a 0"]), fox(["a 2", "a 3"])];
    assert_eq!(case.chosen(&[]), [fox(["a 1", "a 3"])]);
    assert_eq!(case.chosen(&["--choose", "adjacent"]), adjacent);
    assert_eq!(case.chosen(&["--choose", "all"]).len(), 6);
    let unanimous = [["a 0", "a 3"], ["a 1", "a 2"], ["a 1", "a 3"]].map(fox);
    assert_eq!(case.chosen(&["--choose", "unanimous"]), unanimous);
    // One voter agrees with itself wherever its scores differ.
    let more = ["--choose", "unanimous", "--voters", "clip"];
    assert_eq!(case.chosen(&more).len(), 6);
}

#[test]
fn images_are_ranked_by_the_voters_or_by_a_metric() {
    let mut case = Case::new();
    let images = [("a", 0, [0.9, 0.1, 0.2]), ("a", 1, [0.5, 0.5, 0.5]), ("a", 2, [0.1, 0.9, 0.9])];
    case.add("mine", "1", "a fox", &images);
    case.save();
    let fox = |images: [&str; 2]| vec![pair("a fox", images)];
    assert_eq!(case.chosen(&[]), fox(["a 2", "a 0"]));
    assert_eq!(case.chosen(&["--by", "clip"]), fox(["a 0", "a 2"]));
    assert_eq!(case.chosen(&["--voters", "clip"]), fox(["a 0", "a 2"]));
    // A metric that ranks and does not vote has no column.
    let made = case.run(&["--fresh", "--by", "clip", "--voters", "pickscore,hps"]);
    assert_eq!(made.scorers, ["pickscore", "hps"]);
    let label = &made.labels[0];
    assert_eq!(label.vote_sum.unwrap().abs(), 2);
    let clip_first = !is_swapped(&label.pair_id);
    assert_eq!(label.consensus, Some(if clip_first { -1 } else { 1 }));
    Run::of(&mut case.command(&["--by", "mood"])).expect_error(&["metric \"mood\"", "clip"]);
    Run::of(&mut case.command(&["--voters", "hps,hps"])).expect_error(&["\"hps\" is named twice"]);
}

#[test]
fn equal_images_come_by_seed_and_best_worst_makes_no_pair_of_them() {
    let mut case = Case::new();
    let equal = [0.5; 3];
    case.add("mine", "1", "equal", &[("a", 3, equal), ("a", 1, equal), ("b", 2, equal)]);
    let mirror = [("a", 0, [0.1, 0.9, 0.5]), ("a", 1, [0.9, 0.1, 0.5])];
    case.add("mine", "2", "equal ranks", &mirror);
    case.add("mine", "3", "one better", &[("a", 0, equal), ("a", 1, [0.6; 3]), ("a", 2, equal)]);
    case.save();
    let made = case.run(&[]);
    assert!(made.stdout.contains("left out: 2 prompts without two images of"), "{}", made.stdout);
    assert_eq!(case.chosen(&[]), [pair("one better", ["a 1", "a 2"])]);
    let adjacent = [
        pair("equal", ["a 1", "b 2"]),
        pair("equal", ["b 2", "a 3"]),
        pair("equal ranks", ["a 0", "a 1"]),
        pair("one better", ["a 0", "a 2"]),
        pair("one better", ["a 1", "a 0"]),
    ];
    assert_eq!(case.chosen(&["--choose", "adjacent"]), adjacent);
    // Equal ranks are a tie in label_0; exact ties of scores are votes for image 0, as in Eq. 6.
    let made = case.run(&["--choose", "adjacent"]);
    let labels = label_0(&case.folder.path("pairs"));
    assert_eq!(labels.iter().filter(|label| **label == 0.5).count(), 4);
    let equal = made.labels.iter().filter(|label| label.caption.as_deref() == Some("equal"));
    assert!(equal.clone().count() == 2 && equal.clone().all(|label| label.vote_sum == Some(3)));
    // No voter prefers one of two equal images, so voters do not agree on them.
    let unanimous = [pair("one better", ["a 1", "a 0"]), pair("one better", ["a 1", "a 2"])];
    assert_eq!(case.chosen(&["--choose", "unanimous"]), unanimous);
}

#[test]
fn what_gives_no_pair_is_counted_and_all_of_nothing_is_an_error() {
    let mut case = Case::new();
    case.add("mine", "1", "alone", &[("a", 0, [0.5; 3])]);
    let cut = [("a", 0, [0.5; 3]), ("a", 1, [0.4, f32::NAN, 0.4])];
    case.add("mine", "2", "cut", &cut);
    case.save();
    let says = ["scores.parquet", "found none: 2 prompts with fewer", "1 images without", "hint: "];
    Run::of(&mut case.command(&[])).expect_error(&says);
    assert!(!case.folder.path("pairs").exists());
    // The metric that is missing neither votes nor ranks.
    assert_eq!(case.chosen(&["--voters", "clip"]), [pair("cut", ["a 0", "a 1"])]);
    case.add("mine", "3", "a fox", &[("a", 0, [0.5; 3]), ("a", 1, [0.4; 3])]);
    case.add("mine", "4", " ", &[("a", 0, [0.5; 3]), ("a", 1, [0.4; 3])]);
    case.save();
    let made = case.run(&["--fresh"]);
    let left_out = "left out: 2 prompts with fewer than two scored images, 1 prompt whose text is \
                    blank or too long for a caption, 1 images without a score\n";
    assert!(made.stdout.contains(left_out), "{}", made.stdout);
    assert_eq!(made.pairs.len(), 1);
    let run = Run::of(&mut case.command(&["--fresh", "--json"])).expect_code(0);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&value["pairs"], &value["left_out"]["too_few_images"]), (&1.into(), &2.into()));
}

#[test]
fn models_are_pooled_and_a_prompt_of_two_sets_counts_once() {
    let mut case = Case::new();
    let images = |model, best: f32| [(model, 0, [best; 3]), (model, 1, [best - 0.2; 3])];
    case.add("first", "1", "a fox", &[images("base", 0.5), images("dpo", 0.6)].concat());
    case.add("second", "9", "a fox", &images("base", 0.9));
    case.add("second", "10", "a mill", &images("base", 0.9));
    case.save();
    let both = [pair("a fox", ["dpo 0", "base 1"]), pair("a mill", ["base 0", "base 1"])];
    assert_eq!(case.chosen(&[]), both);
    let stdout = case.run(&[]).stdout;
    assert!(stdout.contains("left out: 1 prompt with the text of an earlier one\n"), "{stdout}");
    let dpo = [pair("a fox", ["dpo 0", "dpo 1"])];
    assert_eq!(case.chosen(&["--models", "dpo"]), dpo);
    let second = [pair("a fox", ["base 0", "base 1"]), pair("a mill", ["base 0", "base 1"])];
    assert_eq!(case.chosen(&["--sets", "second"]), second);
    Run::of(&mut case.command(&["--sets", "third"])).expect_error(&[
        "no scores of the prompt set \"third\"",
        "first",
        "second",
    ]);
    Run::of(&mut case.command(&["--models", "sd3"])).expect_error(&["model \"sd3\"", "base"]);
}

#[test]
fn only_its_own_folder_is_written_and_another_run_is_refused() {
    let case = Case::many(3);
    // A folder of something else, and the folder of the scores.
    case.folder.put("pairs/notes.txt", b"mine");
    Run::of(&mut case.command(&["--fresh"])).expect_error(&["pairs of evaluate", "notes.txt"]);
    std::fs::remove_dir_all(case.folder.path("pairs")).unwrap();
    let mut here = evaluate(["pairs", "--fresh", "--scores"]);
    here.arg(case.folder.path("eval/scores.parquet")).arg("--out").arg(case.folder.path("eval"));
    Run::of(&mut here).expect_error(&["eval", "expected pairs of evaluate or nothing"]);

    case.run(&[]);
    let before = case.folder.files("pairs");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        ["labels.parquet", "manifest.json", "pairs-00000.parquet"]
    );
    let says = ["belongs to another run", "choose: was \"best-worst\", now \"all\"", "--fresh"];
    Run::of(&mut case.command(&["--choose", "all"])).expect_error(&says);
    assert_eq!(case.folder.files("pairs"), before);
    let again = case.run(&[]);
    assert!(again.stdout.starts_with("3 pairs of 3 prompts, 0 of them new\n"), "{}", again.stdout);
    assert_eq!(case.folder.files("pairs"), before);
    // What was removed comes back, and what others put there stays.
    case.folder.put("pairs/labels-of-others.parquet", b"theirs");
    std::fs::remove_file(case.folder.path("pairs/pairs-00000.parquet")).unwrap();
    Run::of(&mut case.command(&[])).expect_code(0);
    assert_eq!(case.folder.bytes("pairs/pairs-00000.parquet"), before["pairs-00000.parquet"]);
    Run::of(&mut case.command(&["--fresh", "--choose", "all"])).expect_code(0);
    assert_eq!(case.folder.bytes("pairs/labels-of-others.parquet"), b"theirs");
    // Labels of another program under the name of ours.
    case.folder.put("pairs/labels.parquet", b"theirs");
    Run::of(&mut case.command(&["--fresh"]))
        .expect_error(&["labels.parquet", "nothing was changed"]);
    assert_eq!(case.folder.bytes("pairs/labels.parquet"), b"theirs");
}

#[test]
fn killed_at_every_file_the_bytes_are_the_same() {
    let case = Case::many(4);
    case.run(&[]);
    let expected = case.folder.files("pairs");
    let clear = || std::fs::remove_dir_all(case.folder.path("pairs")).unwrap();
    clear();
    for point in ["open", "rename", "pair"] {
        let mut passages = 0;
        loop {
            let fault = format!("{point}:{}", passages + 1);
            let run = Run::of(case.command(&[]).env("RUNKIT_FAULT", fault));
            if !run.was_killed() {
                run.expect_code(0);
                break;
            }
            passages += 1;
            for (name, bytes) in case.folder.files("pairs") {
                assert!(name.ends_with(".runkit-tmp") || expected[&name] == bytes, "{name}");
            }
            case.run(&[]);
            assert_eq!(case.folder.files("pairs"), expected, "{point} {passages}");
            clear();
        }
        assert!(passages >= 3, "{point}: {passages}");
        clear();
    }
    let fault = "pair:2:TERM";
    Run::of(case.command(&[]).env("RUNKIT_FAULT", fault)).expect_code(143);
    case.run(&[]);
    assert_eq!(case.folder.files("pairs"), expected);
    clear();
    for (fault, reason) in [("write:3:ENOSPC", "no space left"), ("sync:2:EIO", "nput/output")] {
        let run = Run::of(case.command(&[]).env("RUNKIT_FAULT", fault));
        run.expect_error(&[reason, "/pairs/"]);
        case.run(&[]);
        assert_eq!(case.folder.files("pairs"), expected);
        clear();
    }
}

/// A run of small files, stopped behind any of them.
#[test]
fn a_run_of_many_files_resumes_behind_the_last() {
    let case = Case::many(20);
    let config = |out: PathBuf| Config {
        scores: case.folder.path("eval/scores.parquet"),
        out,
        choose: Choose::Adjacent,
        by: By::MeanRank,
        models: None,
        voters: None,
        sets: None,
        fresh: false,
        sizes: Sizes { row_group: 200, file: 700 },
    };
    let whole = case.folder.path("whole");
    let summary = evaluate::pairs::run(&config(whole.clone())).unwrap();
    assert_eq!((summary.pairs, summary.new, summary.prompts), (80, 80, 20));
    let expected = case.folder.files("whole");
    assert!(expected.len() > 8, "{} files", expected.len());
    assert_eq!(Made::of(&whole).pairs.len(), 80);
    let files: Vec<&String> = expected.keys().filter(|name| name.starts_with("pairs-")).collect();
    for kept in [0, 1, 4, files.len()] {
        let part = format!("part-{kept}");
        case.folder.copy(&whole, &part);
        let remove = |name: &str| std::fs::remove_file(case.folder.path(&part).join(name)).unwrap();
        remove("labels.parquet");
        files[kept..].iter().for_each(|name| remove(name));
        let summary = evaluate::pairs::run(&config(case.folder.path(&part))).unwrap();
        assert_eq!(summary.new == 80, kept == 0, "{summary:?}");
        assert_eq!(summary.new == 0, kept == files.len(), "{summary:?}");
        assert_eq!(case.folder.files(&part), expected);
    }
    // Another file under the name of one of them.
    case.folder.copy(&whole, "foreign");
    std::fs::remove_file(case.folder.path("foreign/labels.parquet")).unwrap();
    case.folder.put("foreign/pairs-00002.parquet", b"theirs");
    let error = evaluate::pairs::run(&config(case.folder.path("foreign"))).unwrap_err().to_string();
    assert!(error.contains("foreign/pairs-00002.parquet: expected a file of these"), "{error}");
    assert_eq!(case.folder.bytes("foreign/pairs-00002.parquet"), b"theirs");
}

/// From a pipeline to labels: bytes and scores are those of the files, and a changed image is found.
#[test]
fn images_are_the_ones_that_were_scored() {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    Run::of(&mut fixture.generate(&[&model("sd")], &["--seeds", "3"])).expect_generated(6, 6);
    let score = || {
        let mut command = evaluate(["score", "--device", "cpu", "--scorers", SCORERS, "--prompts"]);
        command.arg(fixture.path("prompts.txt")).arg("--out").arg(fixture.path("out"));
        Run::of(&mut command).expect_code(0);
    };
    let pairs = || {
        let mut command = evaluate(["pairs", "--choose", "all", "--scores"]);
        command.arg(fixture.path("out/scores.parquet")).arg("--out").arg(fixture.path("pairs"));
        Run::of(&mut command)
    };
    score();
    let run = pairs().expect_code(0);
    assert!(!run.stderr.contains("no computed scores"), "{run:#?}");
    let made = Made::of(&fixture.path("pairs"));
    assert_eq!((made.pairs.len(), made.scorers.len()), (6, 4));
    let labels = LabelsFile::open(fixture.path("pairs/labels.parquet")).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_str(&labels.metadata()["relabel.manifest"]).unwrap();
    assert_eq!(manifest["scorers"].as_array().unwrap().len(), 4, "{manifest}");
    assert_eq!((&manifest["ties"], &manifest["voters"][0]), (&"zero".into(), &"clip".into()));
    let images = fixture.files("out/images");
    for pair in &made.pairs {
        assert!(pair.image.iter().flatten().all(|found| images.values().any(|png| png == found)));
    }

    let (name, bytes) = images.iter().next().unwrap();
    let image = format!("out/images/{name}");
    std::fs::remove_dir_all(fixture.path("pairs")).unwrap();
    // Another image of the same prompt was scored too, but under another name.
    let (_, other) = images.iter().nth(1).unwrap();
    for changed in [&b"not an image"[..], other] {
        fixture.put(&image, changed);
        pairs().expect_error(&[name, "expected the image that was scored, found other bytes"]);
    }
    std::fs::remove_file(fixture.path(&image)).unwrap();
    pairs().expect_error(&[name, "expected the image that was scored, found No such file"]);
    assert!(!fixture.path("pairs/labels.parquet").exists());
    fixture.put(&image, bytes);
    pairs().expect_code(0);
    // Without the store nothing is known of the bytes.
    std::fs::remove_dir_all(fixture.path("pairs")).unwrap();
    std::fs::remove_dir_all(fixture.path("out/score-store")).unwrap();
    let run = pairs().expect_code(0);
    assert!(run.stderr.contains("nothing shows whether an image has changed"), "{run:#?}");
}
