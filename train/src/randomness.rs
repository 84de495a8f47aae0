//! Every random choice of training: a function of the seed, the kind of choice, and the position in
//! the run; never of earlier choices. So a resumed run makes the same choices as an uninterrupted
//! one, without a generator state to save, and the micro-batch size does not matter.
//!
//! A choice has a number of 64 bits: the first eight bytes, little endian, of the BLAKE3 hash of
//! `train/1`, the name of the choice, a zero byte, and then as little-endian 64-bit numbers the
//! seed of the run, a position and an index. Changing any of this changes every run.

/// The kinds of random choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The timestep of a pair, by its position in the run.
    Timestep,
    /// The noise of a pair, by its position in the run; both images get the same.
    Noise,
    /// The noise of the autoencoder's posterior, by the position of the pair and the image in it.
    Posterior,
    /// Whether a pair's caption is replaced by the empty one, by its position in the run.
    CaptionDropout,
    /// The scorer of an optimizer step, by the step.
    Scorer,
    /// The choice of the probe pairs, and their noise and timesteps.
    Probe,
    /// The first numbers of a layer's adapter, by the layer's place in the sorted names.
    Adapter,
}

impl Choice {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Timestep => b"timestep",
            Self::Noise => b"noise",
            Self::Posterior => b"posterior",
            Self::CaptionDropout => b"caption-dropout",
            Self::Scorer => b"scorer",
            Self::Probe => b"probe",
            Self::Adapter => b"adapter",
        }
    }

    /// The number of this choice.
    pub fn number(self, seed: u64, position: u64, index: u64) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"train/1").update(self.name()).update(&[0]);
        for number in [seed, position, index] {
            hasher.update(&number.to_le_bytes());
        }
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first)
    }

    /// A whole number from 0 to `count` − 1, uniformly distributed (to 2⁻⁶⁴ · `count`); 0 if
    /// `count` is 0.
    pub fn below(self, seed: u64, position: u64, count: u64) -> u64 {
        let product = u128::from(self.number(seed, position, 0)) * u128::from(count);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// True with this probability.
    pub fn happens(self, seed: u64, position: u64, probability: f64) -> bool {
        let unit = (self.number(seed, position, 0) >> 11) as f64 / (1u64 << 53) as f64;
        unit < probability
    }
}

#[cfg(test)]
mod tests {
    use super::Choice;

    /// Runs in the field would no longer be resumed exactly if one of these changed.
    #[test]
    fn numbers_stay_the_same_between_versions() {
        let message: Vec<u8> = [b"train/1noise\0".as_slice(), &7u64.to_le_bytes()]
            .into_iter()
            .chain([&3u64.to_le_bytes()[..], &1u64.to_le_bytes()[..]])
            .flatten()
            .copied()
            .collect();
        let digest = blake3::hash(&message);
        let expected = u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap());
        assert_eq!(Choice::Noise.number(7, 3, 1), expected);
    }

    #[test]
    fn choices_seeds_positions_and_indexes_are_all_different() {
        let mut numbers = std::collections::HashSet::new();
        let choices = [Choice::Timestep, Choice::Noise, Choice::Posterior, Choice::Scorer];
        for choice in
            choices.into_iter().chain([Choice::CaptionDropout, Choice::Probe, Choice::Adapter])
        {
            for seed in 0..4 {
                for position in 0..4 {
                    for index in 0..4 {
                        assert!(numbers.insert(choice.number(seed, position, index)));
                    }
                }
            }
        }
    }

    #[test]
    fn timesteps_are_uniform_and_dropout_has_its_rate() {
        let mut counts = [0u32; 10];
        let mut dropped = 0;
        for position in 0..20_000 {
            let timestep = Choice::Timestep.below(1, position, 1000);
            counts[usize::try_from(timestep / 100).unwrap()] += 1;
            dropped += u32::from(Choice::CaptionDropout.happens(1, position, 0.2));
        }
        // Five standard stds: 2000 ± 5·42, 4000 ± 5·57.
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 212), "{counts:?}");
        assert!(dropped.abs_diff(4000) < 283, "{dropped}");
        assert!(!Choice::CaptionDropout.happens(1, 0, 0.0));
        assert!(Choice::CaptionDropout.happens(1, 0, 1.0));
        assert_eq!(Choice::Timestep.below(1, 0, 0), 0);
        assert_eq!(Choice::Timestep.below(1, 0, 1), 0);
    }
}
