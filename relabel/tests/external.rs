//! Scorers outside of the process: a model behind an endpoint and a program. One bad answer costs
//! one score, a killed run asks nothing twice, and a budget is kept.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use common::{Fixture, Run, pairs_parquet, relabel, sample_pairs, scorer_entry};
use schemas::labels::{LabelRow, Status};
use serde_json::{Value, json};
use testkit::server::{Reply, Request, Server};

const OUT: &str = "labels.parquet";
/// Failed rows are no failure of these runs.
const ALLOW: [&str; 2] = ["--max-failed", "100"];

/// What a request asks: the data URLs of its images, and its text.
fn asked(request: &Request) -> (Vec<String>, String) {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let content = body["messages"][0]["content"].as_array().unwrap();
    let url = |part: &Value| part["image_url"]["url"].as_str().map(str::to_owned);
    let text = content.last().unwrap()["text"].as_str().unwrap().to_owned();
    (content.iter().filter_map(url).collect(), text)
}

/// A number that an image has, the same in every run.
fn number_of(image: &str) -> usize {
    image.bytes().fold(7, |sum, byte| (sum * 31 + usize::from(byte)) % 1009)
}

fn says(text: &str) -> Reply {
    let body = json!({ "choices": [{ "message": { "content": text } }] });
    Reply::new(200, body.to_string().as_bytes())
}

/// A server that gives each image its number, and refuses those whose number ends with 3.
fn numbers() -> Server {
    Server::start(|request| {
        let (images, text) = asked(request);
        assert!(text.starts_with("How good? "), "{text}");
        match number_of(&images[0]) {
            number if number % 10 == 3 => says("I would rather not"),
            number => says(&format!("Score: {number}")),
        }
    })
}

/// An entry of a `vlm` on a server, with these lines.
fn vlm(server: &Server, lines: &str) -> String {
    format!(
        "[[scorer]]\nname = \"vqa\"\nkind = \"vlm\"\nendpoint = \"{}/v1\"\nmodel = \"m\"\n\
         prompt = \"How good? {{caption}}\"\n{lines}\n",
        server.address()
    )
}

/// `clip` and a `vlm` that reads numbers.
fn with_numbers(fixture: &Fixture, server: &Server, lines: &str) -> PathBuf {
    let vqa = vlm(server, &format!("read = \"number\"\n{lines}"));
    fixture.scorers("vlm.toml", &[scorer_entry("clip"), vqa])
}

/// How often each request was sent.
fn counts(server: &Server) -> HashMap<Vec<u8>, usize> {
    let mut counts = HashMap::new();
    for request in server.requests() {
        *counts.entry(request.body).or_insert(0) += 1;
    }
    counts
}

/// A row in which nothing but the second scorer failed keeps all of the first.
#[track_caller]
fn expect_only_vlm_failed(row: &LabelRow) {
    assert_eq!(row.status, Status::Partial, "{row:?}");
    assert!(row.error.as_ref().unwrap().contains("scorer `vqa` gave no "), "{row:?}");
    assert!(row.scores[0].iter().all(Option::is_some) && row.votes[0].is_some(), "{row:?}");
    assert_eq!((row.scores[1], row.votes[1], row.consensus), ([None; 2], None, None), "{row:?}");
}

#[test]
fn a_model_behind_an_endpoint_votes_and_a_refusal_costs_its_own_score() {
    let (fixture, server) = (Fixture::with_sample(20), numbers());
    let scorers = with_numbers(&fixture, &server, "");
    Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(0);
    let rows = fixture.labels(OUT);
    assert_eq!(rows.len(), 20);
    let failed = rows.iter().filter(|row| row.status != Status::Ok);
    failed.clone().for_each(expect_only_vlm_failed);
    assert!((1..20).contains(&failed.count()), "a case of each");
    for row in rows.iter().filter(|row| row.status == Status::Ok) {
        let [first, second] = row.scores[1].map(Option::unwrap);
        assert_eq!(row.votes[1], Some(if first >= second { 1 } else { -1 }));
    }
    assert!(counts(&server).values().all(|&count| count == 1), "each image and caption once");
    let metadata = schemas::labels::LabelsFile::open(fixture.path(OUT)).unwrap();
    let manifest: Value =
        serde_json::from_str(&metadata.metadata()[schemas::labels::KEY_MANIFEST]).unwrap();
    let record = &manifest["scorers"][1];
    assert_eq!((&record["kind"], &record["vlm"]["read"]), (&json!("vlm"), &json!("number")));
    assert_eq!(record["vlm"]["endpoint"], format!("{}/v1/chat/completions", server.address()));
    assert_eq!(record["image"], Value::Null);
}

#[test]
fn killed_after_any_answer_nothing_is_asked_twice_and_the_bytes_are_the_same() {
    let (fixture, server) = (Fixture::with_sample(12), numbers());
    let scorers = with_numbers(&fixture, &server, "concurrency = 1");
    Run::of(&mut fixture.score(&scorers, "whole.parquet", &ALLOW)).expect_code(0);
    let (whole, requests) = (fixture.bytes("whole.parquet"), server.requests().len());
    let again = numbers();
    // The endpoint is part of the manifest, so the other server needs its own undisturbed run.
    let scorers = with_numbers(&fixture, &again, "concurrency = 1");
    for answer in [1, 2, requests / 2, requests] {
        let mut run = fixture.score(&scorers, OUT, &ALLOW);
        let run = Run::of(run.env("RUNKIT_FAULT", format!("answer:{answer}")));
        assert!(run.was_killed() || again.requests().len() == requests, "{run:#?}");
    }
    Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(0);
    assert_eq!(again.requests().len(), requests);
    assert!(counts(&again).values().all(|&count| count == 1));
    let rows = |name: &str| format!("{:?}", fixture.labels(name));
    assert_eq!(rows(OUT), rows("whole.parquet"));
    assert!(fixture.bytes(OUT).len().abs_diff(whole.len()) < 16, "only the port differs");
    assert!(!fixture.path("labels.parquet.work").exists());
}

#[test]
fn a_budget_stops_with_3_and_a_higher_one_resumes_it() {
    let (fixture, server) = (Fixture::with_sample(12), numbers());
    let scorers = with_numbers(&fixture, &server, "max_requests = 5");
    for _ in 0..2 {
        let run = Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(3);
        assert!(run.stderr.contains("max_requests = 5"), "{run:#?}");
        assert_eq!(server.requests().len(), 5, "the budget is that of the run");
        assert!(!fixture.path(OUT).exists());
    }
    let scorers = with_numbers(&fixture, &server, "max_requests = 1000");
    Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(0);
    assert_eq!(fixture.labels(OUT).len(), 12);
    assert!(counts(&server).values().all(|&count| count == 1));
}

#[test]
fn a_check_says_what_a_run_sends_and_sends_nothing() {
    let (fixture, server) = (Fixture::with_sample(12), numbers());
    let scorers = with_numbers(&fixture, &server, "max_requests = 7");
    let mut check = relabel(["check", "--pairs"]);
    check.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    let run = Run::of(check.arg("--out").arg(fixture.path(OUT))).expect_code(0);
    let host = format!("requests to 127.0.0.1:{} on this machine", server.port);
    assert!(run.stdout.contains("vqa: up to ") && run.stdout.contains(&host), "{run:#?}");
    assert!(run.stdout.contains("max_requests 7, 0 of them sent"), "{run:#?}");
    assert_eq!(server.requests().len(), 0);
    let elsewhere = vlm(&server, "read = \"pair\"").replace("127.0.0.1", "away.example");
    let scorers = fixture.scorers("away.toml", &[scorer_entry("clip"), elsewhere]);
    let mut check = relabel(["check", "--json", "--pairs"]);
    check.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    let run = Run::of(check.arg("--out").arg(fixture.path(OUT))).expect_code(0);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(value["requests"][0]["images_leave_this_machine"], true);
    assert_eq!(value["requests"][0]["requests"], 24, "both orders of each pair");
    // An API key that is not there is found before anything is written.
    let keyed = vlm(&server, "read = \"number\"\napi_key_env = \"RELABEL_TEST_ABSENT_KEY\"");
    let scorers = fixture.scorers("keyed.toml", &[keyed]);
    let run = Run::of(&mut fixture.score(&scorers, OUT, &[]));
    run.expect_error(&["scorer `vqa`", "RELABEL_TEST_ABSENT_KEY", "hint"]);
    assert!(!fixture.path("labels.parquet.work").exists());
}

#[test]
fn a_pair_is_shown_in_both_orders() {
    // The image with the larger number wins; where both numbers are even, always the first.
    let server = Server::start(|request| {
        let images = asked(request).0;
        let [first, second] = [number_of(&images[0]), number_of(&images[1])];
        let are_even = first % 2 == 0 && second % 2 == 0;
        says(if first > second || are_even { "1" } else { "2" })
    });
    let fixture = Fixture::with_sample(20);
    let vqa = vlm(&server, "read = \"pair\"");
    let scorers = fixture.scorers("pair.toml", &[vqa, scorer_entry("clip")]);
    let allow = ["--max-failed", "100", "--missing", "vote"];
    Run::of(&mut fixture.score(&scorers, OUT, &allow)).expect_code(0);
    let rows = fixture.labels(OUT);
    let voted = rows.iter().filter(|row| row.votes[0].is_some()).count();
    assert!((1..20).contains(&voted), "a case of each: {voted}");
    for row in &rows {
        assert_eq!(row.scores[0], [None; 2], "{row:?}");
        assert!(row.votes[1].is_some() && row.consensus.is_some(), "{row:?}");
        match row.votes[0] {
            Some(_) => assert_eq!((row.status, &row.error), (Status::Ok, &None), "{row:?}"),
            None => {
                assert_eq!(row.status, Status::Partial);
                assert!(row.error.as_ref().unwrap().contains("in both orders"), "{row:?}");
            }
        }
    }
    // Another scorer costs that scorer: no vote is asked for again, and none is lost.
    let requests = server.requests().len();
    let pair = vlm(&server, "read = \"pair\"");
    let three = [pair, scorer_entry("clip"), scorer_entry("aesthetic")];
    let three = fixture.scorers("three.toml", &three);
    let earlier = fixture.path(OUT).display().to_string();
    let reuse = [&allow[..], &["--reuse", &earlier]].concat();
    Run::of(&mut fixture.score(&three, "three.parquet", &reuse)).expect_code(0);
    assert_eq!(server.requests().len(), requests);
    for (row, other) in rows.iter().zip(fixture.labels("three.parquet")) {
        assert_eq!((&row.votes[..2], &row.scores[..2]), (&other.votes[..2], &other.scores[..2]));
        assert_eq!((row.status, &row.error), (other.status, &other.error));
        assert!(other.votes[2].is_some());
    }
    // The order of the images in the data does not matter.
    let swapped = Fixture::empty();
    let pairs: Vec<_> = sample_pairs(20).into_iter().map(common::Pair::swapped).collect();
    swapped.put("pairs/0.parquet", &pairs_parquet(&pairs));
    Run::of(&mut swapped.score(&scorers, OUT, &allow)).expect_code(0);
    for (row, swapped) in rows.iter().zip(swapped.labels(OUT)) {
        assert_eq!(row.votes[0], swapped.votes[0].map(|vote| -vote));
    }
}

/// A program that gives the length of an image's file, modulo 97.
const PROGRAM: &str = "import json, os, sys
open(sys.argv[1], 'a').write('started\\n')
for line in sys.stdin:
    asked = json.loads(line)
    score = os.path.getsize(asked['image']) % 97
    print(json.dumps({'id': asked['id'], 'score': float('nan') if score == 13 else score}))
";

#[test]
fn a_program_scores_and_is_started_once() {
    let fixture = Fixture::with_sample(20);
    fixture.put("score.py", PROGRAM.as_bytes());
    let entry = "[[scorer]]\nname = \"mine\"\nkind = \"command\"\n\
                 command = [\"python3\", \"score.py\", \"starts\"]\n";
    let scorers = fixture.scorers("mine.toml", &[entry.to_owned(), scorer_entry("clip")]);
    Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(0);
    assert_eq!(fixture.bytes("starts"), b"started\n");
    let pairs = sample_pairs(20);
    for (row, pair) in fixture.labels(OUT).iter().zip(pairs) {
        let score = |image: &Option<Vec<u8>>| image.as_ref().unwrap().len() % 97;
        let expected = pair.image.each_ref().map(score);
        if expected.contains(&13) {
            assert!(row.error.as_ref().unwrap().contains("the score is NaN"), "{row:?}");
            continue;
        }
        assert_eq!(row.scores[0], expected.map(|score| Some(score as f32)), "{row:?}");
    }
    assert!(!fixture.path("labels.parquet.work").exists(), "images are removed");
    // A changed script is another run.
    fixture.put("score.py", format!("{PROGRAM}# changed\n").as_bytes());
    let run = Run::of(&mut fixture.score(&scorers, OUT, &ALLOW));
    run.expect_error(&["scorers"]);
}

#[test]
fn a_program_alone_and_one_that_ends_early() {
    let fixture = Fixture::with_sample(12);
    let script = "import json, sys\nfor number, line in enumerate(sys.stdin):\n    \
                  if number == 3: sys.exit('no more')\n    \
                  print(json.dumps({'id': json.loads(line)['id'], 'score': 1}))\n";
    fixture.put("score.py", script.as_bytes());
    let entry = "[[scorer]]\nname = \"mine\"\nkind = \"command\"\n\
                 command = [\"python3\", \"score.py\"]\n";
    let scorers = fixture.scorers("mine.toml", &[entry.to_owned()]);
    let run = Run::of(&mut fixture.score(&scorers, OUT, &[])).expect_code(3);
    assert!(run.stderr.contains("ended early"), "{run:#?}");
    let rows = fixture.labels(OUT);
    let failed = rows.iter().filter(|row| row.status == Status::Partial);
    assert!(failed.clone().all(|row| row.error.as_ref().unwrap().contains("no more")));
    assert!(failed.count() >= 10 && rows.len() == 12);
}
