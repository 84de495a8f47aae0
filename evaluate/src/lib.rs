//! `evaluate`: from diffusion models and prompts to pictures, and from their scores to tables.
//!
//! | what | module |
//! |---|---|
//! | what is drawn: prompts and their sets | [`prompts`] |
//! | pictures of every model, prompt and seed | [`generate`] |
//! | the numbers beside a win rate | [`statistics`] |
//! | win rates and means in the paper's layouts | [`tables`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod cli;
pub mod commands;
pub mod generate;
pub mod prompts;
pub mod statistics;
pub mod tables;
