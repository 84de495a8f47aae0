//! How a dataset is streamed.

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
    /// Threads that decode; at least one.
    pub threads: usize,
    /// Bytes that may be prefetched. The order does not depend on it.
    pub memory: u64,
}
