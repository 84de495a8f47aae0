//! Recorded answers and faults on a local server.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};
use testkit::Folder;
use testkit::server::{Reply, Request, Sending, Server};

use super::config::tests::config;
use super::*;

/// The images of a request, each of one byte, and its text.
fn asked(request: &Request) -> (Vec<u8>, String) {
    use base64::Engine as _;
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let content = body["messages"][0]["content"].as_array().unwrap().clone();
    let of_url = |part: &Value| {
        let url = part["image_url"]["url"].as_str()?;
        let bytes = base64::prelude::BASE64_STANDARD.decode(url.split_once(',')?.1).unwrap();
        Some(bytes[0])
    };
    let text = content.last().unwrap()["text"].as_str().unwrap().to_owned();
    (content.iter().filter_map(of_url).collect(), text)
}

fn says(text: &str) -> Reply {
    let body = json!({ "choices": [{ "message": { "content": text } }] });
    Reply::new(200, body.to_string().as_bytes())
}

fn workplace(folder: &Folder) -> Workplace {
    Workplace {
        answers: folder.path("answers"),
        images: folder.path("images"),
        place: None,
        stop: StopFlag::never(),
    }
}

fn open(folder: &Folder, server: &Server, lines: &str) -> Vlm {
    let config = VlmConfig { endpoint: server.address(), ..config(lines) };
    assert_eq!(config.problem(), None);
    let client = Client::new(&config).unwrap().pausing(Duration::from_millis(1));
    Vlm::with_client("vqa", &config, &workplace(folder), client).unwrap()
}

fn images(bytes: &[u8]) -> Vec<EncodedImage> {
    bytes.iter().map(|byte| EncodedImage::new(Bytes::copy_from_slice(&[*byte]))).collect()
}

/// Scores images of one byte each.
fn ask(vlm: &mut Vlm, bytes: &[u8]) -> Result<Vec<Score>, ScorerError> {
    let images = images(bytes);
    let questions: Vec<_> =
        images.iter().map(|image| Question { image, caption: "a fox" }).collect();
    vlm.score(&questions)
}

#[test]
fn answers_are_kept_and_nothing_is_asked_twice() {
    let folder = Folder::new();
    let server = Server::start(|request| {
        let (images, text) = asked(request);
        assert_eq!((text.as_str(), request.path()), ("Is it a fox?", "/v1/chat/completions"));
        says(&format!("Score: {}", images[0]))
    });
    let lines = "read = \"number\"";
    let mut vlm = open(&folder, &server, lines);
    assert_eq!(ask(&mut vlm, &[1, 2, 1, 3]).unwrap(), [Ok(1.0), Ok(2.0), Ok(1.0), Ok(3.0)]);
    assert_eq!(server.requests().len(), 3);
    drop(vlm);
    let mut again = open(&folder, &server, "read = \"number\"\npattern = 'Score: (.*)'");
    assert_eq!(ask(&mut again, &[3, 2]).unwrap(), [Ok(3.0), Ok(2.0)], "another pattern");
    assert_eq!(server.requests().len(), 3);
    let counted = Vlm::count("vqa", &again.config, &folder.path("answers")).unwrap();
    assert_eq!(counted, (3, 3));
    let mut other = open(&folder, &server, "read = \"number\"\nmax_tokens = 9");
    assert_eq!(ask(&mut other, &[1]).unwrap(), [Ok(1.0)]);
    assert_eq!(server.requests().len(), 4, "another request");
}

#[test]
fn what_may_pass_is_tried_again_and_costs_one_score_in_the_end() {
    let folder = Folder::new();
    let counts: [AtomicUsize; 10] = Default::default();
    let server = Server::start(move |request| {
        let image = asked(request).0[0];
        let before = counts[usize::from(image)].fetch_add(1, Ordering::SeqCst);
        let limited = || Reply::new(429, br#"{"error": {"message": "slow down"}}"#);
        match (image, before) {
            (1, 0) => limited().with("Retry-After", "0.2"),
            (2, 0) => Reply::new(500, b"oops"),
            (3, 0) => says("3").sent(Sending::Breaks(10)),
            (4, _) => Reply::new(503, b"busy"),
            (5, _) => says("5").sent(Sending::Stalls(5)),
            (6, _) => Reply::new(400, br#"{"error": {"message": "bad image"}}"#),
            (7, _) => Reply::new(200, b"<html>nonsense"),
            (8, _) => {
                let refusal = json!({ "choices": [{ "message": { "refusal": "I cannot" } }] });
                Reply::new(200, refusal.to_string().as_bytes())
            }
            (9, 0) => Reply::new(200, br#"{"error": {"message": "upstream", "code": 502}}"#),
            _ => says(&image.to_string()),
        }
    });
    let mut vlm = open(&folder, &server, "read = \"number\"\nretries = 2\ntimeout_s = 1");
    let started = Instant::now();
    let scores = ask(&mut vlm, &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200), "Retry-After is honoured");
    for index in [0, 1, 2, 8] {
        assert_eq!(scores[index], Ok(index as f32 + 1.0));
    }
    let reasons: Vec<&str> =
        scores[3..8].iter().map(|score| score.as_ref().unwrap_err().reason()).collect();
    let expected = [
        "the server answers HTTP 503: \"busy\" (3 attempts)",
        "(3 attempts)",
        "the server answers HTTP 400: bad image",
        "expected a chat completion, found \"<html>nonsense\"",
        "the model refuses: I cannot",
    ];
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
    // What was answered, if unreadably, is paid for; the rest is asked again by the next start.
    let count = server.requests().len();
    let mut again = open(&folder, &server, "read = \"number\"\nretries = 0\ntimeout_s = 1");
    let again = ask(&mut again, &[1, 6, 7, 8]).unwrap();
    assert_eq!((&again[0], &again[2..]), (&scores[0], &scores[6..8]));
    assert_eq!(server.requests().len(), count + 1);
}

#[test]
fn a_budget_stops_the_run_and_a_higher_one_resumes_it() {
    let folder = Folder::new();
    let server = Server::start(|request| says(&asked(request).0[0].to_string()));
    let lines = |most: u32| format!("read = \"number\"\nconcurrency = 2\nmax_requests = {most}");
    let all: Vec<u8> = (0..10).collect();
    let mut vlm = open(&folder, &server, &lines(4));
    let error = ask(&mut vlm, &all).unwrap_err();
    assert!(matches!(error, ScorerError::OutOfRequests { limit: 4, .. }), "{error}");
    assert!(error.to_string().contains("max_requests = 4"), "{error}");
    assert_eq!(server.requests().len(), 4);
    let mut same = open(&folder, &server, &lines(4));
    assert!(ask(&mut same, &all).is_err());
    assert_eq!(server.requests().len(), 4, "the budget is that of the run");
    let mut higher = open(&folder, &server, &lines(10));
    let scores = ask(&mut higher, &all).unwrap();
    assert_eq!(scores, all.iter().map(|&byte| Ok(f32::from(byte))).collect::<Vec<_>>());
    assert_eq!(server.requests().len(), 10, "nothing twice");
}

#[test]
fn a_pair_votes_where_both_orders_agree() {
    let folder = Folder::new();
    // Prefers the larger byte; of 5 and 6 always the first; refuses 9.
    let server = Server::start(|request| {
        let (images, text) = asked(request);
        assert_eq!((images.len(), text.as_str()), (2, "Is it a fox?"));
        says(match images[..] {
            [5, 6] | [6, 5] => "1",
            [9, _] => "sorry",
            [first, second] if first > second => "1",
            _ => "2.",
        })
    });
    let mut vlm = open(&folder, &server, "read = \"pair\"");
    let pairs = [[2, 1], [1, 2], [5, 6], [9, 1]].map(|pair| images(&pair));
    let comparisons: Vec<_> = pairs
        .iter()
        .map(|pair| Comparison { images: [&pair[0], &pair[1]], caption: "a fox" })
        .collect();
    let votes = vlm.compare(&comparisons).unwrap();
    assert_eq!(votes[..2], [Ok(1), Ok(-1)]);
    let reason = |index: usize| votes[index].as_ref().unwrap_err().reason();
    assert_eq!(reason(2), "gave no vote: it prefers the first image in both orders");
    assert!(reason(3).contains("expected the answer 1 or 2, found \"sorry\""), "{votes:?}");
    assert_eq!(server.requests().len(), 6, "a swapped pair has the same two requests");
}

#[test]
fn what_no_question_changes_ends_the_run() {
    let folder = Folder::new();
    let key = "sk-secret-0123456789";
    let server = Server::start(move |request| {
        let sent = request.header("authorization").unwrap_or_default().to_owned();
        let body = json!({ "error": { "message": format!("wrong key {sent}") } });
        Reply::new(401, body.to_string().as_bytes())
    });
    let config = VlmConfig { endpoint: server.address(), ..config("read = \"pair\"") };
    let client = Client::new(&config).unwrap().with_key(key).pausing(Duration::from_millis(1));
    let mut vlm = Vlm::with_client("vqa", &config, &workplace(&folder), client).unwrap();
    let [first, second] = [1, 2].map(|byte| images(&[byte]));
    let pair = Comparison { images: [&first[0], &second[0]], caption: "x" };
    let error = vlm.compare(&[pair]).unwrap_err().to_string();
    assert!(error.contains("HTTP 401") && error.contains("hint"), "{error}");
    assert!(error.contains("Bearer …") && !error.contains(key), "{error}");
    let sent = server.requests();
    let expected = format!("Bearer {key}");
    assert!(sent.iter().all(|request| request.header("authorization") == Some(&expected)));

    let refusing = Server::start(|_| Reply::new(400, b"{\"error\": \"no images, please\"}"));
    let mut vlm = open(&folder, &refusing, "read = \"number\"\nconcurrency = 1");
    let error = ask(&mut vlm, &(0..30).collect::<Vec<u8>>()).unwrap_err().to_string();
    assert!(error.contains("none of the first 10") && error.contains("no images, please"));

    let closed = VlmConfig {
        endpoint: "http://127.0.0.1:9/v1".to_owned(),
        ..super::config::tests::config("read = \"number\"\nretries = 1")
    };
    let client = Client::new(&closed).unwrap().pausing(Duration::from_millis(1));
    let mut vlm = Vlm::with_client("vqa", &closed, &workplace(&folder), client).unwrap();
    let error = ask(&mut vlm, &[1]).unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9/v1") && error.contains("2 attempts"), "{error}");
}

#[test]
fn a_stop_ends_a_long_pause_and_keeps_what_came() {
    let folder = Folder::new();
    let server = Server::start(|request| match asked(request).0[0] {
        1 => says("1"),
        _ => Reply::new(429, b"").with("Retry-After", "300"),
    });
    let mut vlm = open(&folder, &server, "read = \"number\"\nconcurrency = 1");
    let stop = vlm.stop.clone();
    let watch = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        stop.request(runkit::signals::Signal::Interrupt);
    });
    let started = Instant::now();
    let error = ask(&mut vlm, &[1, 2]).unwrap_err();
    watch.join().unwrap();
    assert!(matches!(error, ScorerError::Stopped(_)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(vlm.answers.len(), 1);
}
