//! `train`: Diffusion-DPO on consensus labels with a moving reference.
//!
//! | sentence of the paper | module |
//! |---|---|
//! | which image of a pair is the better one: votes, majority, sums | [`preference`] |
//! | sample a batch of pairs | [`data`], latents made ahead by [`cache`] |
//! | the loss of pairs (Equations 3, 8, 10) | [`loss`], of a [micro-batch](micro_batch) [`step`] |
//! | update the parameters, every T-th time the reference (Algorithm 1) | [`trainer`] |
//!
//! [`cli`] is the command line as typed, [`recipe`] settings under a name, [`config`] a validated
//! run, [`commands`] gives all of it meaning. [`run`](mod@run) is a whole run: [`checkpoint`]s, the
//! [`probe`], [`samples`], [`record`]s, and the result by [`export`].
//!
//! Names of tensors carry their shape: `P` pairs, `B` batch, `C` channels, `H` height, `W` width,
//! `L` tokens, `D` width of a text.

#![allow(non_snake_case, reason = "names of tensors carry their shape")]

mod advice;
pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod export;
pub mod file_hashes;
pub mod folder;
pub mod learning_rate;
pub mod loss;
pub mod loss_scale;
pub mod manifest;
pub mod micro_batch;
pub mod model;
pub mod opened;
pub mod pair_list;
pub mod plan;
pub mod preference;
pub mod probe;
pub mod randomness;
pub mod recipe;
pub mod record;
pub mod report;
pub mod run;
pub mod samples;
mod session;
pub mod statistics;
pub mod step;
pub mod trainer;
