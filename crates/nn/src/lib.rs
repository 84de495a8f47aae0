//! The networks, and the only place where libtorch is called layer by layer.
//!
//! - [`device`]: which device and precision, threads, inference mode;
//! - [`weights`]: checkpoint files to tensors: memory-mapped, checked, strict, no code run;
//! - [`clip`]: the two towers of CLIP-type models, in the layouts of `transformers` and `open_clip`;
//! - [`aesthetic`]: the LAION aesthetic head on CLIP image features;
//! - [`distilbert`]: classes of texts, for prompts that are safe to show;
//! - [`unet`]: the denoising network of Stable Diffusion 1.5, 2.1 and XL, for inference and training;
//! - [`optimizer`]: AdamW, Adafactor, and the norm of gradients, as PyTorch's libraries have them;
//! - [`schedule`]: noise schedules and samplers, as diffusers computes them;
//! - [`rng`]: noise from a seed, as Python's torch draws it.
//!
//! Images, texts, Parquet and where files come from are other crates' matters.
//!
//! Names of tensors carry their shape: `B` batch, `C` channels, `H` height, `W` width of an image
//! or of a network, `L` tokens, `D` the joint embedding.

#![allow(non_snake_case, reason = "names of tensors carry their shape")]

pub mod aesthetic;
pub mod clip;
pub mod config;
pub mod device;
pub mod distilbert;
pub mod doctor;
pub mod error;
mod layers;
pub mod optimizer;
pub mod pipeline;
pub mod rng;
pub mod schedule;
mod shim;
pub mod text;
pub mod unet;
pub mod vae;
pub mod weights;

pub use error::{ModelError, NetworkError};
