//! The streams of several ranks together are that of one process.

use super::*;

fn positions(rank: u64, world: u64, micro_batch: u64) -> Positions {
    Positions { rank, world, micro_batch }
}

#[test]
fn ranks_share_the_order_of_one_process_micro_batch_by_micro_batch() {
    let (folder, path, _) = two_files();
    for small in [false, true] {
        let dataset = open(folder.path(), &path).unwrap();
        let dataset = if small { with_small_windows(dataset) } else { Arc::new(dataset) };
        let length = dataset.len() as usize;
        // Steps of six pairs; the second start is within an epoch and no multiple of any batch.
        for (world, micro_batch, start) in [(2, 3, 0), (3, 1, 7), (2, 1, 5), (3, 2, 0), (6, 1, 13)]
        {
            let count = 2 * length / 6 * 6;
            let options = StreamOptions { position: start, ..options() };
            let whole = take(&dataset, options, count);
            let mut found = Vec::new();
            for rank in 0..world {
                let positions = positions(rank, world, micro_batch);
                let own =
                    take(&dataset, StreamOptions { positions, ..options }, count / world as usize);
                let micro_batches = own.chunks(micro_batch as usize);
                // Each is whole, and its pairs are neighbours in the order.
                for (number, pairs) in (0..).zip(micro_batches) {
                    let first = start + (number * world + rank) * micro_batch;
                    let expected: Vec<u64> = (first..first + micro_batch).collect();
                    let own: Vec<u64> = pairs.iter().map(|seen| seen.position).collect();
                    assert_eq!(own, expected, "rank {rank} of {world}");
                }
                found.extend(own);
            }
            found.sort_by_key(|seen| seen.position);
            assert_eq!(found, whole, "{world} ranks, micro-batches of {micro_batch} from {start}");
        }
    }
}

#[test]
fn a_rank_does_not_read_the_pairs_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = PairsFile::new("a", 24, 4);
    let labels = write_labels(folder.path(), &pairs.labels());
    pairs.write(folder.path());
    let input = [folder.path().join("a")];
    let open = || Arc::new(Dataset::open(&input, &[], &labels, &mut sign_of).unwrap());
    let length = open().len();
    let first = take(&open(), options(), 1);
    let broken: i64 = first[0].pair_id.rsplit_once(':').unwrap().1.parse().unwrap();
    // The pair at position 0 cannot be decoded: that is an error of rank 0 alone.
    pairs.images[0][usize::try_from(broken).unwrap()] = Some(b"nothing".to_vec());
    pairs.write(folder.path());
    let of = |rank| StreamOptions { positions: positions(rank, 2, 2), ..options() };
    let error = Stream::start(open(), of(0)).unwrap().next().unwrap_err();
    assert!(matches!(error, DataError::Decode { .. }), "{error}");
    let mut second = Stream::start(open(), of(1)).unwrap();
    let mut at = 0;
    while at < length - 4 {
        at = second.next().unwrap().position;
        assert_eq!(at / 2 % 2, 1);
    }
}
