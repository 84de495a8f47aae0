//! Which optimizer follows the gradients, its settings, and its states on several ranks.

use std::collections::{HashSet, VecDeque};

use anyhow::{Context as _, Result};
use nn::NetworkError;
use nn::distributed::{Pending, World};
use nn::optimizer::{
    Adafactor, AdafactorConfig, AdamW, AdamWConfig, Optimizer, OptimizerKind, zero_grad,
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
        let shard = (is_sharded && world.size() > 1).then(|| OptimizerShard {
            rank: world.rank(),
            world: world.size(),
            owners: owners(parameters, world.size()),
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

/// Which of the ranks keeps the state of which parameter.
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
