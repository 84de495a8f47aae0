//! Metrics outside of the process: a model behind an endpoint and a program.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Fixture, Generated as _, Run, evaluate, model};
use schemas::scores::{ScoreRow, ScoresFile};
use serde_json::{Value, json};
use testkit::server::{Reply, Server};

/// A folder with six images, three each of two prompts.
fn generated() -> Fixture {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    Run::of(&mut fixture.generate(&[&model("sd")], &["--seeds", "3"])).expect_generated(6, 6);
    fixture
}

/// A server that is sure of foxes.
fn yes_no() -> Server {
    Server::start(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let text = body["messages"][0]["content"][1]["text"].as_str().unwrap();
        let [yes, no] = if text.contains("a fox") { [0.6_f64, 0.2] } else { [0.1, 0.3] };
        let token = |token: &str, share: f64| json!({ "token": token, "logprob": share.ln() });
        let top = [token("Yes", yes), token("No", no)];
        let first = json!({ "token": "Yes", "logprob": yes.ln(), "top_logprobs": top });
        let choice = json!({
            "message": { "content": "Yes" },
            "logprobs": { "content": [first] }
        });
        Reply::new(200, json!({ "choices": [choice] }).to_string().as_bytes())
    })
}

fn scorers(fixture: &Fixture, server: &Server, lines: &str) -> PathBuf {
    let program = "import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert open(asked['image'], 'rb').read(4) == b'\\x89PNG'
    print(json.dumps({'id': asked['id'], 'score': len(asked['caption'])}))
";
    fixture.put("score.py", program.as_bytes());
    let text = format!(
        "[[scorer]]\nname = \"vqa\"\nkind = \"vlm\"\nendpoint = \"{}\"\nmodel = \"m\"\n\
         prompt = 'Does this figure show \"{{caption}}\"? Please answer yes or no.'\n{lines}\n\
         [[scorer]]\nname = \"mine\"\nkind = \"command\"\ncommand = [\"python3\", \"score.py\"]\n",
        server.address()
    );
    fixture.put("outside.toml", text.as_bytes())
}

fn score(fixture: &Fixture, scorers: &Path, more: &[&str]) -> Command {
    let mut command = evaluate(["score", "--device", "cpu"]);
    command.arg("--out").arg(fixture.path("out")).arg("--scorers").arg(scorers).args(more);
    command.arg("--prompts").arg(fixture.path("prompts.txt"));
    command
}

fn rows(fixture: &Fixture) -> Vec<ScoreRow> {
    ScoresFile::open(fixture.path("out/scores.parquet")).unwrap().read().unwrap()
}

#[test]
fn both_kinds_are_metrics_and_nothing_is_asked_twice() {
    let (fixture, server) = (generated(), yes_no());
    let file = scorers(&fixture, &server, "read = \"yes-no\"\nmax_requests = 4");
    let run = Run::of(&mut score(&fixture, &file, &["--dry-run"])).expect_code(0);
    let host = format!("requests to 127.0.0.1:{} on this machine", server.port);
    assert!(run.stdout.contains(&format!("vqa: up to 6 {host}")), "{run:#?}");
    assert_eq!(server.requests().len(), 0);
    let run = Run::of(&mut score(&fixture, &file, &[])).expect_code(3);
    assert!(run.stderr.contains("max_requests = 4"), "{run:#?}");
    assert_eq!(server.requests().len(), 4);
    let file = scorers(&fixture, &server, "read = \"yes-no\"");
    Run::of(&mut score(&fixture, &file, &[])).expect_code(0);
    assert_eq!(server.requests().len(), 6);
    for row in rows(&fixture) {
        let is_fox = row.prompt == "a fox";
        let expected = match (row.metric.as_str(), is_fox) {
            ("vqa", true) => 0.75,
            ("vqa", false) => 0.25,
            (_, true) => 5.0,
            (_, false) => 6.0,
        };
        assert!((row.score.unwrap() - expected).abs() < 1e-6, "{row:?}");
    }
    let whole = fixture.bytes("out/scores.parquet");
    Run::of(&mut score(&fixture, &file, &[])).expect_code(0);
    assert_eq!(server.requests().len(), 6);
    assert!(whole == fixture.bytes("out/scores.parquet"));
}

#[test]
fn what_has_no_score_for_an_image_is_refused_by_name() {
    let (fixture, server) = (generated(), yes_no());
    let file = scorers(&fixture, &server, "read = \"pair\"");
    Run::of(&mut score(&fixture, &file, &[])).expect_error(&["scorer `vqa`", "pair", "hint"]);
}

#[test]
fn prompts_of_geneval_have_their_tags() {
    let fixture = Fixture::new(&[]);
    let lines = "{\"tag\": \"single_object\", \"include\": [{\"class\": \"bench\", \"count\": 1}], \
                 \"prompt\": \"a photo of a bench\"}\n{\"tag\": \"counting\", \"include\": [], \
                 \"prompt\": \"a photo of four clocks\"}\n";
    fixture.put("evaluation_metadata.jsonl", lines.as_bytes());
    let path = fixture.path("evaluation_metadata.jsonl").display().to_string();
    let more = ["--prompts", &path, "--preset", "geneval-prompts", "--seeds", "1"];
    Run::of(&mut fixture.generate(&[&model("sd")], &more)).expect_generated(2, 2);
    let server = yes_no();
    let file = scorers(&fixture, &server, "read = \"yes-no\"");
    let mut command = evaluate(["score", "--device", "cpu", "--preset", "geneval-prompts"]);
    command.arg("--out").arg(fixture.path("out")).arg("--scorers").arg(&file);
    Run::of(command.args(["--prompts", &path])).expect_code(0);
    let tags: Vec<_> = rows(&fixture).into_iter().map(|row| row.category.unwrap()).collect();
    assert_eq!(tags, ["single_object", "single_object", "counting", "counting"]);
}
