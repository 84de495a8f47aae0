//! Pairs and labels at addresses: labels from object storage, from a hub and from tars have the bytes
//! of local ones, killed and resumed too; an output there is whole or not there.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Fixture, Pair, Run, pairs_parquet, relabel, sample_pairs, tar_of};
use schemas::labels::{LabelRow, LabelsFile, Status};
use serde_json::Value;
use testkit::Ranks;
use testkit::objects::{DatasetHub, ObjectStore, etag};
use testkit::server::{Reply, Request, Server};

/// The pairs of the fixture as `s3://bucket/pairs`.
fn store_of(fixture: &Fixture) -> ObjectStore {
    let store = ObjectStore::start();
    store.put_folder("bucket/pairs", &fixture.path("pairs"));
    store
}

/// `relabel score` in the folder of the fixture, on these pairs.
fn score(fixture: &Fixture, pairs: &str, scorers: &Path, out: &str) -> Command {
    let mut command = relabel(["score", "--pairs", pairs, "--scorers"]);
    command.arg(scorers).args(["--out", out]).current_dir(fixture.path(""));
    command
}

/// Three files of four pairs, the cheapest scorers, and the labels that a local run makes.
struct Case {
    fixture: Fixture,
    store: ObjectStore,
    scorers: std::path::PathBuf,
    labels: Vec<u8>,
    settings: String,
}

const OUT: &str = "s3://bucket/out/labels.parquet";
const OBJECT: &str = "bucket/out/labels.parquet";
const SETTINGS: &str = "bucket/out/labels.config.toml";
const WORK: &str = "labels.parquet.work";

impl Case {
    fn new() -> Self {
        let fixture = Fixture::with_sample(12);
        let (scorers, store) = (fixture.two_scorers(), store_of(&fixture));
        Run::of(&mut score(&fixture, "pairs", &scorers, "here/labels.parquet")).expect_code(0);
        let labels = fixture.bytes("here/labels.parquet");
        let settings = String::from_utf8(fixture.bytes("here/labels.config.toml")).unwrap();
        Self { fixture, store, scorers, labels, settings }
    }

    fn score(&self, pairs: &str, out: &str, more: &[&str]) -> Command {
        let mut command = score(&self.fixture, pairs, &self.scorers, out);
        command.args(more).envs(self.store.variables());
        command
    }

    /// The labels and their settings are there, and nothing else of the run.
    #[track_caller]
    fn assert_there(&self) {
        assert!(self.store.object(OBJECT).unwrap() == self.labels, "other bytes than here");
        let settings = String::from_utf8(self.store.object(SETTINGS).unwrap()).unwrap();
        assert!(settings.contains(OUT), "{settings}");
        assert_eq!(settings.lines().next(), self.settings.lines().next());
        let names = self.fixture.names("");
        assert_eq!(names, ["here", "pairs", "two.toml"], "something lies about");
    }
}

#[test]
fn labels_of_pairs_elsewhere_have_the_bytes_of_local_ones() {
    let case = Case::new();
    let hub = DatasetHub::start("me/pickapic", &case.fixture.path(""), true);
    for (pairs, out) in [
        ("s3://bucket/pairs", "s3.parquet"),
        ("s3://bucket/pairs/?.parquet", "pattern.parquet"),
        ("hf://datasets/me/pickapic/pairs", "hub.parquet"),
    ] {
        let mut command = case.score(pairs, out, &["--layout", "pickapic", "-v"]);
        let run = Run::of(command.envs(hub.variables())).expect_code(0);
        assert!(case.fixture.bytes(out) == case.labels, "{pairs}: {run:#?}");
        let layout = "3 files in the layout pickapic (named)";
        assert_eq!(run.stderr.matches(layout).count(), 1, "{run:#?}");
        // Each run may be used as the other: the labels of the local run are complete for it.
        let run = Run::of(case.score(pairs, "here/labels.parquet", &[]).envs(hub.variables()));
        assert!(run.expect_code(0).stderr.contains("already complete"));
    }
}

#[test]
fn signed_addresses_of_a_web_server_work_and_are_kept_nowhere() {
    let case = Case::new();
    let folder = case.fixture.path("pairs");
    let server = Server::start(move |request| {
        if request.query("Signature").as_deref() != Some("5cb8") {
            return Reply::new(403, b"");
        }
        let name = request.path().rsplit('/').next().unwrap();
        let bytes = std::fs::read(folder.join(name)).unwrap();
        Reply::new(200, &bytes).ranged(request).with("ETag", &etag(&bytes))
    });
    let address = |file: usize| format!("{}/data/{file}.parquet?Signature=5cb8", server.address());
    let mut command = relabel(["score", "--pairs"]);
    command.args([0, 1, 2].map(address)).arg("--scorers").arg(&case.scorers);
    command.args(["--out", "web.parquet", "-vv"]).current_dir(case.fixture.path(""));
    // Killed and resumed: no file of the run may hold the signature either.
    assert!(Run::of(command.env("RUNKIT_FAULT", "rename:5")).was_killed());
    let whole = |name: &str| String::from_utf8_lossy(&case.fixture.bytes(name)).into_owned();
    let work = case.fixture.files("web.parquet.work");
    assert!(work.len() >= 4, "{:?}", work.keys());
    assert!(work.values().all(|bytes| !bytes.windows(4).any(|part| part == b"5cb8")));
    let run = Run::of(command.env_remove("RUNKIT_FAULT")).expect_code(0);
    assert!(case.fixture.bytes("web.parquet") == case.labels);
    assert!(!run.stderr.contains("5cb8"), "{run:#?}");
    let settings = whole("web.config.toml");
    assert!(settings.contains("/data/0.parquet") && !settings.contains("5cb8"), "{settings}");
}

#[test]
fn a_check_sees_the_sizes_and_the_output_elsewhere() {
    let case = Case::new();
    let check = |pairs: &str, out: &str| {
        let mut command = relabel(["check", "--json", "--pairs", pairs, "--scorers"]);
        command.arg(&case.scorers).args(["--out", out]).current_dir(case.fixture.path(""));
        let run = Run::of(command.envs(case.store.variables())).expect_code(0);
        serde_json::from_str::<Value>(&run.stdout).unwrap()
    };
    let (here, there) = (check("pairs", "new.parquet"), check("s3://bucket/pairs", OUT));
    for field in ["pairs", "files", "input_bytes", "images", "captions", "output_bytes"] {
        assert_eq!(here[field], there[field], "{field}");
    }
    assert!(here["input_bytes"].as_u64() > Some(10_000), "{here}");
    assert_eq!((&there["output"], &there["output_state"]), (&Value::from(OUT), &"new".into()));
    assert_eq!((&there["work"], case.store.open_uploads()), (&Value::from(WORK), 0));
    assert_eq!(case.store.object(OBJECT), None, "a check writes nothing");
}

#[test]
fn an_output_elsewhere_is_treated_as_one_here() {
    let case = Case::new();
    Run::of(&mut case.score("s3://bucket/pairs", OUT, &[])).expect_code(0);
    case.assert_there();
    let run = Run::of(&mut case.score("pairs", OUT, &[])).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    assert!(run.stdout.contains("12 pairs") && run.stdout.contains(OUT), "{run:#?}");
    case.assert_there();
    let mut inspect = relabel(["inspect", OUT, "--json"]);
    let report = Run::of(inspect.envs(case.store.variables())).expect_code(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["rows"], 12);

    // Other settings are refused, and --fresh replaces what is ours.
    let ties = ["--ties", "first"];
    let message = ["belongs to another run", "ties: was \"zero\", now \"first\"", "--fresh"];
    Run::of(&mut case.score("pairs", OUT, &ties)).expect_error(&message);
    case.assert_there();
    let run = Run::of(&mut case.score("pairs", OUT, &["--ties", "first", "--fresh"]));
    assert!(run.expect_code(0).stdout.contains("12 pairs"));
    assert!(case.store.object(OBJECT).unwrap() != case.labels);

    // What is not ours stays, with --fresh as well.
    case.store.put(OBJECT, b"a thesis");
    for more in [&[][..], &["--fresh"]] {
        let message = [OUT, "8 bytes that this program did not write", "nothing was changed"];
        Run::of(&mut case.score("pairs", OUT, more)).expect_error(&message);
    }
    assert_eq!(case.store.object(OBJECT).unwrap(), b"a thesis");
    assert_eq!(case.store.open_uploads(), 0);
}

#[test]
fn what_comes_there_during_the_run_stays() {
    let case = Case::new();
    let store = std::sync::Arc::new(ObjectStore::start());
    let there = std::sync::Arc::downgrade(&store);
    store.set_fault(move |request, _, reply| {
        // A part of the upload arrives, and at the same time another object.
        if request.method == "PUT" && request.query("uploadId").is_some() {
            there.upgrade().unwrap().put(OBJECT, b"theirs");
        }
        reply
    });
    let mut command = score(&case.fixture, "pairs", &case.scorers, OUT);
    command.envs(store.variables());
    Run::of(&mut command).expect_error(&[OUT, "another object has come there meanwhile"]);
    assert_eq!(store.object(OBJECT).unwrap(), b"theirs");
    assert_eq!((store.object(SETTINGS), store.open_uploads()), (None, 0));
    // The work is kept: with the object away, the same command ends at once.
    store.clear_fault();
    let kept = case.fixture.names(&format!("{WORK}/parts"));
    assert_eq!(kept.len(), 3, "{kept:?}");
}

#[test]
fn killed_at_any_passage_a_run_there_ends_with_the_same_bytes() {
    let case = Case::new();
    let mut killed = 0;
    let passages = (1..=9).map(|passage| format!("rename:{passage}"));
    for fault in passages.chain(["sent:1", "uploaded:1", "write:2"].map(str::to_owned)) {
        let mut command = case.score("s3://bucket/pairs", OUT, &[]);
        let run = Run::of(command.env("RUNKIT_FAULT", &fault));
        if let Some(object) = case.store.object(OBJECT) {
            assert!(object == case.labels, "{fault}: half an object");
        }
        killed += usize::from(run.was_killed());
        Run::of(&mut case.score("s3://bucket/pairs", OUT, &[])).expect_code(0);
        case.assert_there();
        case.store.remove(OBJECT);
        case.store.remove(SETTINGS);
    }
    assert!(killed >= 9, "only {killed} runs were killed");
}

#[test]
fn shards_share_a_work_folder_and_upload_once() {
    let case = Case::new();
    let out = |shard: &str| {
        let more = ["--shard", shard, "--work", "shared/work", "--unit-pairs", "1024"];
        Run::of(&mut case.score("s3://bucket/pairs", OUT, &more)).expect_code(0)
    };
    let run = out("1/2");
    assert!(run.stdout.contains("shard 1/2 done; others have 2 units left"), "{run:#?}");
    assert_eq!(case.store.object(OBJECT), None);
    assert!(out("0/2").stdout.starts_with("12 pairs"));
    assert!(case.store.object(OBJECT).unwrap() == case.labels);
    assert!(out("1/2").stderr.contains("already complete"));
    assert_eq!(case.fixture.names("shared"), [""; 0], "the work folder is removed");

    // Ranks of a launcher do the same.
    case.store.remove(OBJECT);
    let command = |_| case.score("s3://bucket/pairs", OUT, &["--work", "shared/work"]);
    let runs = Ranks::start(2, command).finish_within(Duration::from_secs(120));
    let runs: Vec<Run> = runs.into_iter().map(|run| run.expect_code(0)).collect();
    let summaries = runs.iter().filter(|run| run.stdout.starts_with("12 pairs")).count();
    assert_eq!(summaries, 1, "{runs:#?}");
    assert!(case.store.object(OBJECT).unwrap() == case.labels);
    assert_eq!(case.store.open_uploads(), 0);
}

#[test]
fn a_work_folder_may_be_anywhere_for_an_output_here() {
    let case = Case::new();
    let more = ["--work", "fast/work"];
    let mut command = case.score("pairs", "there/labels.parquet", &more);
    let run = Run::of(command.env("RUNKIT_FAULT", "rename:6"));
    assert!(run.was_killed() && case.fixture.path("fast/work/manifest.json").exists());
    assert_eq!(case.fixture.names("there"), [""; 0]);
    // Another run may not use it meanwhile.
    let mut other = case.score("pairs", "other.parquet", &["--work", "fast/work", "--limit", "5"]);
    Run::of(&mut other).expect_error(&["fast/work belongs to another run", "--work"]);
    Run::of(&mut case.score("pairs", "there/labels.parquet", &more)).expect_code(0);
    assert!(case.fixture.bytes("there/labels.parquet") == case.labels);
    assert_eq!(case.fixture.names("there"), ["labels.config.toml", "labels.parquet"]);
    assert_eq!(case.fixture.names("fast"), [""; 0]);
}

#[test]
fn an_object_replaced_between_two_starts_is_refused_by_name() {
    let case = Case::new();
    // The first unit is done: the manifest, the checksums, the plan, the captions, the part.
    let mut command = case.score("s3://bucket/pairs", OUT, &[]);
    assert!(Run::of(command.env("RUNKIT_FAULT", "rename:5")).was_killed());
    let (object, whole) = ("bucket/pairs/0.parquet", case.fixture.bytes("pairs/0.parquet"));
    let mut other = whole.clone();
    // Of the same length and with the same footer.
    other[10] ^= 1;
    case.store.put(object, &other);
    let address = format!("s3://{object}");
    let message = [address.as_str(), "replaced since the run began", "--fresh"];
    Run::of(&mut case.score("s3://bucket/pairs", OUT, &[])).expect_error(&message);
    let mut check = relabel(["check", "--pairs", "s3://bucket/pairs", "--out", OUT, "--scorers"]);
    check.arg(&case.scorers).current_dir(case.fixture.path(""));
    Run::of(check.envs(case.store.variables())).expect_error(&message);
    // The same pairs from another place are the same run.
    case.store.put(object, &whole);
    Run::of(&mut case.score("pairs", OUT, &[])).expect_code(0);
    case.assert_there();
}

/// What a row of labels says apart from where its pair stands.
fn content(row: &LabelRow) -> LabelRow {
    LabelRow { source_file: String::new(), source_row: 0, ..row.clone() }
}

/// Two tars of these pairs.
fn put_tars(fixture: &Fixture, pairs: &[Pair]) {
    for (number, pairs) in pairs.chunks(pairs.len().div_ceil(2)).enumerate() {
        fixture.put(&format!("tars/{number}.tar"), &tar_of(100 * number, pairs));
    }
}

#[test]
fn tars_elsewhere_give_the_labels_of_local_ones_and_are_fetched_twice() {
    let case = Case::new();
    put_tars(&case.fixture, &sample_pairs(12));
    case.store.put_folder("bucket/tars", &case.fixture.path("tars"));
    Run::of(&mut case.score("tars", "tars.parquet", &[])).expect_code(0);
    let requests = || case.store.server.requests().len();
    let before = requests();
    let run = Run::of(&mut case.score("s3://bucket/tars", "s3.parquet", &["-v"])).expect_code(0);
    assert!(run.stderr.contains("2 files in the layout webdataset (recognised)"), "{run:#?}");
    assert!(case.fixture.bytes("s3.parquet") == case.fixture.bytes("tars.parquet"));
    // The listing is two pages at most. Each tar is fetched once for its texts, once for its images.
    let reads = case.store.server.requests().split_off(before);
    let reads = reads.iter().filter(|request| request.path().ends_with(".tar"));
    assert_eq!(reads.count(), 4, "{:#?}", case.store.server.requests().split_off(before));
    // The scores are those of the same pairs in Parquet.
    let rows = |name: &str| LabelsFile::open(case.fixture.path(name)).unwrap().read_rows().unwrap();
    let (tars, parquet) = (rows("s3.parquet"), rows("here/labels.parquet"));
    assert_eq!(tars[7].source_file, "1.tar");
    for (tar, parquet) in tars.iter().zip(&parquet) {
        let (mut tar, parquet) = (content(tar), content(parquet));
        // The last bits of a score depend on the batch, and so on how pairs are cut into files.
        for (tar, parquet) in tar.scores.iter_mut().zip(&parquet.scores) {
            for (tar, parquet) in tar.iter_mut().zip(parquet) {
                let difference = tar.unwrap() - parquet.unwrap();
                assert!(difference.abs() < 1e-5, "{difference}");
                *tar = *parquet;
            }
        }
        assert_eq!(tar, parquet);
    }
}

#[test]
fn a_resumed_run_of_tars_begins_at_its_first_open_unit() {
    let case = Case::new();
    case.fixture.put("tars/0.tar", &tar_of(0, &sample_pairs(12)));
    case.store.put_folder("bucket/tars", &case.fixture.path("tars"));
    let units = ["--unit-pairs", "4"];
    Run::of(&mut case.score("tars", "tars.parquet", &units)).expect_code(0);
    // Two of three units are done.
    let mut command = case.score("s3://bucket/tars", OUT, &units);
    assert!(Run::of(command.env("RUNKIT_FAULT", "rename:6")).was_killed());
    let parts = case.fixture.names(&format!("{WORK}/parts"));
    assert_eq!(parts.len(), 2, "{parts:?}");
    let before = case.store.server.requests().len();
    Run::of(&mut case.score("s3://bucket/tars", OUT, &units)).expect_code(0);
    assert!(case.store.object(OBJECT).unwrap() == case.fixture.bytes("tars.parquet"));
    let requests = case.store.server.requests().split_off(before);
    let tar = case.fixture.bytes("tars/0.tar");
    // The ninth sample begins with its first member.
    let at = tar.windows(17).position(|name| name == b"000008.jpg_0.jpg\0").unwrap();
    let ranges = requests.iter().filter(|request| request.path().ends_with("0.tar"));
    let starts: Vec<Option<usize>> = ranges.map(Request::range_from).collect();
    assert_eq!(starts, [Some(at)], "the tar has {} bytes", tar.len());
}

#[test]
fn addresses_where_none_are_read_or_written_are_refused_by_name() {
    let case = Case::new();
    for (out, part) in [
        ("https://host/labels.parquet", "the places that can be written"),
        ("hf://datasets/me/labels/labels.parquet", "the places that can be written"),
        ("s3://bucket/", "the name of one object"),
        ("ftp://host/labels.parquet", "found the scheme \"ftp\""),
        ("s3:/bucket/labels.parquet", "with two slashes"),
    ] {
        let run = Run::of(&mut case.score("pairs", out, &[]));
        run.expect_usage_error(&[out, part]);
    }
    let scratch = ["--scratch", "s3://bucket/scratch"];
    Run::of(&mut case.score("pairs", "x.parquet", &scratch))
        .expect_usage_error(&["--scratch s3://bucket/scratch", "a path of this machine"]);
    let work = ["--work", "s3://bucket/work"];
    Run::of(&mut case.score("pairs", OUT, &work)).expect_usage_error(&["--work s3://bucket/work"]);
    let mut vote = relabel(["vote", "--labels", "here/labels.parquet", "--out", OUT]);
    vote.current_dir(case.fixture.path("")).envs(case.store.variables());
    Run::of(&mut vote).expect_usage_error(&["--out s3://bucket/out/labels.parquet", "name a path"]);
    assert_eq!(case.fixture.names(""), ["here", "pairs", "two.toml"], "a folder called s3:");
    // A query may be a signature: no message and no saved setting holds it.
    let mut signed = case.score("pairs", "x.parquet", &["--scratch", "https://h/x?Signature=5cb8"]);
    let run = Run::of(&mut signed).expect_usage_error(&["--scratch https://h/x:"]);
    assert!(!run.stderr.contains("5cb8"), "{run:#?}");
}

#[test]
fn the_reason_of_a_missing_image_and_the_dealing_are_in_the_labels() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    let pairs = sample_pairs(3);
    let mut lines = String::new();
    for (number, pair) in pairs.iter().enumerate() {
        for (side, image) in ["w", "l"].iter().zip(&pair.image) {
            if (number, *side) != (1, "l") {
                fixture.put(&format!("set/{number}_{side}.png"), image.as_deref().unwrap());
            }
        }
        let caption = serde_json::to_string(&pair.caption).unwrap();
        lines += &format!(
            "{{\"prompt\": {caption}, \"chosen\": \"{number}_w.png\", \"rejected\": \"{number}_l.png\"}}\n"
        );
    }
    fixture.put("set/pairs.jsonl", lines.as_bytes());
    let store = ObjectStore::start();
    store.put_folder("bucket/set", &fixture.path("set"));
    let mut here = score(&fixture, "set", &scorers, "here.parquet");
    let run = Run::of(here.args(["--max-failed", "1"])).expect_code(0);
    assert!(run.stderr.contains("1 file in the layout jsonl (recognised)"), "{run:#?}");
    let mut there = score(&fixture, "s3://bucket/set", &scorers, "there.parquet");
    there.args(["--max-failed", "1"]).envs(store.variables());
    Run::of(&mut there).expect_code(0);
    let labels = LabelsFile::open(fixture.path("here.parquet")).unwrap();
    let rows = labels.read_rows().unwrap();
    assert_eq!(rows.iter().filter(|row| row.status == Status::Ok).count(), 2);
    assert_eq!(rows[1].status, Status::MissingImage);
    let error = rows[1].error.as_deref().unwrap();
    assert!(error.starts_with("image_") && error.contains("1_l.png"), "{error}");
    assert_eq!(fixture.labels("there.parquet").len(), 3);
    assert_eq!(fixture.labels("there.parquet")[1].status, Status::MissingImage);

    let manifest = |name: &str| -> Value {
        let labels = LabelsFile::open(fixture.path(name)).unwrap();
        serde_json::from_str(&labels.metadata()["relabel.manifest"]).unwrap()
    };
    let input = &manifest("here.parquet")["input"];
    assert_eq!(input["files"][0]["layout"], "jsonl");
    assert_eq!(input["dealing"], schemas::layouts::DEALING);
    // Pairs that were dealt in another way are another run, by the name of the field.
    let mut killed = score(&fixture, "set", &scorers, "dealt.parquet");
    assert!(Run::of(killed.env("RUNKIT_FAULT", "rename:3")).was_killed());
    let begun = String::from_utf8(fixture.bytes("dealt.parquet.work/manifest.json")).unwrap();
    fixture.put("dealt.parquet.work/manifest.json", begun.replace("1 swaps", "0 swaps").as_bytes());
    Run::of(&mut score(&fixture, "set", &scorers, "dealt.parquet"))
        .expect_error(&["dealt.parquet.work belongs to another run", "input.dealing: was"]);
    // Pick-a-Pic's labels say neither, so that their bytes stay what they were.
    fixture.put("pickapic/0.parquet", &pairs_parquet(&pairs));
    Run::of(&mut score(&fixture, "pickapic", &scorers, "plain.parquet")).expect_code(0);
    let input = &manifest("plain.parquet")["input"];
    assert!(input.get("dealing").is_none() && input["files"][0].get("layout").is_none());
}
