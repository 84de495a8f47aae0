//! Deals out the images of sets that put the preferred one first.

/// How pairs are dealt, for manifests: another rule would be another set of pairs.
pub const DEALING: &str = "blake3(pair_id), bit 0 of byte 0: 1 swaps";

/// Whether the images of a winner-first pair of this id change places, so that the preferred image
/// is image 1.
#[must_use]
pub fn is_swapped(pair_id: &str) -> bool {
    let hash = blake3::hash(pair_id.as_bytes());
    hash.as_bytes().first().is_some_and(|byte| byte & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::is_swapped;

    #[test]
    fn half_of_the_pairs_are_swapped_and_the_rule_does_not_change() {
        let swapped = |row: &u32| is_swapped(&format!("train.json:{row}"));
        let count = (0..10_000).filter(swapped).count();
        assert!((4800..5200).contains(&count), "{count}");
        // Labels of an older run must mean the same images.
        let first: Vec<u32> = (0..20).filter(swapped).collect();
        assert_eq!(first, [2, 4, 10, 13, 14, 17, 19]);
    }
}
