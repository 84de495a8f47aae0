//! The commands around a run: `vote`, `inspect`, `check`, settings from flags, environment and
//! files, and the help.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use common::{Fixture, Run, relabel};
use schemas::labels::{KEY_MANIFEST, LabelRow, LabelsFile, LabelsSchema, LabelsWriter, Status};

const SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// Scores that hold ties of votes, majorities and an equal pair; every tenth row failed.
fn rows(count: i64) -> Vec<LabelRow> {
    let row = |number: i64| {
        let failed = number % 10 == 9;
        let score = |scorer: i64, image: i64| {
            let value = (number * 37 + scorer * 53 + image * (71 + 6 * scorer)) % 64;
            (!failed).then_some(value as f32 / 64.0)
        };
        let scores: Vec<_> = (0..4).map(|scorer| [score(scorer, 0), score(scorer, 1)]).collect();
        let vote =
            |[first, second]: &[Option<f32>; 2]| Some(if (*first)? >= (*second)? { 1 } else { -1 });
        let votes: Vec<Option<i8>> = scores.iter().map(vote).collect();
        let sum = (!failed).then(|| votes.iter().flatten().sum::<i8>());
        LabelRow {
            pair_id: format!("pair {number}"),
            source_file: "pairs.parquet".to_owned(),
            source_row: number,
            caption: Some(format!("caption {}", number / 3)),
            image_uid: [Some(format!("left {number}")), Some(format!("right {number}"))],
            human_label_0: (number % 7 != 0).then_some((number % 3) as f64 / 2.0),
            scores,
            votes,
            vote_sum: sum,
            consensus: sum.map(i8::signum),
            status: if failed { Status::DecodeError } else { Status::Ok },
            error: failed.then(|| "image_0: cut short".to_owned()),
        }
    };
    (0..count).map(row).collect()
}

/// A labels file that no network was needed for.
fn labels_file(fixture: &Fixture, rows: &[LabelRow]) -> PathBuf {
    let path = fixture.path("labels.parquet");
    let names: Vec<_> = SCORERS.iter().map(|name| serde_json::json!({"name": name})).collect();
    let manifest = serde_json::json!({"scorers": names, "ties": "zero"}).to_string();
    let metadata = BTreeMap::from([(KEY_MANIFEST.to_owned(), manifest)]);
    let schema = LabelsSchema::new(&SCORERS).unwrap();
    let mut writer = LabelsWriter::create(&path, &schema, &metadata).unwrap();
    rows.iter().for_each(|row| writer.write(row).unwrap());
    writer.finish().unwrap();
    path
}

fn vote(fixture: &Fixture, out: &str, more: &[&str]) -> Command {
    let mut command = relabel(["vote", "--labels"]);
    command.arg(fixture.path("labels.parquet")).arg("--out").arg(fixture.path(out)).args(more);
    command
}

fn sign(value: f64) -> i8 {
    i8::from(value > 0.0) - i8::from(value < 0.0)
}

/// The population standard deviation of each scorer's margins.
fn stds(rows: &[LabelRow]) -> Vec<f64> {
    let margin = |scores: &[Option<f32>; 2]| Some(f64::from(scores[0]?) - f64::from(scores[1]?));
    let std = |scorer: usize| {
        let margins: Vec<f64> = rows.iter().filter_map(|row| margin(&row.scores[scorer])).collect();
        let mean = margins.iter().sum::<f64>() / margins.len() as f64;
        let squares: f64 = margins.iter().map(|margin| (margin - mean).powi(2)).sum();
        (squares / margins.len() as f64).sqrt()
    };
    (0..4).map(std).collect()
}

#[test]
fn vote_decides_ties_as_asked_and_nothing_else() {
    let fixture = Fixture::empty();
    let rows = rows(200);
    labels_file(&fixture, &rows);
    let stds = stds(&rows);
    for policy in ["zero", "human", "first", "second", "margin"] {
        let more = ["--ties", policy, "--fresh"];
        Run::of(&mut vote(&fixture, "out.parquet", &more)).expect_code(0);
        let (mut ties, mut decided) = (0, 0);
        for (new, old) in fixture.labels("out.parquet").iter().zip(&rows) {
            let mut expected = old.clone();
            if old.vote_sum == Some(0) {
                ties += 1;
                let standard: f64 = (0..4)
                    .map(|scorer| {
                        let [first, second] = old.scores[scorer].map(|score| score.unwrap());
                        (f64::from(first) - f64::from(second)) / stds[scorer]
                    })
                    .sum();
                expected.consensus = Some(match policy {
                    "zero" => 0,
                    "human" => old.human_label_0.map_or(0, |label| sign(label - 0.5)),
                    "first" => 1,
                    "second" => -1,
                    _ => sign(standard),
                });
                decided += usize::from(expected.consensus != Some(0));
            }
            assert_eq!(*new, expected, "--ties {policy}");
        }
        assert!(ties > 10, "{ties} ties");
        assert_eq!(decided == 0, policy == "zero", "--ties {policy} decided {decided}");
        let file = LabelsFile::open(fixture.path("out.parquet")).unwrap();
        let manifest = &file.metadata()[KEY_MANIFEST];
        assert!(manifest.contains(&format!("\"ties\":\"{policy}\"")), "{manifest}");
    }
    let again = vote(&fixture, "again.parquet", &["--ties", "margin"]).output().unwrap();
    assert!(again.status.success());
    assert!(
        fixture.bytes("again.parquet") == fixture.bytes("out.parquet"),
        "equal input, equal bytes"
    );
}

#[test]
fn vote_of_some_voters_leaves_the_others_out() {
    let fixture = Fixture::empty();
    let rows = rows(60);
    labels_file(&fixture, &rows);
    let run = Run::of(&mut vote(&fixture, "two.parquet", &["--voters", "aesthetic,clip"]));
    run.expect_code(0);
    let file = LabelsFile::open(fixture.path("two.parquet")).unwrap();
    assert_eq!(file.schema().scorers(), ["clip", "aesthetic"], "in the order of the columns");
    let new = file.read_rows().unwrap();
    assert_eq!(new.len(), rows.len());
    for (new, old) in new.iter().zip(&rows) {
        assert_eq!((&new.pair_id, new.status, &new.error), (&old.pair_id, old.status, &old.error));
        assert_eq!(new.votes, [old.votes[0], old.votes[3]]);
        let sum = old.votes[0].and_then(|one| Some(one + old.votes[3]?));
        assert_eq!((new.vote_sum, new.consensus), (sum, sum.map(i8::signum)));
    }
    let manifest = &file.metadata()[KEY_MANIFEST];
    assert!(manifest.contains("\"voters\":[\"clip\",\"aesthetic\"]"), "{manifest}");
    assert!(!manifest.contains("hps"), "{manifest}");
}

#[test]
fn vote_refuses_unknown_voters_and_its_own_input() {
    let fixture = Fixture::empty();
    let labels = labels_file(&fixture, &rows(20));
    let before = fixture.bytes("labels.parquet");
    Run::of(&mut vote(&fixture, "out.parquet", &["--voters", "clip,pikscore"])).expect_error(&[
        "labels.parquet",
        "pikscore",
        "did you mean `pickscore`",
    ]);
    std::os::unix::fs::symlink(&labels, fixture.path("link.parquet")).unwrap();
    for out in ["labels.parquet", "./labels.parquet", "link.parquet"] {
        for more in [&[][..], &["--fresh"]] {
            let run = Run::of(&mut vote(&fixture, out, more));
            run.expect_error(&["--out", "is one of the inputs", "hint: choose another --out"]);
        }
    }
    assert!(fixture.bytes("labels.parquet") == before);
    assert_eq!(fixture.names(""), ["labels.parquet", "link.parquet"]);
    fixture.put("labels.parquet", &before[..before.len() / 2]);
    Run::of(&mut vote(&fixture, "out.parquet", &[])).expect_error(&["labels.parquet"]);
    assert!(!fixture.path("out.parquet").exists());
}

#[test]
fn vote_overwrites_nothing_that_is_not_its_own() {
    let fixture = Fixture::with_sample(3);
    labels_file(&fixture, &rows(20));
    // Somebody's pairs, text, and labels that another tool wrote.
    let pairs = fixture.bytes("pairs/0.parquet");
    fixture.put("mine.parquet", &pairs);
    fixture.put("thesis.tex", b"\\begin{document}");
    for out in ["mine.parquet", "thesis.tex"] {
        let before = fixture.bytes(out);
        for more in [&[][..], &["--fresh"]] {
            let run = Run::of(&mut vote(&fixture, out, more));
            let run = run.expect_error(&[out, "did not write", "hint: choose another --out"]);
            assert!(!run.stderr.contains("--fresh"), "{run:#?}");
            assert!(fixture.bytes(out) == before, "{out} was changed");
        }
    }
    // Labels of another vote: refused by what differs, and replaced if that is asked for.
    Run::of(&mut vote(&fixture, "out.parquet", &["--voters", "clip,hps,pickscore"])).expect_code(0);
    let three = fixture.bytes("out.parquet");
    let two = ["--voters", "clip,hps"];
    let run = Run::of(&mut vote(&fixture, "out.parquet", &two));
    run.expect_error(&[
        "out.parquet",
        "belongs to another run",
        "voters[2]: was \"pickscore\"",
        "--fresh",
    ]);
    assert!(fixture.bytes("out.parquet") == three);
    let again = Run::of(&mut vote(&fixture, "out.parquet", &["--voters", "clip,hps,pickscore"]));
    let again = again.expect_code(0);
    assert!(again.stderr.contains("already complete"), "{again:#?}");
    assert!(again.stdout.contains("20 pairs: 18 voted on, 2 failed"), "{again:#?}");
    Run::of(&mut vote(&fixture, "out.parquet", &[&two[..], &["--fresh"]].concat())).expect_code(0);
    let file = LabelsFile::open(fixture.path("out.parquet")).unwrap();
    assert_eq!(file.schema().scorers(), ["clip", "hps"]);
}

#[test]
fn score_overwrites_nothing_that_is_not_its_own() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    fixture.put("notes.md", b"# Notes");
    fixture.put("copy.parquet", &fixture.bytes("pairs/0.parquet"));
    fixture.put("kept.parquet.work/parts/thesis.tex", b"mine");
    let before = fixture.files("");
    for (out, says) in [
        ("notes.md", "plain text that this program did not write"),
        ("copy.parquet", "a Parquet file that this program did not write"),
        ("pairs", "a folder that this program did not write"),
        ("pairs/0.parquet", "is one of the inputs"),
        ("two.toml", "is one of the inputs"),
        ("kept.parquet", "kept.parquet.work: expected the unfinished work of relabel score"),
    ] {
        for more in [&[][..], &["--fresh"]] {
            let run = Run::of(&mut fixture.score(&scorers, out, more));
            let run = run.expect_error(&[out, says, "hint: choose another --out"]);
            assert!(!run.stderr.contains("--fresh"), "{run:#?}");
        }
    }
    let mut check = relabel(["check", "--pairs"]);
    check.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    let run = Run::of(check.arg("--out").arg(fixture.path("notes.md")));
    run.expect_error(&["notes.md", "did not write"]);
    assert!(fixture.files("") == before, "something was changed");
    let link = fixture.path("dangling.parquet");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let run = Run::of(&mut fixture.score(&scorers, "dangling.parquet", &["--fresh"]));
    run.expect_error(&["dangling.parquet", "a symbolic link to nothing"]);
    assert!(link.is_symlink());
}

#[test]
fn settings_that_the_user_wrote_are_not_overwritten() {
    let fixture = Fixture::with_sample(3);
    fixture.two_scorers();
    let text = b"# my run\npairs = [\"pairs\"]\nscorers = \"two.toml\"\nout = \"labels.parquet\"\n";
    let config = fixture.put("labels.config.toml", text);
    let run = Run::of(relabel(["score", "--config"]).arg(&config)).expect_code(0);
    assert!(run.stderr.contains("stays as it is"), "{run:#?}");
    assert_eq!(fixture.bytes("labels.config.toml"), text);
}

#[test]
fn a_flag_of_another_program_is_answered_with_sense() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &["--resume"])).expect_code(0);
    assert!(run.stderr.contains("resuming is automatic"), "{run:#?}");
    for (flag, says) in [
        ("--force", "results of the same command are kept"),
        ("--overwrite", "results of the same command are kept"),
        ("--resume-from-checkpoint", "resuming is automatic"),
        ("--threads", "OMP_NUM_THREADS"),
        ("--workers", "OMP_NUM_THREADS"),
        ("--fp16", "'--dtype'"),
        ("--output", "'--out'"),
        ("--fres", "unexpected argument"),
        ("--refresh", "unexpected argument"),
    ] {
        let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &[flag])).expect_code(2);
        assert!(run.stderr.contains(says), "{flag}: {run:#?}");
        assert!(!run.stderr.contains("--fresh"), "{flag}: {run:#?}");
    }
}

#[test]
fn the_log_is_json_to_the_last_line() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    let lines = |run: &Run| -> Vec<serde_json::Value> {
        let line = |line: &str| match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => panic!("{line}: {error}"),
        };
        run.stderr.lines().map(line).collect()
    };
    let json = ["--log-format", "json"];
    let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &json)).expect_code(0);
    let progress: Vec<_> =
        lines(&run).into_iter().filter(|line| line["fields"]["label"] == "scoring").collect();
    let last = &progress.last().unwrap()["fields"];
    assert_eq!(last["done"], last["total"], "{last}");
    assert!(last["rate"].is_f64() && last["finished"] == true, "{last}");
    let loaded = lines(&run).into_iter().find(|line| !line["fields"]["loading_seconds"].is_null());
    assert!(loaded.unwrap()["fields"]["loading_seconds"].is_f64());
    for (more, code, says) in [
        (&["--pairs", "absent"][..], 1, "found nothing of that name"),
        (&["--dtype", "fp16"], 2, "did you mean f16?"),
        (&["--nope"], 2, "unexpected argument"),
        (&["--shard", "4/4"], 2, "zero-based"),
    ] {
        let more = [&json[..], more].concat();
        let run = Run::of(&mut fixture.score(&scorers, "other.parquet", &more)).expect_code(code);
        let lines = lines(&run);
        let last = lines.last().unwrap();
        assert_eq!(last["level"], "ERROR", "{last}");
        assert!(last["fields"]["message"].as_str().unwrap().contains(says), "{last}");
    }
}

/// The output of a command on a terminal of this kind, as the terminal gets it.
fn on_terminal(command: &Command, kind: &str) -> String {
    let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap());
    let words: Vec<String> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
    let mut script = testkit::program("script", ["-qec", &words.join(" "), "/dev/null"]);
    script.env("TERM", kind).env_remove("NO_COLOR");
    Run::of(&mut script).expect_code(0).stdout
}

#[test]
fn a_terminal_gets_sentences_and_a_dumb_one_no_colour() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    for (kind, coloured) in [("xterm", true), ("dumb", false)] {
        let out = format!("{kind}.parquet");
        let text = on_terminal(&fixture.score(&scorers, &out, &[]), kind);
        assert!(text.contains("Loaded 2 scorers in "), "{text}");
        assert!(!text.contains("INFO") && !text.contains("loading_seconds"), "{text}");
        assert!(!text.contains("0s left"), "{text}");
        assert_eq!(text.contains('\u{1b}'), coloured, "{text:?}");
        let full = on_terminal(&fixture.score(&scorers, &out, &["-v"]), kind);
        assert!(full.contains("INFO") && full.contains("relabel"), "{full}");
    }
}

#[test]
fn everything_is_of_this_program_alone() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &["-vv"])).expect_code(0);
    assert!(run.stderr.contains(" scorers::"), "{run:#?}");
    assert!(!run.stderr.contains("tokenizers"), "{run:#?}");
    assert!(run.stderr.lines().count() < 100, "{} lines", run.stderr.lines().count());
}

#[test]
fn a_file_system_without_locks_is_used_and_a_read_only_one_is_explained() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "locked.parquet", &[])).expect_code(0);
    for error in ["ENOSYS", "ENOTSUP"] {
        let mut command = fixture.score(&scorers, "labels.parquet", &["--fresh"]);
        command.env("RUNKIT_FAULT", format!("lock:*:{error}"));
        let run = Run::of(&mut command).expect_code(0);
        assert_eq!(run.stderr.matches("has no locks").count(), 1, "{run:#?}");
        assert!(fixture.bytes("labels.parquet") == fixture.bytes("locked.parquet"));
    }
    let mut command = fixture.score(&scorers, "other.parquet", &[]);
    let run = Run::of(command.env("RUNKIT_FAULT", "lock:1:EROFS"));
    run.expect_error(&[".other.parquet.lock", "hint: the disk is mounted read-only"]);
}

#[test]
fn an_exit_code_of_3_is_explained() {
    let fixture = Fixture::with_sample(3);
    fixture.put("pairs/0.parquet", &common::pairs_parquet(&spoilt_pairs()));
    let scorers = fixture.two_scorers();
    for quiet in [&[][..], &["-q"], &["-qq"]] {
        let more = [quiet, &["--fresh"]].concat();
        let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &more)).expect_code(3);
        for words in ["1 row failed", "--max-failed is 0", "exit code 3", "inspect --failed"] {
            assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
        }
    }
    let more = ["--fresh", "--max-failed", "1"];
    let run = Run::of(&mut fixture.score(&scorers, "labels.parquet", &more)).expect_code(0);
    assert!(!run.stderr.contains("exit code"), "{run:#?}");
}

fn spoilt_pairs() -> Vec<common::Pair> {
    let mut pairs = common::sample_pairs(1);
    pairs[0].image[1].as_mut().unwrap().truncate(40);
    pairs
}

#[test]
fn what_an_error_quotes_is_short() {
    let fixture = Fixture::empty();
    labels_file(&fixture, &rows(3));
    let long = "x".repeat(100_000);
    for more in [["--voters", &long], ["--ties", &long], [&*format!("--{long}"), "1"]] {
        let run = Run::of(&mut vote(&fixture, "out.parquet", &more));
        assert!(matches!(run.code(), Some(1 | 2)), "{:?}", run.code());
        assert!(run.stderr.len() < 3_000, "{} bytes", run.stderr.len());
        assert!(run.stderr.contains("cut: 100"), "{}", run.stderr);
    }
}

fn inspect(fixture: &Fixture, more: &[&str]) -> Run {
    Run::of(relabel(["inspect"]).arg(fixture.path("labels.parquet")).args(more))
}

#[test]
fn inspect_counts_what_the_file_holds() {
    let fixture = Fixture::empty();
    let rows = rows(200);
    labels_file(&fixture, &rows);
    let run = inspect(&fixture, &["--json"]).expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    let expected = [
        "rows",
        "voted_rows",
        "failed_rows",
        "partial_rows",
        "failures",
        "consensus",
        "scorers",
        "agreement",
        "kappa",
        "human_pairs",
        "human_ties",
        "human_missing",
        "warnings",
    ];
    assert_eq!(keys, expected);
    let voted: Vec<&LabelRow> = rows.iter().filter(|row| row.status == Status::Ok).collect();
    let count = |is: &dyn Fn(&LabelRow) -> bool| voted.iter().filter(|row| is(row)).count();
    assert_eq!(report["rows"], 200);
    assert_eq!(report["voted_rows"], voted.len());
    assert_eq!(report["failures"], serde_json::json!({"decode_error": 20}));
    assert_eq!(report["consensus"]["image_0"], count(&|row| row.consensus == Some(1)));
    assert_eq!(report["consensus"]["ties"], count(&|row| row.consensus == Some(0)));
    assert_eq!(report["human_ties"], count(&|row| row.human_label_0 == Some(0.5)));
    let alike = count(&|row| row.votes[1] == row.votes[2]) as f64 / voted.len() as f64;
    assert!((report["agreement"][1][2].as_f64().unwrap() - alike).abs() < 1e-12);
    assert_eq!(report["agreement"][1][2], report["agreement"][2][1]);
    assert_eq!(report["kappa"][3][3], 1.0);

    let text = inspect(&fixture, &[]).expect_code(0);
    assert!(text.stdout.starts_with("200 pairs: 180 voted on, 20 failed\n  20 decode_error\n"));
    assert!(text.stdout.contains("Cohen's kappa"), "{text:#?}");
    for line in text.stdout.lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
    assert_eq!((text.stderr.as_str(), run.stderr.as_str()), ("", ""));
}

#[test]
fn inspect_lists_the_rows_that_failed() {
    let fixture = Fixture::empty();
    let mut rows = rows(40);
    rows[19].error = Some("image_0: \u{1b}[31mred\tand\nmore".to_owned());
    labels_file(&fixture, &rows);
    let run = inspect(&fixture, &["--failed", "--json"]).expect_code(0);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let failed: Vec<&LabelRow> = rows.iter().filter(|row| row.status != Status::Ok).collect();
    assert_eq!(found.as_array().unwrap().len(), failed.len());
    for (found, row) in found.as_array().unwrap().iter().zip(&failed) {
        let expected = serde_json::json!({
            "pair_id": row.pair_id,
            "source_file": row.source_file,
            "source_row": row.source_row,
            "status": "decode_error",
            "error": row.error,
        });
        assert_eq!(*found, expected);
    }
    let run = inspect(&fixture, &["--failed"]).expect_code(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), failed.len());
    assert_eq!(lines[0], "pair 9\tpairs.parquet:9\tdecode_error\timage_0: cut short");
    assert_eq!(lines[1].split('\t').count(), 4, "{:?}", lines[1]);
    assert!(!run.stdout.contains('\u{1b}'), "{run:#?}");

    rows.retain(|row| row.status == Status::Ok);
    labels_file(&fixture, &rows);
    assert_eq!(inspect(&fixture, &["--failed"]).expect_code(0).stdout, "");
    let none = inspect(&fixture, &["--failed", "--json"]).expect_code(0);
    assert_eq!(none.stdout, "[]\n");
}

#[test]
fn inspect_tells_what_is_no_labels_file_and_is_quiet_when_nobody_reads() {
    let fixture = Fixture::with_sample(3);
    for (name, says) in
        [("absent.parquet", "cannot read"), ("pairs/0.parquet", "not a labels file")]
    {
        Run::of(relabel(["inspect"]).arg(fixture.path(name))).expect_error(&[name, says]);
    }
    labels_file(&fixture, &rows(20));
    let mut shell = Command::new("sh");
    let script = "(\"$0\" inspect \"$1\"; echo \"code $?\" >&2) | true";
    shell
        .arg("-c")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_relabel"))
        .arg(fixture.path("labels.parquet"));
    let run = Run::of(&mut shell);
    assert_eq!(run.stderr, "code 141\n", "ended by SIGPIPE without a word");
}

#[test]
fn summaries_are_json_if_asked() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    let json = |command: &mut Command| -> serde_json::Value {
        serde_json::from_str(&Run::of(command.arg("--json")).expect_code(0).stdout).unwrap()
    };
    let report = |summary: &serde_json::Value| {
        assert_eq!(summary["state"], "complete");
        summary["report"].clone()
    };
    let check = json(
        relabel(["check", "--pairs"])
            .arg(fixture.path("pairs"))
            .args(["--scorers".as_ref(), scorers.as_os_str()]),
    );
    assert_eq!((&check["pairs"], &check["output_state"]), (&3.into(), &"new".into()));
    let shard = json(&mut fixture.score(&scorers, "labels.parquet", &["--shard", "0/2"]));
    assert_eq!((&shard["state"], &shard["missing_units"]), (&"shard_complete".into(), &1.into()));
    let scored = report(&json(&mut fixture.score(&scorers, "labels.parquet", &[])));
    assert_eq!(scored["rows"], 3);
    assert_eq!(scored, json(relabel(["inspect"]).arg(fixture.path("labels.parquet"))));
    assert_eq!(report(&json(&mut vote(&fixture, "again.parquet", &[])))["rows"], 3);
}

#[test]
fn the_manners_of_every_program() {
    let run = Run::of(&mut relabel(["--version"])).expect_code(0);
    for line in ["relabel 0", "commit ", "libtorch "] {
        assert!(run.stdout.contains(line), "{run:#?}");
    }
    let run = Run::of(&mut relabel(["completions", "bash"])).expect_code(0);
    assert!(run.stdout.contains("_relabel"), "{run:#?}");
    Run::of(&mut relabel(["score", "--limit", "-1"])).expect_usage_error(&["'-1'", "--limit"]);
    let help = Run::of(&mut relabel(["check", "--help"])).expect_code(0).stdout;
    for part in ["Input:", "Compute:", "Examples:", "Exit codes:", "docs/relabel.md"] {
        assert!(help.contains(part), "{part}: {help}");
    }
    for flag in ["--fresh", "--max-failed", "--ties"] {
        assert!(!help.contains(flag), "{flag}: {help}");
    }
    let mut doctor = relabel(["doctor", "--json"]);
    let run = Run::of(doctor.env("HF_HUB_OFFLINE", "1"));
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(report["libtorch"]["version"].is_string(), "{report}");
}

#[test]
fn check_says_what_a_run_needs_and_writes_nothing() {
    let fixture = Fixture::with_sample(6);
    let scorers = fixture.two_scorers();
    let before = fixture.files("");
    let mut command = relabel(["check", "--pairs"]);
    command.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    command.arg("--out").arg(fixture.path("new/folder/labels.parquet"));
    let run = Run::of(&mut command).expect_code(0);
    for line in [
        "pairs      6 in 3 files",
        "scorer     clip: ",
        "scorer     aesthetic: ",
        "networks   loaded in ",
        "images/s",
        "for labels and unfinished work in ",
        "for captions and their features in ",
        "labels.parquet: new",
    ] {
        assert!(run.stdout.contains(line), "{line:?} in {run:#?}");
    }
    assert!(before == fixture.files(""), "something was written");

    let mut killed = fixture.score(&scorers, "labels.parquet", &[]);
    assert!(Run::of(killed.env("RUNKIT_FAULT", "rename:6")).was_killed());
    let begun = fixture.files("");
    let mut command = relabel(["check", "--pairs"]);
    command.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    let run = Run::of(command.arg("--out").arg(fixture.path("labels.parquet"))).expect_code(0);
    assert!(run.stdout.contains("resumes, 2 of 3 units are done"), "{run:#?}");
    assert!(begun == fixture.files(""), "something was written");
}

#[test]
fn what_the_scratch_files_take_is_known_and_they_stand_where_they_should() {
    let fixture = Fixture::with_sample(6);
    std::fs::create_dir(fixture.path("scratch")).unwrap();
    let scorers = common::four_scorers();
    let mut command = relabel(["check", "--pairs"]);
    command.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    command.arg("--scratch").arg(fixture.path("scratch"));
    let run = Run::of(&mut command).expect_code(0);
    let mut captions: Vec<String> =
        common::sample_pairs(6).into_iter().filter_map(|pair| pair.caption).collect();
    captions.sort();
    captions.dedup();
    // Three text towers of 128 numbers in four bytes.
    let bytes = captions.iter().map(|caption| caption.len() + 3 * 128 * 4).sum::<usize>() as u64;
    let line = format!("scratch    {} for captions", indicatif::HumanBytes(bytes));
    assert!(run.stdout.contains(&line), "{line:?} in {run:#?}");
    assert!(run.stdout.contains(fixture.path("scratch").to_str().unwrap()), "{run:#?}");
    assert_eq!(fixture.names("scratch"), [""; 0]);

    // Other than the folder of the output, and no part of what the run is.
    Run::of(&mut fixture.score(&scorers, "a.parquet", &[])).expect_code(0);
    let scratch = fixture.path("scratch").to_str().unwrap().to_owned();
    Run::of(&mut fixture.score(&scorers, "b.parquet", &["--scratch", &scratch])).expect_code(0);
    assert!(fixture.bytes("a.parquet") == fixture.bytes("b.parquet"));
    let absent = fixture.path("absent").to_str().unwrap().to_owned();
    Run::of(&mut fixture.score(&scorers, "c.parquet", &["--scratch", &absent]))
        .expect_error(&["absent", "--scratch"]);
}

#[test]
fn settings_come_from_flag_then_environment_then_file_then_default() {
    let fixture = Fixture::with_sample(3);
    let scorers = fixture.two_scorers();
    let more = ["--ties", "human", "--batch-size", "3", "--max-failed", "2", "--print-config"];
    let printed = Run::of(&mut fixture.score(&scorers, "labels.parquet", &more)).expect_code(0);
    let config = fixture.put("run.toml", printed.stdout.as_bytes());
    let mut from_file = relabel(["score", "--print-config", "--config"]);
    from_file.arg(&config);
    assert_eq!(Run::of(&mut from_file).expect_code(0).stdout, printed.stdout, "round trip");
    from_file.env("RELABEL_BATCH_SIZE", "5");
    assert!(Run::of(&mut from_file).stdout.contains("batch_size = 5\n"));
    from_file.args(["--batch-size", "7"]);
    assert!(Run::of(&mut from_file).stdout.contains("batch_size = 7\n"));
    assert!(!fixture.path("labels.parquet").exists(), "only printed");

    // Paths in a file are relative to it, and what a run saves beside its output repeats it.
    let text = "pairs = [\"pairs\"]\nscorers = \"two.toml\"\nout = \"labels.parquet\"\n";
    let config = fixture.put("relative.toml", text.as_bytes());
    let run = Run::of(relabel(["score", "-q", "--config"]).arg(&config)).expect_code(0);
    assert_eq!(run.stderr, "", "-q says nothing where nothing is wrong");
    assert_eq!(fixture.labels("labels.parquet").len(), 3);
    let saved = fixture.path("labels.config.toml");
    let run = Run::of(relabel(["score", "--log-format", "json", "--config"]).arg(&saved));
    let run = run.expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    for line in run.stderr.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }

    let config = fixture.put("typo.toml", format!("{text}batch-size = 3\n").as_bytes());
    Run::of(relabel(["score", "--config"]).arg(&config)).expect_error(&[
        "typo.toml",
        "batch-size",
        "batch_size",
    ]);
}

#[test]
fn help_fits_80_columns_and_names_every_flag() {
    let common = ["verbose", "quiet", "log-format", "help", "version"];
    let score = [
        "pairs",
        "split",
        "layout",
        "scorers",
        "out",
        "work",
        "limit",
        "batch-size",
        "device",
        "dtype",
        "unit-pairs",
        "ties",
        "missing",
        "reuse",
        "max-failed",
        "scratch",
        "shard",
        "config",
        "print-config",
        "fresh",
        "json",
    ];
    let without_meaning = ["max-failed", "missing", "ties", "fresh"];
    let check: Vec<&str> =
        score.into_iter().filter(|flag| !without_meaning.contains(flag)).collect();
    for (command, own) in [
        (None, &[][..]),
        (Some("score"), &score),
        (Some("check"), &check),
        (Some("vote"), &["labels", "out", "voters", "ties", "missing", "fresh", "json"]),
        (Some("join"), &["out", "ties", "missing", "fresh", "json"]),
        (Some("import"), &["scores", "name", "labels", "out", "ties", "missing", "fresh", "json"]),
        (Some("inspect"), &["failed", "voting", "json"]),
    ] {
        for flag in ["-h", "--help"] {
            let run = Run::of(&mut relabel(command.into_iter().chain([flag]))).expect_code(0);
            for line in run.stdout.lines() {
                assert!(line.chars().count() <= 80, "{command:?} {flag}: {line}");
            }
            let mut found: Vec<&str> = run
                .stdout
                .lines()
                .filter_map(|line| line.trim_start().strip_prefix('-'))
                .filter_map(|line| {
                    line.split_once("--").or(line.strip_prefix('-').map(|l| ("", l)))
                })
                .filter_map(|(_, name)| name.split([' ', '.', '<']).next())
                // Flags that a sentence speaks of are followed by a comma.
                .filter(|name| !name.ends_with(','))
                .collect();
            let mut expected: Vec<&str> = own.iter().copied().chain(common).collect();
            found.sort_unstable();
            // An example's line may begin with a flag.
            found.dedup();
            expected.sort_unstable();
            assert_eq!(found, expected, "{command:?} {flag}");
        }
    }
    let run = Run::of(&mut relabel(["score", "--pears", "x"])).expect_code(2);
    assert!(run.stderr.contains("--pairs"), "{run:#?}");
}
