//! The columns of `scores.parquet` and `winrates.parquet`.

use super::{Column, ColumnType};

/// The columns of `scores.parquet`, in file order.
pub fn scores_columns() -> Vec<Column> {
    use ColumnType::{Category, Float32, Int64, Text};
    vec![
        Column::new("model", Category, false, "name of the model that generated the image"),
        Column::new("prompt_set", Category, false, "name of the set of prompts"),
        Column::new("prompt_id", Text, false, "name of the prompt, unique in its set"),
        Column::new("prompt", Text, false, "the prompt"),
        Column::new(
            "category",
            Category,
            true,
            "category of the prompt in its set: PartiPrompts' `Category`, HPD's style; null if the \
             set has no such column",
        ),
        Column::new("seed", Int64, false, "seed of the image's noise, the same for every model"),
        Column::new("metric", Category, false, "name of the scorer"),
        Column::new("score", Float32, true, "score of the image; null if it could not be computed"),
        Column::new(
            "image",
            Text,
            false,
            "path of the image, relative to the folder of this file; absolute if it lies elsewhere",
        ),
        Column::new(
            "error",
            Text,
            true,
            "why there is no score, as a message; null if there is one",
        ),
    ]
}

/// The columns of `winrates.parquet`, in file order.
pub fn win_rates_columns() -> Vec<Column> {
    use ColumnType::{Category, Float64, Int64};
    vec![
        Column::new(
            "prompt_set",
            Category,
            false,
            "name of the set of prompts; `all` is all sets together, if there are several",
        ),
        Column::new("category", Category, true, "category of the prompts; null for the whole set"),
        Column::new("model_a", Category, false, "the model whose wins are counted"),
        Column::new("model_b", Category, false, "the model it is compared with"),
        Column::new("metric", Category, false, "name of the scorer"),
        Column::new("statistic", Category, false, "how a prompt is decided (see below)"),
        Column::new(
            "selected_by",
            Category,
            true,
            "the metric that selected one image of each model; null if the statistic selects none",
        ),
        Column::new("seeds", Int64, false, "images of each prompt that both models have"),
        Column::new("prompts", Int64, false, "prompts that were compared"),
        Column::new(
            "excluded",
            Int64,
            false,
            "prompts not compared because one of the two models has no image or score",
        ),
        Column::new("wins", Int64, false, "prompts that `model_a` wins"),
        Column::new("ties", Int64, false, "prompts with exact ties"),
        Column::new("losses", Int64, false, "prompts that `model_b` wins"),
        Column::new(
            "strict_rate",
            Float64,
            false,
            "the paper's number: `wins / prompts`; for `all_pairs` the fraction of pairs won",
        ),
        Column::new(
            "win_rate",
            Float64,
            false,
            "the same, but a tie counts one half: `(wins + ties / 2) / prompts`",
        ),
        Column::new(
            "win_rate_low",
            Float64,
            false,
            "lower end of the 95 % Wilson interval of `win_rate`",
        ),
        Column::new("win_rate_high", Float64, false, "upper end of that interval"),
        Column::new(
            "p_value",
            Float64,
            false,
            "exact two-sided sign test of `wins` against `losses`",
        ),
        Column::new(
            "p_holm",
            Float64,
            false,
            "`p_value` with Holm's correction over the table that holds the row",
        ),
        Column::new(
            "mean_difference",
            Float64,
            false,
            "mean over prompts of the score of `model_a` minus that of `model_b`",
        ),
        Column::new(
            "mean_difference_low",
            Float64,
            false,
            "lower end of the 95 % interval of `mean_difference`, by a bootstrap over prompts",
        ),
        Column::new("mean_difference_high", Float64, false, "upper end of that interval"),
        Column::new(
            "minimum_detectable_effect",
            Float64,
            false,
            "smallest distance of a win rate from 0.5 that a test with this many prompts detects \
             at 80 % power and the two-sided 5 % level",
        ),
    ]
}
