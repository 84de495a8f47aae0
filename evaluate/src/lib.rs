//! `evaluate`: from diffusion models and prompts to pictures, scores, win rates and a report.
//!
//! | what | module |
//! |---|---|
//! | what is drawn: prompts and their sets | [`prompts`] |
//! | pictures of every model, prompt and seed | [`generate`] |
//! | every picture judged by every metric | [`score`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod cli;
pub mod commands;
pub mod generate;
pub mod prompts;
pub mod score;
