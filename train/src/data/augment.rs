//! Random crops and horizontal flips: a function of seed, epoch, pair and image.
//!
//! The augmentation of an image is the first 24 bytes of the BLAKE3 hash of `train/augment/1` and
//! then, as little-endian 64-bit numbers, the seed, the epoch, the location of the pair
//! (`file · 2³² + row`) and the image: three numbers, for the row, the column and the flip. The two
//! images of a pair are augmented independently, as in SalesforceAIResearch/DiffusionDPO (5233e75)
//! `train.py`.

use super::order::Location;

/// The random choices for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Augmentation {
    top: u64,
    left: u64,
    flip: u64,
}

impl Augmentation {
    pub(crate) fn new(seed: u64, epoch: u64, location: Location, image: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"train/augment/1");
        for number in [seed, epoch, location.number(), image] {
            hasher.update(&number.to_le_bytes());
        }
        let mut numbers = [[0; 8]; 3];
        let mut output = hasher.finalize_xof();
        numbers.iter_mut().for_each(|number| output.fill(number));
        let [top, left, flip] = numbers.map(u64::from_le_bytes);
        Self { top, left, flip }
    }

    /// The first row (0 to `rows`) and column (0 to `columns`) of a random crop.
    pub(crate) fn crop(self, rows: u32, columns: u32) -> (u32, u32) {
        let among = |number: u64, last: u32| {
            let count = u128::from(last) + 1;
            u32::try_from((u128::from(number) * count) >> 64).unwrap_or(last)
        };
        (among(self.top, rows), among(self.left, columns))
    }

    /// Whether the image is horizontally flipped: with probability one half.
    pub(crate) fn is_flipped(self) -> bool {
        self.flip >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentations_are_independent_and_uniform() {
        let (mut flipped, mut twice, mut tops) = ([0, 0], 0, [0_u32; 5]);
        for row in 0..4000 {
            let location = Location { file: 1, row };
            let both = [0, 1].map(|image| Augmentation::new(3, 0, location, image));
            let flips = both.map(Augmentation::is_flipped);
            flipped[0] += u32::from(flips[0]);
            flipped[1] += u32::from(flips[1]);
            twice += u32::from(flips == [true, true]);
            tops[both[0].crop(4, 0).0 as usize] += 1;
            assert_eq!(both[0].crop(0, 0), (0, 0));
            assert_eq!(both[0], Augmentation::new(3, 0, location, 0));
            assert_ne!(both[0], Augmentation::new(3, 1, location, 0));
            assert_ne!(both[0], Augmentation::new(4, 0, location, 0));
        }
        // Five standard stds.
        assert!(flipped.iter().all(|count| count.abs_diff(2000) < 158), "{flipped:?}");
        assert!(twice.abs_diff(1000) < 137, "{twice}");
        assert!(tops.iter().all(|count| count.abs_diff(800) < 127), "{tops:?}");
    }

    /// Runs in the field would no longer be resumed exactly if this changed.
    #[test]
    fn augmentations_stay_the_same_between_versions() {
        let message: Vec<u8> =
            [7_u64, 2, (1 << 32) + 5, 1].iter().flat_map(|number| number.to_le_bytes()).collect();
        let digest = blake3::hash(&[b"train/augment/1".as_slice(), &message].concat());
        let augmentation = Augmentation::new(7, 2, Location { file: 1, row: 5 }, 1);
        let number =
            |at: usize| u64::from_le_bytes(digest.as_bytes()[at..at + 8].try_into().unwrap());
        assert_eq!(
            augmentation,
            Augmentation { top: number(0), left: number(8), flip: number(16) }
        );
    }
}
