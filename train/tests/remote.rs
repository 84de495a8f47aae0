//! Pairs, labels and caches elsewhere give the bytes of a run on local files, from every layout.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::ranks::assert_same;
use common::{Fixture, Run, SCORERS, pipeline, train, votes_of};
use schemas::labels::{KEY_MANIFEST, LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::latents::{LatentsFile, latents_name};
use schemas::pairs::{PairFile, discover};
use testkit::objects::{DatasetHub, ObjectStore};
use testkit::server::{Reply, Sending};

const LAYOUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/tests/fixtures/layouts");
/// Few steps: three batches of four pairs.
const SHORT: [&str; 6] = ["--steps", "3", "--checkpoint-every", "2", "--probe-pairs", "1"];

/// The command, for which the store is Amazon.
fn at(store: &ObjectStore, mut command: Command) -> Command {
    command.envs(store.variables());
    command
}

/// A store with the pairs and labels of a fixture.
fn stored(fixture: &Fixture) -> ObjectStore {
    let store = ObjectStore::start();
    store.put_folder("bucket/pairs", &fixture.path("pairs"));
    store.put("bucket/labels.parquet", &fixture.bytes("labels.parquet"));
    store
}

const ELSEWHERE: [&str; 4] =
    ["--pairs", "s3://bucket/pairs", "--labels", "s3://bucket/labels.parquet"];

#[test]
fn pairs_and_labels_of_object_storage_train_the_same_weights() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    let store = stored(&fixture);
    // Trouble that passes.
    store.set_fault(|_, before, reply| match before % 29 {
        3 => Reply::new(503, b""),
        17 if reply.body.len() > 10 => reply.sent(Sending::Breaks(5)),
        _ => reply,
    });
    Run::of(&mut at(&store, fixture.run("there", &ELSEWHERE))).expect_code(0);
    assert_same(&fixture, "whole", "there");
    store.clear_fault();
    // Killed, and resumed; here from what lies here.
    let mut killed = at(&store, fixture.run("killed", &ELSEWHERE));
    assert!(Run::of(killed.env("RUNKIT_FAULT", "step:6")).was_killed());
    Run::of(&mut at(&store, fixture.run("killed", &ELSEWHERE))).expect_code(0);
    assert_same(&fixture, "whole", "killed");
    let mut moved = at(&store, fixture.run("moved", &ELSEWHERE));
    assert!(Run::of(moved.env("RUNKIT_FAULT", "step:6")).was_killed());
    Run::of(&mut fixture.run("moved", &[])).expect_code(0);
    assert_same(&fixture, "whole", "moved");
    let plan = Run::of(&mut at(&store, fixture.command("plan", "none", &ELSEWHERE)));
    assert!(plan.expect_code(0).stdout.contains("2 held out"));
}

#[test]
fn pairs_of_a_hub_train_the_same_weights() {
    let fixture = Fixture::new(8);
    Run::of(&mut fixture.run("whole", &SHORT)).expect_code(0);
    let hub = DatasetHub::start("owner/pairs", &fixture.path("pairs"), true);
    let more = [&SHORT[..], &["--pairs", "hf://datasets/owner/pairs"]].concat();
    let mut command = fixture.run("there", &more);
    Run::of(command.envs(hub.variables())).expect_code(0);
    assert_same(&fixture, "whole", "there");
}

/// Made-up labels of the pairs of a folder or file, with metadata.
fn label(fixture: &Fixture, pairs: &Path, name: &str, metadata: &BTreeMap<String, String>) {
    let schema = LabelsSchema::new(&SCORERS).unwrap();
    let mut writer = LabelsWriter::create(fixture.path(name), &schema, metadata).unwrap();
    for input in discover(&[pairs.to_owned()], &[]).unwrap().files {
        let file = PairFile::open(&input).unwrap();
        for row in file.plan_rows().unwrap().collect_rows().unwrap() {
            let votes = votes_of(usize::try_from(row.row).unwrap());
            let sum: i8 = votes.iter().sum();
            let label = LabelRow {
                pair_id: row.pair_id,
                source_file: file.source_file().to_owned(),
                source_row: row.row,
                caption: row.caption,
                image_uid: row.image_uid,
                human_label_0: row.human_label_0,
                scores: votes.map(|vote| [Some(f32::from(vote)), Some(0.0)]).to_vec(),
                votes: votes.map(Some).to_vec(),
                vote_sum: Some(sum),
                consensus: Some(sum.signum()),
                status: Status::Ok,
                error: None,
            };
            writer.write(&label).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn every_layout_trains_from_here_and_from_object_storage() {
    let fixture = Fixture::new(4);
    let store = ObjectStore::start();
    store.put_folder("bucket/layouts", Path::new(LAYOUTS));
    for (number, (pairs, layout)) in [
        ("webdataset", "webdataset"),
        ("webdataset-json", "webdataset"),
        ("records/chosen.jsonl", "jsonl"),
        ("records/hpdv3.json", "hpdv3"),
        ("folder", "folder"),
        ("chosen-rejected", "chosen-rejected"),
        ("image-reward-db", "ranked"),
    ]
    .into_iter()
    .enumerate()
    {
        let (here, there) = (format!("here-{number}"), format!("there-{number}"));
        let local = Path::new(LAYOUTS).join(pairs).display().to_string();
        let labels = format!("{number}.parquet");
        label(&fixture, Path::new(&local), &labels, &BTreeMap::new());
        store.put(&format!("bucket/{labels}"), &fixture.bytes(&labels));
        let labels = fixture.path(&labels).display().to_string();
        let flags = ["--pairs", &local, "--labels", &labels];
        let run = Run::of(&mut fixture.run(&here, &[&SHORT[..], &flags].concat())).expect_code(0);
        assert!(run.stderr.contains(&format!("in the layout {layout}")), "{run:#?}");
        let remote =
            [format!("s3://bucket/layouts/{pairs}"), format!("s3://bucket/{number}.parquet")];
        let flags = ["--pairs", &remote[0], "--labels", &remote[1], "--layout", layout];
        let more = [&SHORT[..], &flags].concat();
        Run::of(&mut at(&store, fixture.run(&there, &more))).expect_code(0);
        assert_same(&fixture, &here, &there);
    }
}

#[test]
fn labels_dealt_by_another_rule_are_refused() {
    let fixture = Fixture::new(4);
    let pairs = Path::new(LAYOUTS).join("records/chosen.jsonl");
    let input = |dealing: &str| {
        let manifest = serde_json::json!({"input": {"rows": 1, "files": [], "dealing": dealing}});
        BTreeMap::from([(KEY_MANIFEST.to_owned(), manifest.to_string())])
    };
    let run = |name: &str, dealing: &str| {
        label(&fixture, &pairs, name, &input(dealing));
        let labels = fixture.path(name).display().to_string();
        let pairs = pairs.display().to_string();
        let flags = ["--pairs", &pairs, "--labels", &labels];
        Run::of(&mut fixture.run("out", &[&SHORT[..], &flags].concat()))
    };
    run("other.parquet", "by the moon").expect_error(&["other.parquet", "by the moon", "hint: "]);
    run("same.parquet", schemas::layouts::DEALING).expect_code(0);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fixture.bytes("out/manifest.json")).unwrap();
    assert_eq!(manifest["dealing"], schemas::layouts::DEALING);
}

#[test]
fn a_missing_image_says_why() {
    let fixture = Fixture::new(4);
    fixture.copy(&Path::new(LAYOUTS).join("records"), "records");
    let record = |image: &str| {
        format!(
            "{{\"prompt\": \"a\", \"image_0\": \"images/0_0.jpg\", \"image_1\": \"{image}\"}}\n"
        )
    };
    let records = ["images/1_0.jpg", "images/2_0.jpg", "images/lost.jpg", "images/3_0.jpg"];
    let text: String = records.iter().map(|image| record(image)).collect();
    let pairs = fixture.put("records/some.jsonl", text.as_bytes()).display().to_string();
    label(&fixture, Path::new(&pairs), "some.parquet", &BTreeMap::new());
    let labels = fixture.path("some.parquet").display().to_string();
    let flags = ["--pairs", &pairs, "--labels", &labels, "--probe-pairs", "0"];
    let run = Run::of(&mut fixture.run("out", &[&SHORT[..4], &flags].concat()));
    assert_eq!(run.code(), Some(1), "{run:#?}");
    for words in ["has no image 1 (", "no such file beside the pairs", "--skip-pairs"] {
        assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
    }
    let mut cache = train(["cache", "--pairs", &pairs, "--device", "cpu", "--max-failed", "1"]);
    cache.arg("--model").arg(pipeline("sd")).arg("--out").arg(fixture.path("latents"));
    let run = Run::of(&mut cache).expect_code(0);
    assert!(run.stderr.contains("in the layout jsonl"), "{run:#?}");
    let file = LatentsFile::open(fixture.path("latents").join(latents_name(0))).unwrap();
    let rows: Vec<_> = file.rows().unwrap().flat_map(Result::unwrap).collect();
    assert_eq!(rows[2].status, Status::MissingImage);
    assert!(rows[2].error.as_deref().unwrap().contains("no such file beside the pairs"));
}

#[test]
fn labels_that_change_between_two_starts_are_another_run() {
    let fixture = Fixture::new(11);
    let store = stored(&fixture);
    let mut killed = at(&store, fixture.run("out", &ELSEWHERE));
    assert!(Run::of(killed.env("RUNKIT_FAULT", "step:6")).was_killed());
    let mut labels = fixture.labels();
    for row in &mut labels {
        row.votes.iter_mut().flatten().for_each(|vote| *vote = -*vote);
        (row.vote_sum, row.consensus) = (row.vote_sum.map(|sum| -sum), row.consensus.map(|c| -c));
    }
    fixture.put_labels("other.parquet", &labels);
    store.put("bucket/labels.parquet", &fixture.bytes("other.parquet"));
    Run::of(&mut at(&store, fixture.run("out", &ELSEWHERE)))
        .expect_error(&["another run", "labels: was"]);
    store.put("bucket/labels.parquet", &fixture.bytes("labels.parquet"));
    Run::of(&mut at(&store, fixture.run("out", &ELSEWHERE))).expect_code(0);
}

#[test]
fn a_cache_of_object_storage_trains_the_same_weights() {
    let fixture = Fixture::new(11);
    let store = stored(&fixture);
    let cache = |pairs: &str, out: PathBuf| {
        let mut command = train(["cache", "--pairs", pairs, "--device", "cpu"]);
        command.arg("--model").arg(pipeline("sd")).arg("--out").arg(out);
        at(&store, command)
    };
    let pairs = fixture.path("pairs").display().to_string();
    Run::of(&mut cache(&pairs, fixture.path("latents"))).expect_code(0);
    Run::of(&mut cache("s3://bucket/pairs", fixture.path("there"))).expect_code(0);
    let parquet = |folder: &str| {
        let mut files = fixture.files(folder);
        files.retain(|name, _| name.ends_with(".parquet") || name == "manifest.json");
        files
    };
    assert!(parquet("latents").len() > 3 && parquet("latents") == parquet("there"));
    let local = fixture.path("latents").display().to_string();
    Run::of(&mut fixture.run("whole", &["--cache", &local])).expect_code(0);
    store.put_folder("bucket/latents", &fixture.path("latents"));
    let more = ["--cache", "s3://bucket/latents", "--labels", "s3://bucket/labels.parquet"];
    Run::of(&mut at(&store, fixture.run("out", &more))).expect_code(0);
    assert_same(&fixture, "whole", "out");
    // What is not a whole cache is refused by the name of what is missing.
    let more = ["--cache", "s3://bucket/pairs"];
    Run::of(&mut at(&store, fixture.run("other", &more))).expect_error(&[
        "s3://bucket/pairs",
        "found no manifest.json",
        "hint: ",
    ]);
    store.put("bucket/half/manifest.json", &fixture.bytes("latents/manifest.json"));
    Run::of(&mut at(&store, fixture.run("other", &["--cache", "s3://bucket/half"])))
        .expect_error(&["not complete", "is missing", "train cache"]);
}

#[test]
fn what_is_written_or_read_here_takes_no_address() {
    let fixture = Fixture::new(4);
    for (flag, hint) in [
        ("--out", "--mirror"),
        ("--from", "copy the checkpoint"),
        ("--skip-pairs", "copy the file"),
        ("--sample-prompts", "copy the file"),
    ] {
        let run = Run::of(&mut fixture.run("out", &[flag, "s3://bucket/x"]));
        assert!(run.code().is_some_and(|code| code == 1 || code == 2), "{run:#?}");
        for words in [flag, "s3://bucket/x", "a path of this machine", hint] {
            assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
        }
    }
    let mut cache = train(["cache", "--pairs", "x", "--out", "s3://bucket/x"]);
    let run = Run::of(cache.arg("--model").arg(pipeline("sd")));
    for words in ["--out s3://bucket/x", "a path of this machine", "--cache of train run"] {
        assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
    }
    // No local folder of such a name.
    Run::of(&mut fixture.run("out", &["--pairs", "ftp://host/pairs"]))
        .expect_error(&["ftp://host/pairs", "s3://, gs://"]);
    Run::of(&mut fixture.run("out", &["--labels", "s4://bucket/labels.parquet"]))
        .expect_error(&["s4://bucket/labels.parquet", "s3://, gs://"]);
    Run::of(&mut fixture.run("out", &["--layout", "wds"]))
        .expect_usage_error(&["wds", "webdataset"]);
}
