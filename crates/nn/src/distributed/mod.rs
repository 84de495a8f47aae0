//! Several processes that work as one: the ranks of a world, on c10d of libtorch.
//!
//! torchrun or srun starts the processes ([`runkit::launch`]). They meet in the launcher's TCP
//! store ([`Store`]); [`World`] has the collective operations: Gloo for tensors and values on the
//! CPU, NCCL for tensors on GPUs, and neither if a process is alone. Work that needs no collective
//! operation is dealt ([`Deal`]).

mod deal;
mod error;
mod group;
mod nccl;
mod stops;
mod store;
mod values;
mod world;

pub use deal::{Deal, Units};
pub use error::DistributedError;
pub use stops::sharing_stops;
pub use store::Store;
pub use world::{Pending, World};
