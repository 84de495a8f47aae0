#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use nn::unet::SAVED_WEIGHTS;

use super::write::link_reference;
use super::*;

fn state(step: u64, run: &str) -> State {
    let position = Position { step, pairs: 4 * step, ..Position::default() };
    State::new(position, OptimizerKind::Adamw, run, &Numerics::new())
}

fn mark(folder: &Path) {
    let names = FILES.iter().filter(|name| **name != MARKER && folder.join(name).exists());
    let records: Records = names
        .map(|name| ((*name).to_owned(), record(&folder.join(name), || Ok(())).unwrap()))
        .collect();
    runkit::files::write_json_atomic(folder.join(MARKER), &records).unwrap();
}

/// A checkpoint of text files: files that are not loaded need not be weights.
fn write(checkpoints: &Path, step: u64, run: &str) -> PathBuf {
    let folder = folder(checkpoints, step);
    for part in [UNET, REFERENCE] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        let weights = folder.join(part).join(SAVED_WEIGHTS);
        std::fs::write(weights, format!("{part} {step}")).unwrap();
    }
    std::fs::write(folder.join(OPTIMIZER), "moments").unwrap();
    runkit::files::write_json_atomic(folder.join(STATE), &state(step, run)).unwrap();
    mark(&folder);
    folder
}

fn newest(checkpoints: &Path) -> Option<u64> {
    latest(checkpoints, "run").unwrap().map(|checkpoint| checkpoint.state.step)
}

#[test]
fn the_newest_intact_checkpoint_is_used() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = place.path().join("checkpoints");
    assert_eq!(newest(&checkpoints), None);
    write(&checkpoints, 9, "run");
    write(&checkpoints, 10, "run");
    assert_eq!(newest(&checkpoints), Some(10));
    let unfinished = write(&checkpoints, 11, "run");
    std::fs::remove_file(unfinished.join(MARKER)).unwrap();
    assert_eq!(newest(&checkpoints), Some(10));
    assert!(!unfinished.exists(), "what a killed run left is deleted");
}

#[test]
fn damage_of_every_kind_falls_back_to_the_one_before() {
    for file in [STATE, OPTIMIZER, FILES[4], FILES[6], MARKER] {
        for damage in ["truncated", "flipped", "missing"] {
            if (file, damage) == (MARKER, "flipped") {
                continue;
            }
            let place = tempfile::tempdir().unwrap();
            write(place.path(), 1, "run");
            let path = write(place.path(), 2, "run").join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                "truncated" => bytes.truncate(bytes.len() / 2),
                "flipped" => bytes[0] ^= 1,
                _ => std::fs::remove_file(&path).unwrap(),
            }
            if damage != "missing" {
                std::fs::write(&path, bytes).unwrap();
            }
            assert_eq!(newest(place.path()), Some(1), "{file} {damage}");
        }
    }
}

#[test]
fn what_is_not_damaged_is_not_removed() {
    let place = tempfile::tempdir().unwrap();
    let folder = write(place.path(), 2, "run");
    let newer = State { format: FORMAT + 1, ..state(2, "run") };
    runkit::files::write_json_atomic(folder.join(STATE), &newer).unwrap();
    mark(&folder);
    let message = latest(place.path(), "run").unwrap_err().to_string();
    assert!(message.contains("the version that wrote it"), "{message}");
    assert!(folder.join(OPTIMIZER).exists());
}

#[test]
fn the_only_checkpoint_may_be_damaged() {
    let place = tempfile::tempdir().unwrap();
    let folder = write(place.path(), 2, "run");
    std::fs::write(folder.join(OPTIMIZER), "momentS").unwrap();
    assert_eq!(newest(place.path()), None);
    assert!(!folder.exists());
}

#[test]
fn another_runs_checkpoint_is_refused_and_old_ones_are_pruned() {
    let place = tempfile::tempdir().unwrap();
    for step in [100, 200, 300] {
        write(place.path(), step, "run");
    }
    let message = latest(place.path(), "other").unwrap_err().to_string();
    assert!(message.contains("step-000300") && message.contains("--fresh"), "{message}");
    prune(place.path(), 2).unwrap();
    assert_eq!(list(place.path()).unwrap().into_keys().collect::<Vec<_>>(), [200, 300]);
    prune(place.path(), 2).unwrap();
    assert_eq!(newest(place.path()), Some(300));
}

#[test]
fn an_unchanged_reference_is_a_hard_link() {
    use std::os::unix::fs::MetadataExt as _;
    let place = tempfile::tempdir().unwrap();
    let first = write(place.path(), 1, "run");
    let second = folder(place.path(), 2);
    std::fs::create_dir_all(second.join(REFERENCE)).unwrap();
    let records = link_reference(place.path(), &second, &state(2, "run")).unwrap();
    assert_eq!(records.keys().collect::<Vec<_>>(), [FILES[6]]);
    let inode = |folder: &Path| folder.join(FILES[6]).metadata().unwrap().ino();
    assert_eq!(inode(&first), inode(&second));
    // The earlier name may be deleted.
    remove(&first).unwrap();
    assert_eq!(std::fs::read_to_string(second.join(FILES[6])).unwrap(), "reference 1");
    // An updated reference, or one of another run, is written.
    let third = folder(place.path(), 3);
    std::fs::create_dir_all(third.join(REFERENCE)).unwrap();
    let updated = State { reference_step: 3, ..state(3, "run") };
    write(place.path(), 1, "run");
    assert!(link_reference(place.path(), &third, &updated).is_none());
    assert!(link_reference(place.path(), &third, &state(3, "other")).is_none());
}

#[test]
fn foreign_files_in_a_checkpoint_stay() {
    let place = tempfile::tempdir().unwrap();
    let theirs = write(place.path(), 1, "run").join("unet/notes.txt");
    std::fs::write(&theirs, "mine").unwrap();
    std::fs::create_dir_all(place.path().join("mine")).unwrap();
    list(place.path()).unwrap().into_values().for_each(|folder| remove(&folder).unwrap());
    assert_eq!(newest_step(place.path()).unwrap(), None);
    assert!(theirs.exists() && place.path().join("mine").exists());
    assert!(!folder(place.path(), 1).join(REFERENCE).exists());
}

#[test]
fn a_checkpoint_of_any_run_is_opened_and_another_folder_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = place.path().join(crate::run::checkpoint::CHECKPOINTS);
    let folder = write(&checkpoints, 7, "run");
    assert_eq!(Checkpoint::open(&folder).unwrap().state.step, 7);
    assert_eq!(origin(&folder).unwrap().position, 28);
    for wrong in [place.path(), &checkpoints] {
        let message = Checkpoint::open(wrong).unwrap_err().to_string();
        assert!(message.contains("step-000007"), "{message}");
    }
    std::fs::write(folder.join(OPTIMIZER), "momentS").unwrap();
    let message = Checkpoint::open(&folder).unwrap_err().to_string();
    assert!(message.contains("damaged") && folder.join(OPTIMIZER).exists(), "{message}");
}

/// Replaces the optimizer's file of a checkpoint by shards, listed in `DONE`.
fn shard(folder: &Path, count: usize) -> Vec<PathBuf> {
    std::fs::remove_file(folder.join(OPTIMIZER)).unwrap();
    let files = (0..count).map(|rank| folder.join(shards::name(Some((rank, count)))));
    let files: Vec<PathBuf> = files.collect();
    let text = std::fs::read(folder.join(MARKER)).unwrap();
    let mut records: Records = serde_json::from_slice(&text).unwrap();
    records.remove(OPTIMIZER);
    for (rank, file) in files.iter().enumerate() {
        std::fs::write(file, format!("moments of rank {rank}")).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        records.insert(name, record(file, || Ok(())).unwrap());
    }
    runkit::files::write_json_atomic(folder.join(MARKER), &records).unwrap();
    files
}

#[test]
fn shards_of_the_optimizer_belong_to_a_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    write(place.path(), 1, "run");
    let files = shard(&write(place.path(), 2, "run"), 3);
    assert!(files[0].ends_with("step-000002/optimizer-00001-of-00003.safetensors"), "{files:?}");
    assert_eq!(newest(place.path()), Some(2));
    let outputs = outputs(place.path(), "checkpoints").unwrap();
    let listed = "checkpoints/step-000002/optimizer-00003-of-00003.safetensors".to_owned();
    assert!(outputs.contains(&listed), "{outputs:?}");
    // Without one of them it is damaged, and deleted with the others.
    std::fs::remove_file(&files[1]).unwrap();
    let message = Checkpoint::open(&folder(place.path(), 2)).unwrap_err().to_string();
    assert!(
        message.contains("optimizer-00002-of-00003") && message.contains("missing"),
        "{message}"
    );
    assert_eq!(newest(place.path()), Some(1));
    assert!(!folder(place.path(), 2).exists());
    let files = shard(&write(place.path(), 3, "run"), 2);
    std::fs::write(&files[1], "moments of rank X").unwrap();
    assert_eq!(newest(place.path()), Some(1), "a shard is compared with DONE");
}

#[test]
fn names_of_shards_are_recognised() {
    assert!(shards::is_shard("optimizer-00001-of-00002.safetensors"));
    for other in [
        OPTIMIZER,
        "optimizer-1-of-2.safetensors",
        "optimizer-00001-of-00002.json",
        "optimizer-0000x-of-00002.safetensors",
    ] {
        assert!(!shards::is_shard(other), "{other}");
    }
}
