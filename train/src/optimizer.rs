//! Which optimizer follows the gradients, its settings, and its states on several ranks.

use std::collections::{HashSet, VecDeque};

use anyhow::{Context as _, Result};
use nn::NetworkError;
use nn::distributed::{Pending, World};
use nn::optimizer::{
    Adafactor, AdafactorConfig, AdamW, AdamW8bit, AdamWConfig, Optimizer, OptimizerKind, zero_grad,
};
use nn::weights::Weights;
use tch::{Kind, Tensor};

/// The bytes of weights that ranks send each other at a time, PyTorch's `bucket_cap_mb`.
const BUCKET_BYTES: usize = 25 << 20;
/// How many buckets are on their way at once.
const BUCKETS_ON_THEIR_WAY: usize = 4;

/// An optimizer and its settings.
#[derive(Debug, Clone, Copy)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// AdamW's decay rates of the moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// The weight decay, times the learning rate.
    pub weight_decay: f64,
}

impl OptimizerConfig {
    /// Makes the optimizer of `parameters`, without moments. If `is_sharded`, each rank of `world`
    /// keeps the moments of its own parameters only.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn build(
        self,
        parameters: &[(String, Tensor)],
        world: &World,
        is_sharded: bool,
    ) -> Result<RankOptimizer, NetworkError> {
        let is_sharded = is_sharded && world.size() > 1;
        self.build_shard(parameters, is_sharded.then(|| (world.rank(), world.size())))
    }

    /// [`OptimizerConfig::build`] for (rank, how many there are).
    fn build_shard(
        self,
        parameters: &[(String, Tensor)],
        shard: Option<(usize, usize)>,
    ) -> Result<RankOptimizer, NetworkError> {
        let shard = shard.map(|(rank, world)| {
            let owners = owners(parameters, world);
            OptimizerShard { rank, world, owners }
        });
        let own: Vec<(String, Tensor)> = match &shard {
            None => copied(parameters.iter()),
            Some(shard) => copied(shard.owned_by(shard.rank, parameters)),
        };
        let parameters = copied(parameters.iter());
        Ok(RankOptimizer { optimizer: self.of(&own)?, parameters, shard })
    }

    fn of(self, parameters: &[(String, Tensor)]) -> Result<Box<dyn Optimizer>, NetworkError> {
        let Self { kind, betas, epsilon, weight_decay } = self;
        Ok(match kind {
            OptimizerKind::Adamw => {
                let config = AdamWConfig { betas, epsilon, weight_decay };
                Box::new(AdamW::new(parameters, config)?)
            }
            OptimizerKind::Adamw8bit => {
                let config = AdamWConfig { betas, epsilon, weight_decay };
                Box::new(AdamW8bit::new(parameters, config)?)
            }
            OptimizerKind::Adafactor => {
                let config = AdafactorConfig { weight_decay, ..AdafactorConfig::default() };
                Box::new(Adafactor::new(parameters, config)?)
            }
        })
    }
}

fn copied<'all>(parameters: impl Iterator<Item = &'all (String, Tensor)>) -> Vec<(String, Tensor)> {
    parameters.map(|(name, value)| (name.clone(), value.shallow_clone())).collect()
}

/// The optimizer of a rank: with the states of all parameters, or with `--shard-optimizer` with
/// those of the parameters that this rank owns (stage 1 of ZeRO, arXiv:1910.02054).
pub struct RankOptimizer {
    optimizer: Box<dyn Optimizer>,
    parameters: Vec<(String, Tensor)>,
    shard: Option<OptimizerShard>,
}

/// The rank that keeps the state of each parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OptimizerShard {
    rank: usize,
    world: usize,
    /// The rank of each parameter.
    owners: Vec<usize>,
}

impl std::fmt::Debug for RankOptimizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RankOptimizer")
            .field("parameters", &self.parameters.len())
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// The owner of each parameter: the largest comes first, and each goes to the rank that has the
/// fewest numbers so far.
fn owners(parameters: &[(String, Tensor)], world: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..parameters.len()).collect();
    let size = |index: usize| parameters.get(index).map_or(0, |(_, value)| value.numel());
    order.sort_by_key(|index| std::cmp::Reverse(size(*index)));
    let mut sums = vec![0_usize; world.max(1)];
    let mut owners = vec![0; parameters.len()];
    for index in order {
        let least = (0..sums.len()).min_by_key(|rank| sums.get(*rank).copied()).unwrap_or(0);
        if let (Some(sum), Some(owner)) = (sums.get_mut(least), owners.get_mut(index)) {
            *sum += size(index);
            *owner = least;
        }
    }
    owners
}

impl OptimizerShard {
    /// The parameters whose state a rank keeps.
    fn owned_by<'all>(
        &self,
        rank: usize,
        parameters: &'all [(String, Tensor)],
    ) -> impl Iterator<Item = &'all (String, Tensor)> {
        let owners = self.owners.iter();
        parameters.iter().zip(owners).filter(move |(_, owner)| **owner == rank).map(|(one, _)| one)
    }
}

impl RankOptimizer {
    /// Updates every parameter that has a gradient. With sharded states, each rank updates its own
    /// parameters and sends them to the others.
    ///
    /// # Errors
    /// If the device is out of memory, or a rank is lost.
    pub fn step(&mut self, learning_rate: f64, world: &World) -> Result<()> {
        self.optimizer.step(learning_rate)?;
        match &self.shard {
            Some(shard) => tch::no_grad(|| send(shard, &self.parameters, world)),
            None => Ok(()),
        }
    }

    /// Drops the gradients of all parameters.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn zero_grad(&mut self) -> Result<(), NetworkError> {
        zero_grad(&self.parameters)
    }

    /// Starts the moments and the counts of steps anew.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn reset(&mut self) -> Result<(), NetworkError> {
        self.optimizer.reset()
    }

    /// Which shard of the states this rank keeps, as (rank, how many there are); `None` if it keeps
    /// all of them.
    pub fn shard(&self) -> Option<(usize, usize)> {
        self.shard.as_ref().map(|shard| (shard.rank, shard.world))
    }

    /// The state of this rank by name ([`Optimizer::state`]).
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.optimizer.state()
    }

    /// Restores a state from the files of all shards, however many there are.
    ///
    /// # Errors
    /// If the files are not the whole state of this optimizer for these parameters.
    pub fn load_state(&mut self, weights: &Weights) -> Result<()> {
        let Some(shard) = &self.shard else { return Ok(self.optimizer.load_state(weights)?) };
        let others = (0..shard.world).filter(|rank| *rank != shard.rank);
        let others: HashSet<&str> = others
            .flat_map(|rank| shard.owned_by(rank, &self.parameters))
            .map(|(name, _)| name.as_str())
            .collect();
        // `PARAMETER.exp_avg` belongs to PARAMETER.
        let is_others =
            |name: &str| name.rsplit_once('.').is_some_and(|(name, _)| others.contains(name));
        Ok(self.optimizer.load_state(&weights.without(is_others))?)
    }
}

/// Sends each rank's parameters to all others, bucket by bucket.
fn send(shard: &OptimizerShard, parameters: &[(String, Tensor)], world: &World) -> Result<()> {
    let mut on_their_way: VecDeque<(Bucket, Pending)> = VecDeque::new();
    for rank in 0..shard.world {
        let own: Vec<&Tensor> = shard.owned_by(rank, parameters).map(|(_, value)| value).collect();
        for members in buckets(&own) {
            if on_their_way.len() == BUCKETS_ON_THEIR_WAY
                && let Some((bucket, pending)) = on_their_way.pop_front()
            {
                pending.wait()?;
                bucket.unpack()?;
            }
            let bucket = Bucket::new(members, rank == shard.rank)?;
            let pending = world.start_broadcast(&bucket.flat, rank)?;
            on_their_way.push_back((bucket, pending));
        }
    }
    for (bucket, pending) in on_their_way {
        pending.wait()?;
        bucket.unpack()?;
    }
    Ok(())
}

/// Splits tensors into runs of about [`BUCKET_BYTES`].
fn buckets<'all>(tensors: &[&'all Tensor]) -> Vec<Vec<&'all Tensor>> {
    let mut buckets: Vec<Vec<&Tensor>> = Vec::new();
    let mut bytes = BUCKET_BYTES;
    for tensor in tensors {
        if bytes >= BUCKET_BYTES {
            buckets.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.numel() * Kind::Float.elt_size_in_bytes();
        if let Some(last) = buckets.last_mut() {
            last.push(tensor);
        }
    }
    buckets
}

/// Parameters on their way, one after the other in memory.
struct Bucket<'all> {
    members: Vec<&'all Tensor>,
    flat: Tensor,
    is_own: bool,
}

impl<'all> Bucket<'all> {
    fn new(members: Vec<&'all Tensor>, is_own: bool) -> Result<Self> {
        let flat = if is_own {
            let parts = members.iter().map(|member| member.f_detach()?.f_reshape([-1]));
            Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)?
        } else {
            let first = members.first().context("a bucket has at least one parameter")?;
            let count = members.iter().map(|member| member.numel()).sum::<usize>();
            Tensor::f_empty([i64::try_from(count)?], (Kind::Float, first.device()))?
        };
        Ok(Self { members, flat, is_own })
    }

    /// Copies what another rank sent into the parameters.
    fn unpack(self) -> Result<()> {
        if self.is_own {
            return Ok(());
        }
        let mut start = 0;
        for member in self.members {
            let count = i64::try_from(member.numel())?;
            let sent = self.flat.f_narrow(0, start, count)?.f_view(&member.size()[..])?;
            // `data` leaves autograd's count of changes alone, as the fused optimizer does.
            member.data().f_copy_(&sent)?;
            start += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nn::weights::write_safetensors;

    use super::*;

    const CONFIG: OptimizerConfig = OptimizerConfig {
        kind: OptimizerKind::Adamw,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 1e-2,
    };
    const ADAFACTOR: OptimizerConfig = OptimizerConfig { kind: OptimizerKind::Adafactor, ..CONFIG };
    const ADAMW8BIT: OptimizerConfig = OptimizerConfig { kind: OptimizerKind::Adamw8bit, ..CONFIG };

    /// Parameters with gradients.
    fn parameters() -> Vec<(String, Tensor)> {
        let shapes: [&[i64]; 6] = [&[4, 3], &[4], &[8, 4], &[8], &[5, 8], &[1]];
        let parameters = shapes.into_iter().enumerate().map(|(index, shape)| {
            let value = nn::rng::normal(index as u64, shape).unwrap().set_requires_grad(true);
            value.sin().sum(Kind::Float).backward();
            (format!("layer.{index}.weight"), value)
        });
        parameters.collect()
    }

    /// Takes a step at every rank, and returns the weights after it and the file of each rank.
    fn step(
        config: OptimizerConfig,
        ranks: usize,
        folder: &std::path::Path,
    ) -> (Vec<Tensor>, Vec<PathBuf>) {
        let mut after: Vec<Tensor> = Vec::new();
        let mut files = Vec::new();
        for rank in 0..ranks {
            let parameters = parameters();
            let shard = (ranks > 1).then_some((rank, ranks));
            let mut optimizer = config.build_shard(&parameters, shard).unwrap();
            optimizer.optimizer.step(1e-2).unwrap();
            let file = folder.join(format!("{ranks}-{rank}.safetensors"));
            write_safetensors(&file, &optimizer.state()).unwrap();
            files.push(file);
            let owners = optimizer.shard.as_ref().map(|shard| shard.owners.clone());
            for (index, (_, value)) in parameters.iter().enumerate() {
                let is_own = owners.as_ref().is_none_or(|owners| owners[index] == rank);
                match after.get_mut(index) {
                    Some(found) if is_own => *found = value.detach(),
                    Some(_) => {}
                    None => after.push(value.detach()),
                }
            }
        }
        (after, files)
    }

    #[test]
    fn the_largest_parameters_are_spread_evenly() {
        let parameters = parameters();
        assert_eq!(owners(&parameters, 1), [0; 6]);
        // 40, 8 and 1 numbers for rank 0; 32, 12 and 4 for rank 1.
        assert_eq!(owners(&parameters, 2), [1, 1, 1, 0, 0, 0]);
        assert_eq!(owners(&parameters, 3), [2, 2, 1, 2, 0, 2]);
        let sums = |owners: &[usize], world: usize| -> Vec<usize> {
            let sum = |rank| {
                let own = parameters.iter().zip(owners).filter(|(_, owner)| **owner == rank);
                own.map(|((_, value), _)| value.numel()).sum()
            };
            (0..world).map(sum).collect()
        };
        assert_eq!(sums(&owners(&parameters, 2), 2), [49, 48]);
        // More ranks than parameters: some own nothing.
        assert_eq!(sums(&owners(&parameters, 8), 8).iter().filter(|sum| **sum == 0).count(), 2);
    }

    #[test]
    fn sharded_states_and_updates_are_those_of_one_rank_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        for config in [CONFIG, ADAFACTOR, ADAMW8BIT] {
            let (weights, files) = step(config, 1, folder.path());
            let whole = Weights::open_files(&files).unwrap();
            for ranks in [2, 3, 8] {
                let (sharded, files) = step(config, ranks, folder.path());
                assert_eq!(sharded, weights, "{ranks} ranks");
                let shards = Weights::open_files(&files).unwrap();
                assert!(shards.names().eq(whole.names()));
                for name in whole.names() {
                    assert_eq!(shards.tensor(name).unwrap(), whole.tensor(name).unwrap(), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_state_of_any_number_of_ranks_is_loaded_by_any_other() {
        let folder = tempfile::tempdir().unwrap();
        for config in [CONFIG, ADAFACTOR, ADAMW8BIT] {
            let (_, whole) = step(config, 1, folder.path());
            let whole = Weights::open_files(&whole).unwrap();
            for from in [1, 2, 3] {
                let (_, files) = step(config, from, folder.path());
                let stored = Weights::open_files(&files).unwrap();
                for to in [1, 2, 3, 8] {
                    let mut loaded = 0;
                    for rank in 0..to {
                        let shard = (to > 1).then_some((rank, to));
                        let mut optimizer = config.build_shard(&parameters(), shard).unwrap();
                        optimizer.load_state(&stored).unwrap();
                        for (name, tensor) in optimizer.state() {
                            assert_eq!(tensor, whole.tensor(&name).unwrap(), "{name}");
                            loaded += 1;
                        }
                    }
                    assert_eq!(loaded, whole.names().count(), "{from} to {to}");
                }
                // A shard alone is not the state.
                if from > 1 {
                    let part = Weights::open_files(&files[..1]).unwrap();
                    let mut optimizer = config.build_shard(&parameters(), None).unwrap();
                    let message = optimizer.load_state(&part).unwrap_err().to_string();
                    assert!(message.contains("missing"), "{message}");
                }
            }
        }
    }
}
