//! Programs in Python that do and do not what they should.

use bytes::Bytes;
use testkit::Folder;

use super::*;
use crate::config::ScorersConfig;
use crate::external::ExternalScorer;

/// The head of every script.
const HEAD: &str = "import json, sys, os, time\n";

fn workplace(folder: &Folder) -> Workplace {
    Workplace {
        answers: folder.path("answers"),
        images: folder.path("images"),
        place: None,
        stop: StopFlag::never(),
    }
}

fn open(folder: &Folder, script: &str, timeout_s: f64) -> CommandScorer {
    folder.put("score.py", format!("{HEAD}{script}").as_bytes());
    let command = vec!["python3".to_owned(), "score.py".to_owned()];
    let config = CommandConfig { command, timeout_s: Some(timeout_s) };
    CommandScorer::open("mine", &config, &folder.path(""), &workplace(folder)).unwrap()
}

/// Scores images of one byte each.
fn ask(scorer: &mut CommandScorer, images: &[u8]) -> Vec<Score> {
    let encoded = |byte: &u8| EncodedImage::new(Bytes::copy_from_slice(&[*byte]));
    let images: Vec<EncodedImage> = images.iter().map(encoded).collect();
    let questions: Vec<_> =
        images.iter().map(|image| Question { image, caption: "a \"fox\"\n" }).collect();
    scorer.score(&questions).unwrap()
}

#[test]
fn a_program_is_started_once_and_answers_in_any_order() {
    let folder = Folder::new();
    let script = "
open('started', 'a').write('x')
held = []
for line in sys.stdin:
    asked = json.loads(line)
    assert asked['caption'] == 'a \"fox\"\\n', asked
    score = open(asked['image'], 'rb').read()[0] / 10
    held.append({'id': asked['id'], 'score': score})
    if len(held) == 2:
        for answer in reversed(held):
            print(json.dumps(answer))
        held = []
";
    let mut scorer = open(&folder, script, 20.0);
    assert!(!folder.path("started").exists(), "not before the first score is missing");
    assert_eq!(ask(&mut scorer, &[1, 2, 1]), [Ok(0.1), Ok(0.2), Ok(0.1)]);
    assert_eq!(ask(&mut scorer, &[3, 1, 4]), [Ok(0.3), Ok(0.1), Ok(0.4)]);
    assert_eq!(folder.path("images").read_dir().unwrap().count(), 0, "images are removed");
    drop(scorer);
    assert_eq!(std::fs::read(folder.path("started")).unwrap(), b"x");
    let mut again = open(&folder, script, 20.0);
    assert_eq!(ask(&mut again, &[4, 3]), [Ok(0.4), Ok(0.3)], "kept, without a start");
    drop(again);
    assert_eq!(std::fs::read(folder.path("started")).unwrap(), b"x");
    let mut changed = open(&folder, &format!("{script}\n# changed"), 20.0);
    assert_eq!(ask(&mut changed, &[4, 3]), [Ok(0.4), Ok(0.3)]);
    drop(changed);
    assert_eq!(std::fs::read(folder.path("started")).unwrap(), b"xx", "another script is asked");
}

#[test]
fn each_failure_costs_one_score_and_has_its_reason() {
    let folder = Folder::new();
    let script = "
print('load checkpoint from somewhere')
for line in sys.stdin:
    asked = json.loads(line)
    byte = open(asked['image'], 'rb').read()[0]
    if byte == 1: print(json.dumps({'id': asked['id'], 'score': float('nan')}))
    elif byte == 2: print(json.dumps({'id': asked['id'], 'error': 'no face'}))
    elif byte == 3: pass
    elif byte == 4: print(json.dumps({'id': asked['id'], 'score': 'high'}))
    elif byte == 5: print(json.dumps({'id': asked['id'], 'score': 1e300}))
    elif byte == 6: print('junk')
    else: print(json.dumps({'id': int(asked['id']), 'score': byte}))
";
    let mut scorer = open(&folder, script, 6.0);
    let scores = ask(&mut scorer, &[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((&scores[0], &scores[7]), (&Ok(0.0), &Ok(7.0)));
    let reasons: Vec<&str> =
        scores[1..7].iter().map(|score| score.as_ref().unwrap_err().reason()).collect();
    let expected = [
        "the score is NaN",
        "the program says: no face",
        "no line for it within 6 s",
        "expected a number as score, found \"high\"",
        "gave inf",
        "it wrote \"junk\"",
    ];
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(ask(&mut scorer, &[8]), [Ok(8.0)], "it is kept");
}

#[test]
fn a_program_that_ends_early_fails_what_is_left() {
    let folder = Folder::new();
    let script = "
for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    print(json.dumps({'id': asked['id'], 'score': number}))
    if number == 1: raise SystemExit('out of memory')
";
    let mut scorer = open(&folder, script, 20.0);
    let scores = ask(&mut scorer, &[1, 2, 3]);
    assert_eq!(scores[..2], [Ok(0.0), Ok(1.0)]);
    let failure = scores[2].as_ref().unwrap_err();
    let reason = failure.reason();
    assert!(reason.contains("ended early (exit status: 1)"), "{reason}");
    assert!(reason.contains("its last words: out of memory"), "{reason}");
    assert_eq!(ask(&mut scorer, &[4, 1]), [Err(failure.clone()), Ok(0.0)]);
}

#[test]
fn a_program_that_hangs_is_ended_with_what_it_started() {
    let folder = Folder::new();
    let script = "
import subprocess
child = subprocess.Popen(['sleep', '600'])
open('child', 'w').write(str(child.pid))
sys.stdin.readline()
time.sleep(600)
";
    let mut scorer = open(&folder, script, 4.0);
    for image in [1, 2] {
        assert!(
            ask(&mut scorer, &[image])[0].as_ref().unwrap_err().reason().contains("within 4 s")
        );
    }
    let ended = ask(&mut scorer, &[3]);
    assert!(ended[0].as_ref().unwrap_err().reason().contains("as it hangs"), "{ended:?}");
    drop(scorer);
    let child = std::fs::read_to_string(folder.path("child")).unwrap();
    let is_dead = |_| {
        std::thread::sleep(Duration::from_millis(50));
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // A zombie waits for whoever adopted it.
        !state.contains(") S ") && !state.contains(") R ")
    };
    assert!((0..100).any(is_dead), "{child} is alive");
}

#[test]
fn a_stop_ends_the_program_and_keeps_what_came() {
    let folder = Folder::new();
    let script = "
for line in sys.stdin:
    asked = json.loads(line)
    if open(asked['image'], 'rb').read()[0] == 2: time.sleep(600)
    print(json.dumps({'id': asked['id'], 'score': 1}))
    open('answered', 'w')
";
    let mut scorer = open(&folder, script, 60.0);
    let stop = scorer.stop.clone();
    let answered = folder.path("answered");
    let watch = std::thread::spawn(move || {
        while !answered.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.request(runkit::signals::Signal::Terminate);
    });
    let images = [1, 2].map(|byte| EncodedImage::new(Bytes::copy_from_slice(&[byte])));
    let questions = images.each_ref().map(|image| Question { image, caption: "x" });
    let error = scorer.score(&questions).unwrap_err();
    assert!(matches!(error, ScorerError::Stopped(_)), "{error}");
    watch.join().unwrap();
    assert_eq!(scorer.answers.len(), 1);
}

#[test]
fn what_cannot_start_is_an_error_of_the_run() {
    let folder = Folder::new();
    let text = "[[scorer]]\nname = \"mine\"\nkind = \"command\"\ncommand = [\"no-such-program\"]\n";
    folder.put("scorers.toml", text.as_bytes());
    let config = ScorersConfig::read(&folder.path("scorers.toml")).unwrap();
    let error = ExternalScorer::open(&config, &config.scorer[0], &workplace(&folder)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("scorer `mine`: no program") && error.contains("hint"), "{error}");
    folder.put("score.py", b"no interpreter");
    let config = CommandConfig { command: vec!["./score.py".to_owned()], timeout_s: None };
    let mut scorer =
        CommandScorer::open("mine", &config, &folder.path(""), &workplace(&folder)).unwrap();
    let image = EncodedImage::new(Bytes::from_static(b"x"));
    let error = scorer.score(&[Question { image: &image, caption: "x" }]).unwrap_err();
    assert!(error.to_string().contains("does not start"), "{error}");
}
