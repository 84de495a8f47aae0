//! A run is copied to another place while it trains (`--mirror`), and a machine without its folder
//! resumes from there with the same bytes.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use common::ranks::comparable;
use common::{Fixture, Run};
use testkit::Ranks;
use testkit::objects::ObjectStore;
use testkit::server::Reply;

const MIRROR: [&str; 2] = ["--mirror", "s3://bucket/runs/a"];
const SAMPLES: [&str; 4] = ["--sample-every", "5", "--record-steps", "1"];
/// Ranks that take longer hang.
const LIMIT: Duration = Duration::from_secs(120);

fn at(store: &ObjectStore, mut command: Command) -> Command {
    command.envs(store.variables());
    command
}

fn faulty(store: &ObjectStore, command: Command, fault: &str) -> Command {
    let mut command = at(store, command);
    command.env("RUNKIT_FAULT", fault);
    command
}

/// The steps of the checkpoints with a `DONE`.
fn complete(files: &BTreeMap<String, Vec<u8>>) -> Vec<u64> {
    let step = |name: &String| {
        let folder = name.strip_prefix("checkpoints/step-")?.strip_suffix("/DONE")?;
        folder.parse().ok()
    };
    files.keys().filter_map(step).collect()
}

/// Two runs ended with the same files and metrics. One that was fetched has no checkpoint older than
/// that.
#[track_caller]
fn assert_same_end(fixture: &Fixture, expected: &str, out: &str) {
    assert_same_files(fixture, expected, out);
    assert_eq!(fixture.metrics(expected), fixture.metrics(out));
}

/// The same files, but for those that tell how the run went.
#[track_caller]
fn assert_same_files(fixture: &Fixture, expected: &str, out: &str) {
    let end = |run: &str| {
        let mut files = comparable(fixture, run);
        let newest = format!("step-{:06}/", complete(&files).pop().unwrap());
        files.retain(|name, _| !name.starts_with("checkpoints/") || name.contains(&newest));
        files
    };
    let (expected_files, found) = (end(expected), end(out));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected_files), names(&found));
    for (name, bytes) in &expected_files {
        assert!(found.get(name) == Some(bytes), "{name} differs");
    }
}

/// The mirror has what the folder of the run has, but for what is of one machine.
#[track_caller]
fn assert_in_mirror(fixture: &Fixture, out: &str, mut mirror: BTreeMap<String, Vec<u8>>) {
    let mut files = fixture.files(out);
    let newest = complete(&files).pop().unwrap();
    let steps = complete(&mirror);
    assert_eq!(steps.last(), Some(&newest));
    assert!(steps.len() <= 2, "{steps:?}: --keep holds in the mirror, too");
    // If checkpoints come faster than they can be copied, some are not in the mirror.
    let is_wanted = |name: &String| {
        !name.starts_with("checkpoints/") || name.contains(&format!("step-{newest:06}/"))
    };
    for step in &steps {
        let prefix = format!("checkpoints/step-{step:06}/");
        let of = |files: &BTreeMap<String, Vec<u8>>, prefix: &str| {
            files.keys().filter(|name| name.starts_with(prefix)).count()
        };
        let whole = of(&files, &format!("checkpoints/step-{newest:06}/"));
        assert_eq!(of(&mirror, &prefix), whole, "step {step}");
    }
    let checkpoints = mirror.keys().filter(|name| name.starts_with("checkpoints/"));
    let in_parts = checkpoints.filter(|name| {
        !steps.iter().any(|step| name.starts_with(&format!("checkpoints/step-{step:06}/")))
    });
    assert_eq!(in_parts.count(), 0, "what interrupted copies left is removed");
    files.retain(|name, _| name != ".hashes.json" && is_wanted(name));
    // Every start leaves its own events, also one that was killed before its first checkpoint.
    let is_event = |name: &String| name.starts_with("tensorboard/");
    mirror.retain(|name, _| is_wanted(name) && (!is_event(name) || files.contains_key(name)));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&files), names(&mirror));
    for (name, bytes) in &files {
        assert!(mirror.get(name) == Some(bytes), "{name} differs");
    }
}

#[test]
fn a_run_whose_machine_vanishes_resumes_from_its_mirror() {
    let fixture = Fixture::new(11);
    let store = ObjectStore::start();
    Run::of(&mut fixture.run("whole", &SAMPLES)).expect_code(0);
    let flags = [&SAMPLES[..], &MIRROR].concat();
    // Whatever the thread has copied by then; and in the middle of copies of a checkpoint: beside
    // checkpoints a start copies some ten files, and a checkpoint has seven.
    for fault in ["step:8", "mirror:23", "mirror:40", "unmirror:2"] {
        let store = ObjectStore::start();
        let run = Run::of(&mut faulty(&store, fixture.run("out", &flags), fault));
        if !run.was_killed() {
            // It came to its end without so many copies.
            run.expect_code(0);
            assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
        }
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
        let has_checkpoint = !complete(&store.below("bucket/runs/a")).is_empty();
        let run = Run::of(&mut at(&store, fixture.run("out", &flags))).expect_code(0);
        assert_eq!(run.stderr.contains("is newer than what is in"), has_checkpoint, "{run:#?}");
        assert_same_end(&fixture, "whole", "out");
        assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
    }
    // While the server has trouble that passes.
    store.set_fault(|_, before, reply| match before % 37 {
        11 => Reply::new(503, b""),
        _ => reply,
    });
    let run = Run::of(&mut faulty(&store, fixture.run("out", &flags), "mirror:29"));
    assert!(run.was_killed(), "{run:#?}");
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    Run::of(&mut at(&store, fixture.run("out", &flags))).expect_code(0);
    assert_same_end(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
    // After its end, too.
    store.clear_fault();
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    Run::of(&mut at(&store, fixture.run("out", &flags))).expect_code(0);
    assert_same_end(&fixture, "whole", "out");
    // Killed while it fetches.
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    assert!(Run::of(&mut faulty(&store, fixture.run("out", &flags), "fetch:6")).was_killed());
    Run::of(&mut at(&store, fixture.run("out", &flags))).expect_code(0);
    assert_same_end(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
}

#[test]
fn a_signal_copies_the_last_checkpoint_before_the_end() {
    let fixture = Fixture::new(11);
    let store = ObjectStore::start();
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    Run::of(&mut faulty(&store, fixture.run("out", &MIRROR), "step:6:TERM")).expect_code(143);
    let newest = fixture.names("out/checkpoints").pop().unwrap();
    let mark = format!("checkpoints/{newest}/DONE");
    assert!(store.below("bucket/runs/a").contains_key(&mark), "{newest}");
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    let run = Run::of(&mut at(&store, fixture.run("out", &MIRROR))).expect_code(0);
    assert!(run.stderr.contains("is newer than what is in"), "{run:#?}");
    assert_same_end(&fixture, "whole", "out");
}

#[test]
fn a_damaged_checkpoint_of_a_mirror_is_passed_over() {
    let fixture = Fixture::new(11);
    let store = ObjectStore::start();
    // The end of a run waits for its mirror, so both ends are there.
    let run = || {
        let first = [&MIRROR[..], &["--steps", "6"]].concat();
        Run::of(&mut at(&store, fixture.run("out", &first))).expect_code(0);
        Run::of(&mut at(&store, fixture.run("out", &MIRROR))).expect_code(0);
        let steps = complete(&store.below("bucket/runs/a"));
        let [earlier, 10] = steps[..] else { panic!("{steps:?}") };
        earlier
    };
    run();
    let weights = "checkpoints/step-000010/unet/diffusion_pytorch_model.safetensors";
    let mut bytes = store.object(&format!("bucket/runs/a/{weights}")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(&format!("bucket/runs/a/{weights}"), &bytes);
    fixture.copy(&fixture.path("out"), "whole");
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    let resumed = Run::of(&mut at(&store, fixture.run("out", &MIRROR))).expect_code(0);
    for words in ["it is not the file that DONE lists", "step 10 is damaged there", "resuming from"]
    {
        assert!(resumed.stderr.contains(words), "{words:?} is not in {resumed:#?}");
    }
    // `whole` was probed at step 6, too, where it ended once; this run can begin before that.
    assert_same_files(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
    // A file that is missing, and one that was cut, cost no download.
    let fresh = ["--mirror", MIRROR[1], "--fresh", "--steps", "6"];
    Run::of(&mut at(&store, fixture.run("out", &fresh))).expect_code(0);
    let earlier = run();
    store.remove("bucket/runs/a/checkpoints/step-000010/state.json");
    store.put(&format!("bucket/runs/a/checkpoints/step-{earlier:06}/state.json"), b"{");
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    let resumed = Run::of(&mut at(&store, fixture.run("out", &MIRROR))).expect_code(0);
    let earlier = format!("step {earlier} is damaged there");
    for words in ["step 10 is damaged there", &earlier, "starting over"] {
        assert!(resumed.stderr.contains(words), "{words:?} is not in {resumed:#?}");
    }
    assert_same_files(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
}

#[test]
fn what_is_not_of_the_run_stays() {
    let fixture = Fixture::new(8);
    let store = ObjectStore::start();
    let short = [&MIRROR[..], &["--steps", "4", "--keep", "1"]].concat();
    Run::of(&mut at(&store, fixture.run("a", &short))).expect_code(0);
    assert_in_mirror(&fixture, "a", store.below("bucket/runs/a"));
    store.put("bucket/runs/a/notes.txt", b"mine");
    store.put("bucket/runs/a/checkpoints/step-000004/mine.txt", b"mine");
    let before = store.below("bucket");
    // Another run is refused by name, and changes nothing.
    let other = [&short[..], &["--lr", "1e-4"]].concat();
    Run::of(&mut at(&store, fixture.run("b", &other))).expect_error(&[
        "s3://bucket/runs/a/ belongs to another run",
        "settings.lr",
        "--mirror",
    ]);
    assert!(store.below("bucket") == before && !fixture.path("b/checkpoints").exists());
    // So is a place that holds something else.
    store.put("bucket/thesis/chapter.tex", b"mine");
    Run::of(&mut at(&store, fixture.run("b", &["--mirror", "s3://bucket/thesis"])))
        .expect_error(&["s3://bucket/thesis/", "chapter.tex", "choose another --mirror"]);
    // A new start clears what is of a run.
    let fresh = [&other[..], &["--fresh"]].concat();
    Run::of(&mut at(&store, fixture.run("b", &fresh))).expect_code(0);
    let mut after = store.below("bucket/runs/a");
    assert_eq!(after.remove("notes.txt").as_deref(), Some(&b"mine"[..]));
    let mine = after.remove("checkpoints/step-000004/mine.txt");
    assert_eq!(mine.as_deref(), Some(&b"mine"[..]));
    assert_in_mirror(&fixture, "b", after);
    // More steps later: one checkpoint stays, and the result is the new one.
    let more = [&MIRROR[..], &["--steps", "6", "--keep", "1", "--lr", "1e-4"]].concat();
    std::fs::remove_dir_all(fixture.path("b")).unwrap();
    Run::of(&mut at(&store, fixture.run("b", &more))).expect_code(0);
    let mut after = store.below("bucket/runs/a");
    after.retain(|name, _| !name.ends_with("notes.txt") && !name.ends_with("mine.txt"));
    assert_in_mirror(&fixture, "b", after);
    // Fewer are refused, here and on an empty disk.
    std::fs::remove_dir_all(fixture.path("b")).unwrap();
    Run::of(&mut at(&store, fixture.run("b", &other)))
        .expect_error(&["steps: 4 is below step 6", "--steps 6"]);
}

#[test]
fn a_mirror_that_fails_is_a_warning_until_the_end() {
    let fixture = Fixture::new(8);
    let store = ObjectStore::start();
    // It may write, but no checkpoints.
    store.set_fault(|request, _, reply| {
        match matches!(request.method.as_str(), "PUT" | "POST") && request.path().contains("step-")
        {
            true => Reply::new(403, b"<Error><Code>AccessDenied</Code></Error>"),
            false => reply,
        }
    });
    let run = Run::of(&mut at(&store, fixture.run("out", &MIRROR)));
    assert_eq!(run.code(), Some(1), "{run:#?}");
    for words in ["does not have all of it", "403", "the same command copies the rest"] {
        assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
    }
    assert!(fixture.path("out/pipeline/model_index.json").exists(), "nothing is lost here");
    store.clear_fault();
    let run = Run::of(&mut at(&store, fixture.run("out", &MIRROR))).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
    // One that cannot be written at all ends the run before it trains.
    store.set_fault(|request, _, reply| match request.method.as_str() {
        "PUT" | "POST" => Reply::new(403, b"<Error><Code>AccessDenied</Code></Error>"),
        _ => reply,
    });
    let run = Run::of(&mut at(&store, fixture.run("b", &["--mirror", "s3://bucket/runs/b"])));
    run.expect_error(&["s3://bucket/runs/b", "403", "they may write there"]);
    assert_eq!(fixture.metrics("b").len(), 0);
    for place in ["hf://datasets/owner/name", "gs://bucket/runs", "https://host/x"] {
        Run::of(&mut at(&store, fixture.run("c", &["--mirror", place])))
            .expect_error(&[place, "s3://BUCKET/PREFIX or a folder"]);
    }
    let inside = fixture.path("c/mirror").display().to_string();
    Run::of(&mut fixture.run("c", &["--mirror", &inside])).expect_error(&["are one place"]);
}

#[test]
fn a_folder_of_another_disk_is_a_mirror_too() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    let place = fixture.path("mirror").display().to_string();
    let flags = ["--mirror", &place];
    let mut command = fixture.run("out", &flags);
    assert!(Run::of(command.env("RUNKIT_FAULT", "mirror:17")).was_killed());
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    assert_same_end(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", fixture.files("mirror"));
    // A mirror is the folder of a run: it can be used as one.
    Run::of(&mut fixture.run("mirror", &[])).expect_code(0);
}

#[test]
fn the_result_of_a_run_of_adapters_is_in_its_mirror() {
    let fixture = Fixture::new(11);
    let adapter = ["--adapter", "lora", "--rank", "2", "--ema", "0.9"];
    for (out, more) in [("merged", &[][..]), ("alone", &["--no-merge"])] {
        let mirror = format!("{out}-mirror");
        let place = fixture.path(&mirror).display().to_string();
        let flags = [&adapter[..], more, &["--mirror", &place]].concat();
        Run::of(&mut fixture.run(out, &flags)).expect_code(0);
        assert_in_mirror(&fixture, out, fixture.files(&mirror));
        // The machine vanishes after its end.
        let expected = fixture.files(out);
        std::fs::remove_dir_all(fixture.path(out)).unwrap();
        Run::of(&mut fixture.run(out, &flags)).expect_code(0);
        for (name, bytes) in expected.iter().filter(|(name, _)| name.starts_with("lora/")) {
            assert!(fixture.files(out).get(name) == Some(bytes), "{name} differs");
        }
    }
}

#[test]
fn ranks_resume_from_the_mirror_of_rank_0() {
    let fixture = Fixture::new(8);
    let store = ObjectStore::start();
    let flags = ["--shard-optimizer", "--steps", "6", "--checkpoint-every", "2"];
    let ranks = |out: &str, more: &[&str], fault: Option<&str>| {
        let flags = [&flags[..], more].concat();
        let start = |rank: usize| {
            let mut command = at(&store, fixture.run(out, &flags));
            if let Some(fault) = fault.filter(|_| rank == 0) {
                command.env("RUNKIT_FAULT", fault);
            }
            command
        };
        Ranks::start(2, start).finish_within(LIMIT)
    };
    for run in ranks("whole", &[], None) {
        run.expect_code(0);
    }
    let runs = ranks("out", &MIRROR, Some("step:6"));
    assert!(runs[0].was_killed(), "{runs:#?}");
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    for run in ranks("out", &MIRROR, None) {
        run.expect_code(0);
    }
    assert_same_end(&fixture, "whole", "out");
    assert_in_mirror(&fixture, "out", store.below("bucket/runs/a"));
}
