//! The networks of Stable Diffusion and of its reward models, on libtorch.
//!
//! From a diffusers folder to images; token ids come from a tokenizer of the crate `media`:
//!
//! ```no_run
//! # use std::ops::ControlFlow;
//! use nn::device::{DeviceChoice, Precision};
//! use nn::pipeline::{Pipeline, PipelineFiles, SampleRequest};
//! use nn::schedule::SamplerKind;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (prompt_ids, empty_ids): (Vec<tch::Tensor>, Vec<tch::Tensor>) = (Vec::new(), Vec::new());
//! let files = PipelineFiles::open("data/mini/sd".as_ref(), None)?;
//! let pipeline = Pipeline::load(&files, DeviceChoice::Auto.resolve()?, Precision::F32)?;
//! let request = SampleRequest {
//!     prompt: &pipeline.encode_prompt(&prompt_ids)?,
//!     negative: &pipeline.encode_negative_prompt(&empty_ids, true)?,
//!     seeds: &[1, 2, 3],
//!     steps: 30,
//!     guidance: 7.5,
//!     sampler: SamplerKind::DpmSolverPlusPlus2M,
//!     height: 32,
//!     width: 32,
//! };
//! let images = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(()))?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/generate.rs` is the whole program.
//!
//! - [`pipeline`]: a diffusers folder, or one on the hub, to prompt embeddings and images;
//! - [`single_file`]: checkpoints of A1111 and ComfyUI to folders of diffusers and back;
//! - [`unet`]: the denoising network of Stable Diffusion 1.5, 2.1 and XL, for inference and
//!   training;
//! - [`vae`]: the autoencoder between images and latents;
//! - [`text`]: the text encoders that the UNet reads;
//! - [`schedule`]: noise schedules, and the samplers that denoise, which diffusers calls
//!   schedulers;
//! - [`lora`]: adapters of the UNet and the text encoders, trained, read and written;
//! - [`optimizer`]: AdamW, Adafactor and the clipping of the gradient norm, as PyTorch has them;
//! - [`clip`]: the two towers of CLIP-type models, in the layouts of `transformers` and
//!   `open_clip`;
//! - [`siglip`]: the two towers of SigLIP and SigLIP 2;
//! - [`average`]: weights that follow others slowly, for a moving average;
//! - [`aesthetic`]: the aesthetic heads on image features of CLIP (LAION's) and of SigLIP;
//! - [`image_reward`]: BLIP with a head, which reads image and caption together;
//! - [`distilbert`]: a text classifier, for prompts that are safe to show;
//! - [`weights`]: checkpoint files to tensors: memory-mapped, checked, strict, without running
//!   code;
//! - [`config`]: options of `config.json` files, strict as well;
//! - [`device`]: devices and precisions, threads, inference mode;
//! - [`rng`]: noise from a seed, the same numbers as Python's torch;
//! - [`distributed`]: several processes that work as one;
//! - [`doctor`]: what a program finds on a machine.
//!
//! This crate is the only one that calls libtorch layer by layer. It knows nothing of image files,
//! captions or Parquet.
//!
//! Names of tensors carry their shape: `B` batch, `C` channels, `H` height, `W` width of an image
//! or of a network, `L` tokens, `D` the joint embedding.

#![allow(non_snake_case, reason = "names of tensors carry their shape")]

pub mod aesthetic;
pub mod average;
pub mod clip;
pub mod config;
pub mod device;
pub mod distilbert;
pub mod distributed;
pub mod doctor;
pub mod error;
pub mod image_reward;
mod layers;
pub mod lora;
pub mod optimizer;
pub mod pipeline;
pub mod rng;
pub mod schedule;
mod shim;
pub mod siglip;
pub mod single_file;
pub mod text;
pub mod unet;
pub mod vae;
pub mod weights;

pub use error::{ModelError, NetworkError};
