//! `evaluate`: from diffusion models and prompts to images, scores, win rates and a report.
//!
//! | what | module |
//! |---|---|
//! | what a user names: models, folders of images, sizes | [`sources`] |
//! | prompts and their sets | [`prompts`] |
//! | images of every model, prompt and seed | [`generate`] |
//! | a score of every metric for every image | [`score`] |
//! | several processes that divide the work | [`sharing`] |
//! | scores by prompt, model and image | [`scores_index`] |
//! | the numbers beside a win rate | [`statistics`] |
//! | pairs of scored images, and their labels | [`pairs`] |
//! | win rates and means in the paper's layouts | [`tables`] |
//! | the report, its figures, and contact sheets | [`present`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.
//!
//! Every part works alone. Win rates of scores that come from anywhere:
//!
//! ```
//! use evaluate::tables::{Tables, TablesConfig};
//! use schemas::scores::ScoreRow;
//!
//! let scores = [("base", 0.21), ("dpo", 0.24)].map(|(model, score)| ScoreRow {
//!     model: model.to_owned(),
//!     prompt_set: "mine".to_owned(),
//!     prompt_id: "1".to_owned(),
//!     prompt: "a red fox".to_owned(),
//!     category: None,
//!     seed: 0,
//!     metric: "pickscore".to_owned(),
//!     score: Some(score),
//!     image: format!("{model}/1.png"),
//!     error: None,
//! });
//! let tables = Tables::compute(&scores, &TablesConfig::default())?;
//! assert!(tables.to_text().contains("dpo vs base"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cli;
pub mod commands;
pub mod generate;
mod output;
mod owned;
pub mod pairs;
pub mod present;
pub mod prompts;
pub mod score;
pub mod scores_index;
pub mod sharing;
pub mod sources;
pub mod statistics;
pub mod tables;
