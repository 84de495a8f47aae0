//! `evaluate`: from diffusion models and prompts to pictures.
//!
//! | what | module |
//! |---|---|
//! | what is drawn: prompts and their sets | [`prompts`] |
//! | pictures of every model, prompt and seed | [`generate`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod cli;
pub mod commands;
pub mod generate;
pub mod prompts;
