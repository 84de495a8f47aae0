//! Voters and pairs that come later: scores of an earlier run are taken over where this run would
//! compute the very same, and the bytes are those of a run from nothing.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{
    Fixture, Pair, Run, Running, pairs_parquet, pairs_with_own_captions, relabel, sample_pairs,
    scorer_entry, units_scored,
};
use schemas::labels::{LabelRow, Status};
use testkit::Ranks;

const OUT: &str = "out/labels.parquet";
const OLD: &str = "old.parquet";
const FINISHED: [&str; 2] = ["labels.config.toml", "labels.parquet"];
const LIMIT: Duration = Duration::from_secs(120);

/// Pairs in units of four, with labels of two scorers and a third one that comes later.
struct Later {
    fixture: Fixture,
    two: PathBuf,
    three: PathBuf,
    /// What a run from nothing with all three makes of the pairs.
    nothing: Vec<u8>,
}

impl Later {
    fn of(fixture: Fixture) -> Self {
        let entries = ["clip", "aesthetic", "hps"].map(scorer_entry);
        let two = fixture.scorers("two.toml", &entries[..2]);
        let three = fixture.scorers("three.toml", &entries);
        let later = Self { fixture, two, three, nothing: Vec::new() };
        Run::of(&mut later.score(&later.two, OLD)).expect_code(0);
        Run::of(&mut later.score(&later.three, OUT)).expect_code(0);
        let nothing = later.fixture.bytes(OUT);
        later.clear();
        Self { nothing, ..later }
    }

    fn score(&self, scorers: &Path, out: &str) -> Command {
        let more = ["-v", "--unit-pairs", "4", "--batch-size", "3", "--max-failed", "9"];
        self.fixture.score(scorers, out, &more)
    }

    fn reusing(&self) -> Command {
        let mut command = self.score(&self.three, OUT);
        command.arg("--reuse").arg(self.fixture.path(OLD));
        command
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    #[track_caller]
    fn assert_finished(&self) {
        assert!(self.fixture.bytes(OUT) == self.nothing, "other bytes than from nothing");
        assert_eq!(self.fixture.names("out"), FINISHED);
        self.clear();
    }
}

/// Bits of the scores of one scorer.
fn bits(rows: &[LabelRow], scorer: usize) -> Vec<[Option<u32>; 2]> {
    rows.iter().map(|row| row.scores[scorer].map(|score| score.map(f32::to_bits))).collect()
}

#[test]
fn a_third_scorer_costs_one_scorer_and_leaves_the_other_columns() {
    let later = Later::of(Fixture::with_sample(24));
    let run = Run::of(&mut later.reusing()).expect_code(0);
    for words in [
        "clip: the scores of 6 of 6 units are taken over from",
        "aesthetic: the scores of 6 of 6 units are taken over from",
        "hps: scored anew",
        "it is not there",
        "Loaded 1 scorer in",
    ] {
        assert!(run.stderr.contains(words), "{words}: {run:#?}");
    }
    assert_eq!(run.stderr.matches("Loaded ").count(), 1, "{run:#?}");
    let (old, new) = (later.fixture.labels(OLD), later.fixture.labels(OUT));
    for scorer in [0, 1] {
        assert_eq!(bits(&old, scorer), bits(&new, scorer));
    }
    later.assert_finished();

    // What a run would score is said before it.
    let mut check = later.reusing();
    let arguments: Vec<_> = check.get_args().skip(1).map(ToOwned::to_owned).collect();
    check = relabel(["check"]);
    let run = Run::of(check.args(arguments)).expect_code(0);
    for words in [
        "reuse      clip: the scores of 6 of 6 units are taken over from",
        "reuse      hps: scored anew",
    ] {
        assert!(run.stdout.contains(words), "{words}: {run:#?}");
    }
}

#[test]
fn a_record_that_differs_is_named_and_scored_anew() {
    let later = Later::of(Fixture::with_sample(9));
    let changed = scorer_entry("clip").trim_end().to_owned() + "\nalpha = \"drop\"\n\n";
    let scorers = later.fixture.scorers("changed.toml", &[changed, scorer_entry("aesthetic")]);
    Run::of(&mut later.score(&scorers, "nothing.parquet")).expect_code(0);
    let mut command = later.score(&scorers, "reused.parquet");
    let run = Run::of(command.arg("--reuse").arg(later.fixture.path(OLD))).expect_code(0);
    assert!(run.stderr.contains("clip: scored anew") && run.stderr.contains("preprocess: was"));
    assert!(run.stderr.contains("aesthetic: the scores of 3 of 3 units"), "{run:#?}");
    assert!(later.fixture.bytes("reused.parquet") == later.fixture.bytes("nothing.parquet"));

    // Another size of batches gives other last bits.
    let more = ["-v", "--unit-pairs", "4", "--batch-size", "2", "--reuse"];
    let mut command = later.fixture.score(&later.two, "other.parquet", &more);
    command.arg(later.fixture.path(OLD));
    let run = Run::of(&mut command).expect_code(0);
    assert!(run.stderr.contains("batch_size: was 3, now 2"), "{run:#?}");
    assert_eq!(units_scored(&run).len(), 3);

    // Other pairs too.
    let mut pairs = sample_pairs(9);
    pairs[8].caption = Some("another one".to_owned());
    later.fixture.put("pairs/2.parquet", &pairs_parquet(&pairs[6..]));
    let mut command = later.score(&later.two, "other-pairs.parquet");
    let run = Run::of(command.arg("--reuse").arg(later.fixture.path(OLD))).expect_code(0);
    assert!(run.stderr.contains("input.files"), "{run:#?}");
    assert_eq!(units_scored(&run).len(), 3);

    // The labels that are read are not written.
    let mut command = later.score(&later.three, OLD);
    let run = Run::of(command.arg("--fresh").arg("--reuse").arg(later.fixture.path(OLD)));
    run.expect_error(&["is one of the inputs"]);
}

#[test]
fn killed_at_any_passage_a_run_with_scores_of_another_ends_with_the_same_bytes() {
    let later = Later::of(fixture_with_damaged_owners());
    for point in ["write", "rename"] {
        let mut passages = 0;
        loop {
            let mut command = later.reusing();
            let run = Run::of(command.env("RUNKIT_FAULT", format!("{point}:{}", passages + 1)));
            if !run.was_killed() {
                run.expect_code(0);
                later.assert_finished();
                break;
            }
            passages += 1;
            // With the earlier labels or without, the rest is the same.
            let mut again =
                if passages % 2 == 0 { later.reusing() } else { later.score(&later.three, OUT) };
            Run::of(&mut again).expect_code(0);
            later.assert_finished();
        }
        assert!(passages > 5, "{point}: {passages}");
    }
}

/// Two files. The second shows what the first cannot score: a uid whose owner is damaged, and one
/// whose owner has other bytes.
fn fixture_with_damaged_owners() -> Fixture {
    let mut pairs = own(6);
    let sound = [pairs[0].image[0].clone(), pairs[1].image[0].clone()];
    pairs[0].image[0].as_mut().unwrap().truncate(100);
    pairs[4].uid = [pairs[0].uid[0].clone(), pairs[1].uid[0].clone()];
    pairs[4].image = [sound[0].clone(), pairs[3].image[1].clone()];
    let fixture = Fixture::empty();
    fixture.put("pairs/0.parquet", &pairs_parquet(&pairs[..3]));
    fixture.put("pairs/1.parquet", &pairs_parquet(&pairs[3..]));
    fixture
}

/// Pairs of the sample with uids of their own.
fn own(rows: usize) -> Vec<Pair> {
    let mut pairs = sample_pairs(rows);
    for (number, pair) in pairs.iter_mut().enumerate() {
        pair.ranking_id = Some(number as i64);
        pair.uid = [Some(format!("left {number}")), Some(format!("right {number}"))];
    }
    pairs
}

#[test]
fn shards_and_ranks_share_what_is_left() {
    let later = Later::of(Fixture::with_pairs(&pairs_with_own_captions(40)));
    for shard in ["1/2", "0/2"] {
        let run = Run::of(later.reusing().args(["--shard", shard])).expect_code(0);
        assert_eq!(units_scored(&run).len(), 5, "{run:#?}");
    }
    later.assert_finished();
    let runs = Ranks::start(2, |_| later.reusing()).finish_within(LIMIT);
    let mut units: Vec<usize> =
        runs.into_iter().flat_map(|run| units_scored(&run.expect_code(0))).collect();
    units.sort_unstable();
    assert_eq!(units, (0..10).collect::<Vec<_>>(), "each unit once");
    later.assert_finished();
}

/// A run whose pairs grow.
struct Growing {
    fixture: Fixture,
    scorers: PathBuf,
}

impl Growing {
    fn score(&self, out: &str, more: &[&str]) -> Command {
        let all = [&["-v", "--unit-pairs", "4", "--max-failed", "9"], more].concat();
        self.fixture.score(&self.scorers, out, &all)
    }

    fn of(fixture: Fixture) -> Self {
        let scorers = fixture.two_scorers();
        Self { fixture, scorers }
    }

    fn put(&self, number: usize, pairs: &[Pair]) {
        self.fixture.put(&format!("pairs/{number}.parquet"), &pairs_parquet(pairs));
    }

    /// The output is that of a run from nothing with these flags.
    #[track_caller]
    fn assert_as_from_nothing(&self, more: &[&str]) {
        Run::of(&mut self.score("nothing/labels.parquet", more)).expect_code(0);
        let nothing = self.fixture.bytes("nothing/labels.parquet");
        assert!(self.fixture.bytes(OUT) == nothing, "other bytes than from nothing");
        assert_eq!(self.fixture.names("out"), FINISHED);
        std::fs::remove_dir_all(self.fixture.path("nothing")).unwrap();
    }
}

#[test]
fn of_files_added_at_the_end_only_the_new_pairs_are_scored() {
    let growing = Growing::of(Fixture::empty());
    let pairs = own(25);
    growing.put(0, &pairs[..8]);
    growing.put(1, &pairs[8..17]);
    Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    growing.put(2, &pairs[17..]);
    let run = Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    assert_eq!(units_scored(&run), [4, 5], "{run:#?}");
    growing.assert_as_from_nothing(&[]);
    // Nothing is left to do.
    let run = Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");

    // Fewer pairs are another run, and so are others.
    Run::of(&mut growing.score(OUT, &["--limit", "9"])).expect_error(&["another run", "limit"]);
    growing.put(0, &own(9)[1..]);
    Run::of(&mut growing.score(OUT, &[])).expect_error(&["another run", "input"]);
}

#[test]
fn a_larger_limit_leaves_what_was_scored() {
    let growing = Growing::of(Fixture::with_pairs(&own(30)));
    for (limit, units) in [("8", 2), ("17", 2), ("24", 2)] {
        let run = Run::of(&mut growing.score(OUT, &["--limit", limit])).expect_code(0);
        // The unit in which the limit lay is one of them.
        assert!(units_scored(&run).len() <= units + 1, "{limit}: {run:#?}");
        growing.assert_as_from_nothing(&["--limit", limit]);
    }
    let run = Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    assert!(units_scored(&run).len() <= 2, "{run:#?}");
    growing.assert_as_from_nothing(&[]);
}

#[test]
fn new_pairs_may_bring_old_images_again() {
    // The sample's images recur, and so do the bytes of the pairs with captions of their own.
    for pairs in [sample_pairs(40), pairs_with_own_captions(40)] {
        let growing = Growing::of(Fixture::with_pairs(&pairs));
        let limits = [Some("5"), Some("13"), Some("26"), None];
        for limit in limits {
            let more = limit.map_or(Vec::new(), |limit| vec!["--limit", limit]);
            Run::of(&mut growing.score(OUT, &more)).expect_code(0);
            growing.assert_as_from_nothing(&more);
        }
    }
}

#[test]
fn failures_of_an_earlier_run_are_found_again() {
    let growing = Growing::of(fixture_with_damaged_owners());
    let more = own(9);
    Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    growing.put(2, &more[6..]);
    Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    let rows = growing.fixture.labels(OUT);
    assert_eq!((rows[0].status, rows[8].status), (Status::DecodeError, Status::Ok));
    growing.assert_as_from_nothing(&[]);
}

#[test]
fn unfinished_work_grows_too_and_a_kill_while_it_does_costs_nothing() {
    let growing = Growing::of(Fixture::empty());
    let pairs = own(24);
    let begin = || {
        growing.put(0, &pairs[..16]);
        let mut killed = growing.score(OUT, &[]);
        // The manifest, the checksums, the plan, features, and three parts.
        assert!(Run::of(killed.env("RUNKIT_FAULT", "rename:7")).was_killed());
        growing.put(1, &pairs[16..]);
    };
    begin();
    let run = Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    assert_eq!(units_scored(&run), [3, 4, 5], "{run:#?}");
    growing.assert_as_from_nothing(&[]);
    for passage in 1..12 {
        std::fs::remove_dir_all(growing.fixture.path("out")).unwrap();
        std::fs::remove_file(growing.fixture.path("pairs/1.parquet")).unwrap();
        begin();
        let mut killed = growing.score(OUT, &[]);
        Run::of(killed.env("RUNKIT_FAULT", format!("rename:{passage}")));
        Run::of(&mut growing.score(OUT, &[])).expect_code(0);
        growing.assert_as_from_nothing(&[]);
    }
    // Finished labels stay whole until the larger ones take their place.
    growing.put(2, &own(28)[24..]);
    let before = growing.fixture.bytes(OUT);
    let run = Running::start(&mut growing.score(OUT, &[]));
    std::thread::sleep(Duration::from_millis(50));
    run.kill();
    let found = growing.fixture.bytes(OUT);
    Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    assert!(found == before || found == growing.fixture.bytes(OUT));
    growing.assert_as_from_nothing(&[]);
}

#[test]
fn shards_and_ranks_grow_as_well() {
    let growing = Growing::of(Fixture::empty());
    let pairs = own(28);
    growing.put(0, &pairs[..12]);
    Run::of(&mut growing.score(OUT, &[])).expect_code(0);
    growing.put(1, &pairs[12..20]);
    for shard in ["0/2", "1/2"] {
        Run::of(&mut growing.score(OUT, &["--shard", shard])).expect_code(0);
    }
    growing.assert_as_from_nothing(&[]);
    growing.put(2, &pairs[20..]);
    let runs = Ranks::start(2, |_| growing.score(OUT, &[])).finish_within(LIMIT);
    let units: usize = runs.into_iter().map(|run| units_scored(&run.expect_code(0)).len()).sum();
    assert_eq!(units, 2, "the new ones");
    growing.assert_as_from_nothing(&[]);
}
