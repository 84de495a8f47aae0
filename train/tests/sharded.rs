//! Optimizer states sharded over ranks (`--shard-optimizer`), and the records of several ranks.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use common::{Fixture, Run};
use nn::weights::Weights;
use testkit::Ranks;

const UNET: &str = "pipeline/unet/diffusion_pytorch_model.safetensors";
const LAST: &str = "checkpoints/step-000010";
/// A run takes about four seconds on two cores that nobody else uses.
const LIMIT: Duration = Duration::from_secs(120);

/// `train run` on so many ranks; returns what they said.
fn run(fixture: &Fixture, world: usize, out: &str, more: &[&str]) -> String {
    let runs = match world {
        1 => vec![Run::of(&mut fixture.run(out, more))],
        _ => Ranks::start(world, |_| fixture.run(out, more)).finish_within(LIMIT),
    };
    runs.into_iter().map(|run| run.expect_code(0).stderr).collect()
}

/// The files of the optimizer's state in a checkpoint.
fn states(fixture: &Fixture, checkpoint: &str) -> Vec<PathBuf> {
    let names = fixture.names(checkpoint).into_iter().filter(|name| name.starts_with("optimizer"));
    names.map(|name| fixture.path(checkpoint).join(name)).collect()
}

/// The bytes of every tensor of some files, by name.
fn tensors(files: &[PathBuf]) -> BTreeMap<String, Vec<u8>> {
    let weights = Weights::open_files(files).unwrap();
    let bytes = |name: &str| {
        let tensor = weights.tensor(name).unwrap();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    weights.names().map(|name| (name.to_owned(), bytes(name))).collect()
}

#[test]
fn sharded_states_give_the_bytes_of_whole_ones() {
    let fixture = Fixture::new(8);
    for optimizer in ["adamw", "adafactor"] {
        let more = ["--optimizer", optimizer];
        let (plain, sharded) = (format!("{optimizer}-plain"), format!("{optimizer}-sharded"));
        run(&fixture, 2, &plain, &more);
        run(&fixture, 2, &sharded, &[&more[..], &["--shard-optimizer"]].concat());
        assert!(
            fixture.bytes(&format!("{plain}/{UNET}"))
                == fixture.bytes(&format!("{sharded}/{UNET}"))
        );
        assert_eq!(fixture.metrics(&plain), fixture.metrics(&sharded));
        let whole = states(&fixture, &format!("{plain}/{LAST}"));
        let shards = states(&fixture, &format!("{sharded}/{LAST}"));
        assert!(whole[0].ends_with("optimizer.safetensors") && whole.len() == 1, "{whole:?}");
        assert!(shards[0].ends_with("optimizer-00001-of-00002.safetensors"), "{shards:?}");
        assert!(shards[1].ends_with("optimizer-00002-of-00002.safetensors"), "{shards:?}");
        assert_eq!(shards.len(), 2);
        assert!(tensors(&whole) == tensors(&shards), "{optimizer}");
        let sizes: Vec<u64> = shards.iter().map(|file| file.metadata().unwrap().len()).collect();
        // The numbers of weights are spread evenly, and AdamW's states are as large as these.
        let is_even = sizes[0].abs_diff(sizes[1]) < sizes[0] / 4;
        assert!(optimizer != "adamw" || is_even, "{sizes:?}");
    }
}

#[test]
fn a_checkpoint_of_any_sharding_is_resumed_with_any_other() {
    let fixture = Fixture::new(8);
    let shard = "--shard-optimizer";
    run(&fixture, 2, "whole", &[]);
    let expected = fixture.bytes(&format!("whole/{UNET}"));
    // Two ranks end with the same bytes, however the states were kept before and after a stop.
    for (out, first, then) in
        [("joined", &[shard][..], &[][..]), ("split", &[], &[shard]), ("kept", &[shard], &[shard])]
    {
        run(&fixture, 2, out, &[first, &["--steps", "6"]].concat());
        run(&fixture, 2, out, then);
        assert!(fixture.bytes(&format!("{out}/{UNET}")) == expected, "{out}");
        let last = states(&fixture, &format!("{out}/{LAST}"));
        assert_eq!(last.len(), if then.is_empty() { 1 } else { 2 }, "{out}: {last:?}");
    }
    // One process, and four ranks, load the moments of two.
    for (out, world, more) in [("one", 1, &[][..]), ("four", 4, &[shard, "--micro-batch", "1"])] {
        run(&fixture, 2, out, &[shard, "--steps", "6"]);
        run(&fixture, world, out, more);
        let last = states(&fixture, &format!("{out}/{LAST}"));
        let names = |files: &[PathBuf]| tensors(files).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&last), names(&states(&fixture, &format!("whole/{LAST}"))), "{out}");
        assert_eq!(last.len(), world);
        assert_eq!(fixture.metrics(out).len(), fixture.metrics("whole").len());
    }
    // Without a shard the checkpoint is damaged, and the one before it is used.
    run(&fixture, 2, "lost", &[shard, "--steps", "6"]);
    std::fs::remove_file(&states(&fixture, "lost/checkpoints/step-000006")[1]).unwrap();
    let said = run(&fixture, 2, "lost", &[]);
    assert!(said.contains("optimizer-00002-of-00002.safetensors") && said.contains("missing"));
    assert!(fixture.bytes(&format!("lost/{UNET}")) == expected);
}

#[test]
fn ranks_record_their_own_micro_batches_under_the_names_of_one_process() {
    let fixture = Fixture::new(8);
    let more = ["--steps", "2", "--record-steps", "2", "--micro-batch", "1"];
    run(&fixture, 1, "one", &more);
    run(&fixture, 2, "two", &more);
    let names = fixture.names("one/record");
    assert_eq!(names.len(), 8);
    assert_eq!(fixture.names("two/record"), names);
    for name in names.iter().filter(|name| name.starts_with("step-000001")) {
        let [one, two] = ["one", "two"].map(|out| fixture.path(out).join("record").join(name));
        // Before the first update the weights are equal, so all bits are.
        assert!(tensors(&[one]) == tensors(&[two]), "{name}");
    }
}
