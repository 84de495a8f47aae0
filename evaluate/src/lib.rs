//! `evaluate`: from diffusion models and prompts to images, scores, win rates and a report.
//!
//! | what | module |
//! |---|---|
//! | what a user names: models, folders of images, sizes | [`sources`] |
//! | prompts and their sets | [`prompts`] |
//! | images of every model, prompt and seed | [`generate`] |
//! | a score of every metric for every image | [`score`] |
//! | scores by prompt, model and image | [`scores_index`] |
//! | the numbers beside a win rate | [`statistics`] |
//! | win rates and means in the paper's layouts | [`tables`] |
//! | the report, its figures, and contact sheets | [`present`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod cli;
pub mod commands;
pub mod generate;
mod output;
mod owned;
pub mod present;
pub mod prompts;
pub mod score;
pub mod scores_index;
pub mod sources;
pub mod statistics;
pub mod tables;
