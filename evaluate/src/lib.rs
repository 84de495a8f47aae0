//! `evaluate`: from diffusion models and prompts to images, scores, win rates and a report.
//!
//! | what | module |
//! |---|---|
//! | what is drawn: prompts and their sets | [`prompts`] |
//! | images of every model, prompt and seed | [`generate`] |
//! | every image judged by every metric | [`score`] |
//! | scores regrouped by prompt and image | [`scored`] |
//! | contact sheets | [`grid`] |
//! | figures of the tables | [`figures`] |
//! | the page with all of it | [`report`] |
//! | drawings, text and pixels below these | [`render`], [`bitmap`] |
//! | the numbers beside a win rate | [`statistics`] |
//! | win rates and means in the paper's layouts | [`tables`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod bitmap;
pub mod cli;
pub mod commands;
pub mod figures;
pub mod generate;
pub mod grid;
mod output;
mod owned;
pub mod prompts;
pub mod render;
pub mod report;
pub mod score;
pub mod scored;
pub mod statistics;
pub mod tables;
