//! Pairs that are held out, and pairs that are skipped.

use super::*;

#[test]
fn what_is_held_out_is_never_streamed_and_follows_from_the_locations() {
    let (folder, path, labels) = two_files();
    let all = open(folder.path(), &path).unwrap();
    let (fingerprint, length) = (all.fingerprint().to_owned(), all.len());
    let (kept, held) = all.hold_out(5, 7);
    assert_eq!((kept.len(), held.len()), (length - 5, 5));
    assert_eq!((kept.counts().selected, kept.counts().held_out), (length - 5, 5));
    assert!(kept.fingerprint() != fingerprint && kept.fingerprint() != held.fingerprint());
    let names = |dataset: Dataset<i8>| -> std::collections::BTreeSet<String> {
        let count = 3 * dataset.len() as usize;
        let selection: Vec<String> = dataset.locations().collect();
        let seen = take(&Arc::new(dataset), options(), count);
        for one in &seen {
            let label = labels.iter().find(|row| row.pair_id == one.pair_id).unwrap();
            assert_eq!(label.consensus, Some(one.label));
            let place = positional(&label.source_file, label.source_row as usize);
            assert!(selection.contains(&place), "{place}");
        }
        seen.into_iter().map(|seen| seen.pair_id).collect()
    };
    let held_names = names(held);
    assert_eq!(held_names.len(), 5);
    assert!(names(kept).is_disjoint(&held_names));
    // A label that changes to a tie takes one pair, not the whole choice.
    let mut fewer = labels.clone();
    let mut tie = fewer.iter_mut().filter(|row| !held_names.contains(&row.pair_id));
    tie.find(|row| row.consensus == Some(1)).unwrap().consensus = Some(0);
    let path = write_labels(folder.path(), &fewer);
    let (_, held) = open(folder.path(), &path).unwrap().hold_out(5, 7);
    assert_eq!(names(held), held_names);
    let (_, other) = open(folder.path(), &path).unwrap().hold_out(5, 8);
    assert_ne!(names(other), held_names);
    let (rest, none) = open(folder.path(), &path).unwrap().hold_out(0, 8);
    assert_eq!((rest.len(), none.len()), (length - 1, 0));
}

#[test]
fn a_skipped_pair_keeps_its_place_and_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = PairsFile::new("a", 8, 2);
    let labels = write_labels(folder.path(), &pairs.labels());
    let input = [folder.path().join("a")];
    pairs.write(folder.path());
    let whole = Arc::new(Dataset::open(&input, &[], &labels, &mut sign_of).unwrap());
    let length = whole.len() as usize;
    let whole = take(&whole, options(), 2 * length);
    // Images that cannot be read: one is null, one is garbage.
    pairs.images[0][0] = None;
    pairs.images[1][3] = Some(b"nothing".to_vec());
    pairs.write(folder.path());
    assert!(Dataset::open(&input, &[], &labels, &mut sign_of).is_err());
    let mut named =
        |row: &LabelRow| sign_of(row).map(|sign| (sign, [0, 3].contains(&row.source_row)));
    let inputs = PairInputs { pairs: input.to_vec(), ..PairInputs::default() };
    let dataset = Dataset::open_skipping(&inputs, &labels, &mut named, &|(_, skip)| *skip).unwrap();
    assert_eq!((dataset.counts().skipped, dataset.len()), (2, length as u64));
    let mut stream = Stream::start(Arc::new(dataset), options()).unwrap();
    let mut skipped = 0;
    for expected in &whole {
        let example = stream.next().unwrap();
        assert_eq!(example.position, expected.position);
        match example.content {
            Content::Pixels(pixels) => {
                assert_eq!((&example.pair_id, &pixels), (&expected.pair_id, &expected.pixels));
            }
            Content::Skipped => {
                assert!(["a:0", "a:3"].contains(&&*expected.pair_id));
                skipped += 1;
            }
            Content::Latents { .. } => panic!("no pixels"),
        }
    }
    assert_eq!(skipped, 4, "two of each of two epochs");
}
