//! `train`: Diffusion-DPO on consensus labels, with a reference model that is updated.
//!
//! | sentence of the paper | module |
//! |---|---|
//! | which image of a pair is the chosen one: votes, majority, sums (Equations 6, 7) | [`preference`] |
//! | sample a batch of pairs | [`data`], with latents made beforehand by [`cache`] |
//! | the loss of a pair (Equations 3, 8, 10) | [`loss`], of a [micro-batch](micro_batch) [`step`] |
//! | update the parameters (Algorithm 1) | [`trainer`], [`optimizer`], [`learning_rate`] |
//! | update the reference model every T steps (Algorithm 1) | [`reference`](mod@reference) |
//!
//! [`cli`] is the command line as typed, [`recipe`] settings under a name, [`config`] a validated
//! run, [`commands`] what each command does. [`run`](mod@run) is a whole run: checkpoints, the
//! probe, sample images, and the result, a pipeline.
//!
//! Names of tensors carry their shape: `P` pairs, `B` batch, `C` channels, `H` height, `W` width,
//! `L` tokens, `D` features of a token.

#![allow(non_snake_case, reason = "names of tensors carry their shape")]

pub mod adapter;
pub mod cache;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod learning_rate;
pub mod loss;
pub mod loss_scale;
pub mod merge;
pub mod micro_batch;
pub mod model;
pub mod optimizer;
pub mod preference;
pub mod randomness;
pub mod recipe;
pub mod record;
pub mod reference;
pub mod report;
pub mod run;
pub mod settings;
pub mod single_file;
pub mod statistics;
pub mod step;
pub mod trainer;
