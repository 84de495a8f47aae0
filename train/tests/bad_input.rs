//! What cannot be trained on is said in one sentence, before anything is written.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::{Fixture, Run, label_row, pairs_parquet, pipeline, sample_pairs};
use nn::weights::{Weights, write_safetensors};
use schemas::labels::Status;

/// The run is refused with these words and leaves nothing but, at most, its lock.
#[track_caller]
fn assert_refused(fixture: &Fixture, more: &[&str], says: &[&str]) {
    Run::of(&mut fixture.run("out", more)).expect_error(&[says, &["hint: "]].concat());
    if fixture.path("out").exists() {
        assert_eq!(fixture.names("out"), [""; 0]);
    }
}

/// The same for arguments that make no sense whatever the data are.
#[track_caller]
fn assert_usage_refused(fixture: &Fixture, more: &[&str], says: &[&str]) {
    Run::of(&mut fixture.run("out", more)).expect_usage_error(&[says, &["hint: "]].concat());
    assert!(!fixture.path("out").exists());
}

#[test]
fn labels_of_other_pairs() {
    let fixture = Fixture::new(8);
    let mut labels = fixture.labels();
    labels[2].caption = Some("something else".to_owned());
    let other = fixture.put_labels("other.parquet", &labels).display().to_string();
    assert_refused(&fixture, &["--labels", &other], &["other.parquet", "other pairs", "caption"]);
    let mut labels = fixture.labels();
    labels.iter_mut().for_each(|label| label.source_file = "elsewhere.parquet".to_owned());
    let unknown = fixture.put_labels("unknown.parquet", &labels).display().to_string();
    assert_refused(&fixture, &["--labels", &unknown], &["elsewhere.parquet", "no row"]);
    let mut labels = fixture.labels();
    labels[3].source_row = 99;
    let beyond = fixture.put_labels("beyond.parquet", &labels).display().to_string();
    assert_refused(&fixture, &["--labels", &beyond], &["row 99"]);
}

#[test]
fn an_empty_selection() {
    let fixture = Fixture::new(8);
    let mut labels = fixture.labels();
    for row in &mut labels {
        row.votes = [1, -1, 1, -1].map(Some).to_vec();
        row.vote_sum = Some(0);
        row.consensus = Some(0);
    }
    let ties = fixture.put_labels("ties.parquet", &labels).display().to_string();
    assert_refused(&fixture, &["--labels", &ties], &["ties.parquet", "no pair", "--ties"]);
    // With another policy they are what is trained on.
    let half = ["--labels", &ties, "--ties", "half", "--steps", "1"];
    Run::of(&mut fixture.run("half", &half)).expect_code(0);
    for row in &mut labels {
        row.status = Status::DecodeError;
        row.votes = vec![None; 4];
        row.scores = vec![[None, None]; 4];
        (row.vote_sum, row.consensus) = (None, None);
    }
    let failed = fixture.put_labels("failed.parquet", &labels).display().to_string();
    let more = ["--labels", &failed, "--ties", "half"];
    assert_refused(&fixture, &more, &["failed.parquet", "no pair"]);
}

#[test]
fn sizes_that_do_not_fit() {
    let fixture = Fixture::new(8);
    let prompts = fixture.put("prompts.txt", b"\n\n").display().to_string();
    let more = ["--sample-prompts", &prompts, "--sample-every", "5"];
    assert_refused(&fixture, &more, &["prompts.txt", "1 to 64 prompts"]);
    let cache = fixture.path("latents").display().to_string();
    let mut command = common::train(["cache", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs")).args(["--out", &cache]);
    Run::of(&mut command).expect_code(0);
    assert_refused(&fixture, &["--cache", &cache, "--resolution", "32"], &["32"]);
    assert_refused(&fixture, &["--cache", &cache, "--hflip"], &["flipped"]);
    assert_refused(&fixture, &["--resolution", "17"], &["--resolution 17", "multiple of 2"]);
    assert_refused(&fixture, &["--resolution", "99999"], &["--resolution 99999"]);
}

#[test]
fn arguments_that_make_no_sense_are_usage_errors() {
    let fixture = Fixture::new(4);
    assert_usage_refused(
        &fixture,
        &["--batch-size", "6", "--micro-batch", "4"],
        &["--batch-size 6", "--micro-batch 3"],
    );
    assert_usage_refused(&fixture, &["--batch-size", "0"], &["--batch-size 0"]);
    assert_usage_refused(&fixture, &["--dtype", "fp16"], &["did you mean f16?"]);
    assert_usage_refused(&fixture, &["--device", "gpu"], &["did you mean cuda?"]);
    let run = Run::of(&mut common::train(["run", "--recipe", "minni"]));
    run.expect_usage_error(&["unknown recipe \"minni\"", "did you mean mini?"]);
    let run = Run::of(&mut common::train(["run"]));
    run.expect_usage_error(&["--model <", "--pairs <", "--labels <", "--out <", "hint: "]);
    let run = Run::of(&mut common::train(["cache", "--pairs", "x"]));
    run.expect_usage_error(&["--model <", "--out <", "hint: "]);
    for (flag, says) in [
        ("--epochs", "'--steps'"),
        ("--num-train-epochs", "'--steps'"),
        ("--max-train-steps", "'--steps'"),
        ("--workers", "'--data-threads'"),
        ("--mixed-precision", "'--dtype'"),
        ("--resume-from-checkpoint", "resuming is automatic"),
        ("--overwrite", "choose another '--out'"),
        ("--refresh", "unexpected argument"),
    ] {
        let run = Run::of(&mut fixture.run("out", &[flag])).expect_code(2);
        assert!(run.stderr.contains(says) && !run.stderr.contains("--fresh"), "{flag}: {run:#?}");
    }
}

#[test]
fn missing_images_and_damaged_ones_name_the_pair() {
    let fixture = Fixture::new(8);
    let mut pairs = sample_pairs(4);
    pairs[1].image[1].truncate(40);
    fixture.put("spoilt/0.parquet", &pairs_parquet(&pairs));
    let rows: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(row, pair)| label_row(pair, "0.parquet", row, [1, 1, 1, 1]))
        .collect();
    let labels = fixture.put_labels("spoilt.parquet", &rows).display().to_string();
    let folder = fixture.path("spoilt").display().to_string();
    let id = pairs[1].ranking_id.to_string();
    Run::of(&mut fixture.run("out", &["--pairs", &folder, "--labels", &labels])).expect_error(&[
        "0.parquet",
        "image 1",
        &id,
        "hint: ",
    ]);
}

#[test]
fn steps_are_kept_where_a_later_pair_cannot_be_read() {
    let fixture = Fixture::new(11);
    let flags = ["--record-steps", "3", "--steps", "4", "--probe-pairs", "0"];
    Run::of(&mut fixture.run("whole", &flags)).expect_code(0);
    // A pair of the third step, from the header of its record.
    let record =
        std::fs::read(fixture.path("whole/record/step-000003-micro-000.safetensors")).unwrap();
    let length = usize::try_from(u64::from_le_bytes(record[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&record[8..8 + length]).unwrap();
    let ids = header["__metadata__"]["pair_ids"].as_str().unwrap();
    let id = serde_json::from_str::<Vec<String>>(ids).unwrap().remove(0);
    let row = fixture.labels().into_iter().find(|row| row.pair_id == id).unwrap();
    let path = fixture.path("pairs").join(&row.source_file);
    let whole = std::fs::read(&path).unwrap();
    // The first bytes of its image become others, without a change of the footer.
    let pair = sample_pairs(11).into_iter().find(|pair| pair.ranking_id.to_string() == id).unwrap();
    let image = &pair.image[0];
    let place = whole.windows(image.len()).position(|window| window == image).unwrap();
    let mut spoilt = whole.clone();
    spoilt[place..place + 16].fill(0);
    fixture.put(&format!("pairs/{}", row.source_file), &spoilt);
    let words = ["the 2 steps done are kept", &id, "image 0", "hint: "];
    Run::of(&mut fixture.run("out", &flags)).expect_error(&words);
    assert_eq!(fixture.names("out/checkpoints"), ["step-000002"]);
    // Once it is as it was, nothing is lost.
    fixture.put(&format!("pairs/{}", row.source_file), &whole);
    Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    assert_eq!(fixture.metrics("out"), fixture.metrics("whole"));
}

#[test]
fn an_image_that_is_not_there_is_said_before_anything_starts() {
    let fixture = Fixture::new(8);
    let mut pairs = sample_pairs(6);
    pairs[4].image[0].clear();
    pairs[5].image = [Vec::new(), Vec::new()];
    fixture.put("null/0.parquet", &pairs_parquet(&pairs));
    let rows: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(row, pair)| {
            let mut label = label_row(pair, "0.parquet", row, [1, 1, 1, 1]);
            if row == 5 {
                label.status = Status::MissingImage;
                label.votes = vec![None; 4];
                label.scores = vec![[None, None]; 4];
                (label.vote_sum, label.consensus) = (None, None);
            }
            label
        })
        .collect();
    let folder = fixture.path("null").display().to_string();
    let id = pairs[4].ranking_id.to_string();
    let labels = fixture.put_labels("null.parquet", &rows).display().to_string();
    let more = ["--pairs", &folder, "--labels", &labels];
    assert_refused(&fixture, &more, &["0.parquet", "image 0", &id]);
    // Where the labels know of it, it is one that failed.
    let mut rows = rows;
    (rows[4].status, rows[4].votes) = (rows[5].status, rows[5].votes.clone());
    (rows[4].scores, rows[4].vote_sum) = (rows[5].scores.clone(), None);
    rows[4].consensus = None;
    let labels = fixture.put_labels("known.parquet", &rows).display().to_string();
    let more = ["--pairs", &folder, "--labels", &labels, "--steps", "1"];
    Run::of(&mut fixture.run("known", &more)).expect_code(0);
}

#[test]
fn preferences_that_the_labels_do_not_have() {
    let fixture = Fixture::new(8);
    let more = ["--preference", "scorer:dino"];
    assert_refused(&fixture, &more, &["labels.parquet", "\"dino\"", "clip, hps"]);
    let usage = Run::of(&mut fixture.run("out", &["--preference", "majority"])).expect_code(2);
    assert!(usage.stderr.contains("scorer:NAME"), "{usage:#?}");
}

#[test]
fn what_is_missing_or_no_model() {
    let fixture = Fixture::new(8);
    assert_refused(&fixture, &["--labels", "absent.parquet"], &["absent.parquet"]);
    let nothing = fixture.path("nothing").display().to_string();
    assert_refused(&fixture, &["--model", &nothing], &["nothing", "model_index.json"]);
    let copy = fixture.copy_pipeline("sd");
    std::fs::remove_dir_all(copy.join("vae")).unwrap();
    let copy = copy.display().to_string();
    Run::of(&mut fixture.run("out", &["--model", &copy]))
        .expect_error(&["sd/vae", "lacks its vae"]);
    assert!(!fixture.path("out").exists());
    // What a run would refuse once it is loaded, no cache is made of.
    let shifted = fixture.copy(&pipeline("sd"), "shifted");
    let config = std::fs::read_to_string(shifted.join("vae/config.json")).unwrap();
    let config = config.replace("\"shift_factor\": null", "\"shift_factor\": 0.1");
    fixture.put("shifted/vae/config.json", config.as_bytes());
    let mut command = common::train(["cache", "--model"]);
    command.arg(&shifted).arg("--pairs").arg(fixture.path("pairs"));
    command.arg("--out").arg(fixture.path("out"));
    Run::of(&mut command).expect_error(&["shift_factor", "hint: "]);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_the_pairs() {
    let fixture = Fixture::new(8);
    // Weights of the last layer so large that the squared error leaves single precision.
    let copy = fixture.copy_pipeline("sd");
    let path = copy.join("unet/diffusion_pytorch_model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let tensors: Vec<_> = weights
        .names()
        .map(|name| {
            let tensor = weights.tensor(name).unwrap();
            let scale = if name == "conv_out.bias" { 1e25 } else { 1.0 };
            (name.to_owned(), (tensor + f64::from(scale > 1.0)) * scale)
        })
        .collect();
    write_safetensors(&path, &tensors).unwrap();
    let copy = copy.display().to_string();
    let more = ["--model", &copy, "--probe-pairs", "0"];
    let run = Run::of(&mut fixture.run("out", &more));
    let ids = sample_pairs(8).iter().map(|pair| pair.ranking_id.to_string()).collect::<Vec<_>>();
    assert!(ids.iter().any(|id| run.stderr.contains(id)), "{run:#?}");
    run.expect_error(&["step 1", "NaN or infinite", "hint: "]);
    assert!(!fixture.path("out/checkpoints").exists(), "nothing was trained");
    assert!(fixture.metrics("out").is_empty());

    // In the middle of a run: a learning rate that explodes. The last checkpoint stays.
    let more = ["--lr", "1e30", "--warmup-steps", "4", "--checkpoint-every", "1"];
    let more = [&more[..], &["--max-grad-norm", "0", "--probe-every", "0"]].concat();
    Run::of(&mut fixture.run("explodes", &more)).expect_error(&["NaN or infinite", "pairs "]);
    let kept = fixture.names("explodes/checkpoints");
    assert!(!kept.is_empty());
    let state = std::fs::read_to_string(
        fixture.path("explodes/checkpoints").join(kept.last().unwrap()).join("state.json"),
    );
    let steps = fixture.metrics("explodes").last().unwrap()["step"].as_u64().unwrap();
    assert!(state.unwrap().contains(&format!("\"step\": {steps},")));
}

#[test]
fn settings_are_read_from_recipes_and_files_and_printed() {
    let fixture = Fixture::new(4);
    let file =
        fixture.put("settings.toml", b"pairs = [\"pairs\"]\nbeta = 7.0\nrecipe = [\"mini\"]\n");
    let file = file.display().to_string();
    let mut command = common::train(["run", "--config", &file, "--print-config", "--seed", "3"]);
    let run = Run::of(&mut command).expect_code(0);
    let pairs = fixture.path("pairs").display().to_string();
    for words in ["beta = 7.0", "resolution = 32", "seed = 3", "keep = 2", &pairs] {
        assert!(run.stdout.contains(words), "{words:?} is not in {}", run.stdout);
    }
    let wrong = fixture.put("wrong.toml", b"betta = 7.0\n").display().to_string();
    Run::of(&mut common::train(["run", "--config", &wrong])).expect_error(&[
        "wrong.toml",
        "betta",
        "did you mean `beta`?",
    ]);
    // What is saved beside a run is a settings file for the same run.
    Run::of(&mut fixture.run("out", &["--steps", "2"])).expect_code(0);
    let saved = fixture.path("out/config.toml").display().to_string();
    let again = Run::of(&mut common::train(["run", "--config", &saved])).expect_code(0);
    assert!(again.stderr.contains("already complete"), "{again:#?}");
    let help = Run::of(&mut common::train(["run", "--help"])).expect_code(0);
    let longest = help.stdout.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(longest <= 100, "a line of {longest}");
}
