//! How a dataset is streamed.

/// The positions of the order that a stream returns: those of the micro-batches of one rank.
///
/// The stream's first position begins a step. From there each `micro_batch` positions are a
/// micro-batch, and micro-batch `i` belongs to rank `i % world`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The rank, from 0.
    pub rank: u64,
    /// How many ranks there are.
    pub world: u64,
    /// Pairs of a micro-batch; at least one.
    pub micro_batch: u64,
}

impl Positions {
    /// All positions: there is one rank.
    pub const ALL: Self = Self { rank: 0, world: 1, micro_batch: 1 };

    /// Whether the rank computes the pair that comes `offset` positions after the first.
    pub fn contain(self, offset: u64) -> bool {
        self.world <= 1 || (offset / self.micro_batch.max(1)) % self.world == self.rank
    }
}

/// How a dataset is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The seed of order, crops and flipping.
    pub seed: u64,
    /// Height and width of the examples' pixels.
    pub resolution: (i64, i64),
    /// Whether crops are random; otherwise they are central.
    pub random_crop: bool,
    /// Whether images are horizontally flipped at random.
    pub hflip: bool,
    /// The number of examples used since the start of training, across epochs. The stream continues
    /// with the next one and does not read the earlier ones.
    pub position: u64,
    /// Which positions the stream returns; the others are not read.
    pub positions: Positions,
    /// Threads that decode; at least one.
    pub threads: usize,
    /// Bytes that may be prefetched. The order does not depend on it.
    pub memory: u64,
}
