//! The one table of columns. The Arrow schemas, the checks of the readers, the reference pages and
//! the DuckDB views are made from it, so they cannot disagree.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};

/// The type of a column of a file that this workspace writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// UTF-8 text.
    Text,
    /// UTF-8 text with few distinct values, an Arrow dictionary (pandas reads it as a category).
    Category,
    /// 64-bit signed integer.
    Int64,
    /// 32-bit signed integer.
    Int32,
    /// 8-bit signed integer.
    Int8,
    /// Single precision number, never NaN or infinite.
    Float32,
    /// Double precision number, never NaN or infinite.
    Float64,
    /// A list of half precision numbers, never NaN or infinite.
    Float16List,
    /// A list of single precision numbers, never NaN or infinite.
    Float32List,
}

impl ColumnType {
    /// The Arrow type that the file declares to its readers.
    pub fn file_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Category => {
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
            }
            Self::Int64 => DataType::Int64,
            Self::Int32 => DataType::Int32,
            Self::Int8 => DataType::Int8,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Float16List => list_of(DataType::Float16),
            Self::Float32List => list_of(DataType::Float32),
        }
    }

    /// The Arrow type in memory. Text is held as views of the pages it was read from: no copy on the
    /// way through, and no 2 GiB limit on the text of one batch.
    pub fn memory_type(self) -> DataType {
        match self {
            Self::Text | Self::Category => DataType::Utf8View,
            other => other.file_type(),
        }
    }

    /// The type that Parquet itself stores, as Arrow names it without an embedded Arrow schema.
    pub(crate) fn stored_type(self) -> DataType {
        match self {
            Self::Text | Self::Category => DataType::Utf8,
            other => other.file_type(),
        }
    }

    /// The name in the reference page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Category => "string (dictionary)",
            Self::Int64 => "int64",
            Self::Int32 => "int32",
            Self::Int8 => "int8",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Float16List => "list of float16",
            Self::Float32List => "list of float32",
        }
    }
}

/// A list whose elements are never null, named as the Parquet format asks for.
fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element, false)))
}

/// One column of a file that this workspace writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name in the file.
    pub name: String,
    /// The type of its values.
    pub kind: ColumnType,
    /// Whether a value may be null, which means "not computed" or "not in the input".
    pub nullable: bool,
    /// One sentence for the reference page.
    pub meaning: Cow<'static, str>,
}

impl Column {
    fn new(
        name: impl Into<String>,
        kind: ColumnType,
        nullable: bool,
        meaning: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { name: name.into(), kind, nullable, meaning: meaning.into() }
    }
}

/// The columns that stand before those of the scorers in `labels.parquet`.
pub(crate) const COLUMNS_BEFORE_SCORERS: usize = 7;
/// The columns of each scorer in `labels.parquet`.
pub(crate) const COLUMNS_PER_SCORER: usize = 3;
/// The end of the name of a vote column; the scorers of a file are found by it.
pub(crate) const VOTE_SUFFIX: &str = "_vote";

/// The columns of `labels.parquet` for these scorers, in file order.
pub fn labels_columns<S: AsRef<str>>(scorers: &[S]) -> Vec<Column> {
    use ColumnType::{Category, Float32, Float64, Int8, Int64, Text};
    let mut columns = vec![
        Column::new(
            "pair_id",
            Text,
            false,
            "stable name of the pair, unique in the file: the input's `ranking_id` where it has \
             one that no earlier row has, else `source_file:source_row`, and with `#2`, `#3` behind \
             it where an earlier row has that too",
        ),
        Column::new("source_file", Category, false, "input file the pair comes from"),
        Column::new("source_row", Int64, false, "row of the pair in that file, from 0"),
        Column::new("caption", Text, true, "prompt of both images, as in the input"),
        Column::new("image_0_uid", Text, true, "name of image 0, as in the input"),
        Column::new("image_1_uid", Text, true, "name of image 1, as in the input"),
        Column::new(
            "human_label_0",
            Float64,
            true,
            "the input's `label_0`: 1 when people preferred image 0, 0 when image 1, 0.5 for a tie",
        ),
    ];
    for scorer in scorers {
        let scorer = scorer.as_ref();
        for image in [0, 1] {
            columns.push(Column::new(
                format!("{scorer}_score_{image}"),
                Float32,
                true,
                format!(
                    "raw score of image {image} by `{scorer}`: a cosine for a clip-type scorer, \
                     the head's output for an aesthetic one"
                ),
            ));
        }
        columns.push(Column::new(
            format!("{scorer}{VOTE_SUFFIX}"),
            Int8,
            true,
            format!(
                "vote of `{scorer}`: +1 when `{scorer}_score_0` ≥ `{scorer}_score_1` (Eq. 6), \
                 else -1; null where it does not vote"
            ),
        ));
    }
    columns.extend([
        Column::new("vote_sum", Int8, true, "sum of the votes; null when `status` is not `ok`"),
        Column::new(
            "consensus",
            Int8,
            true,
            "sign of `vote_sum` (Eq. 7): +1 for image 0, -1 for image 1, 0 for a tie; null when \
             `status` is not `ok`",
        ),
        Column::new("status", Text, false, "`ok`, or why the row has no consensus (see below)"),
        Column::new("error", Text, true, "detail of the failure, for people; null when `ok`"),
    ]);
    columns
}

/// The number type that cached latents and text features are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredFloat {
    /// IEEE half precision: 11 significant bits, more than bf16 has.
    Float16,
    /// Single precision.
    Float32,
}

impl StoredFloat {
    /// The name in manifests: `float16` or `float32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }

    /// The bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }

    /// A list of such numbers.
    pub fn list(self) -> ColumnType {
        match self {
            Self::Float16 => ColumnType::Float16List,
            Self::Float32 => ColumnType::Float32List,
        }
    }
}

/// The columns of a part of cached latents, in file order; with `flipped` also those of the flipped
/// images.
pub fn latents_columns(stored: StoredFloat, flipped: bool) -> Vec<Column> {
    use ColumnType::{Category, Int32, Int64, Text};
    let mut columns = vec![
        Column::new("pair_id", Text, false, "name of the pair, as in the labels"),
        Column::new("source_file", Category, false, "input file the pair comes from"),
        Column::new("source_row", Int64, false, "row of the pair in that file, from 0"),
        Column::new("caption", Text, true, "prompt of both images, as in the input"),
        Column::new(
            "caption_index",
            Int64,
            true,
            "number of the caption in `captions-*.parquet`; null when `caption` is",
        ),
        Column::new("image_0_uid", Text, true, "name of image 0, as in the input"),
        Column::new("image_1_uid", Text, true, "name of image 1, as in the input"),
    ];
    for image in [0, 1] {
        for (name, meaning) in [
            ("height", "height of image {} before it was resized, in pixels"),
            ("width", "width of image {} before it was resized, in pixels"),
            ("crop_top", "first row of the resized image {} that was encoded"),
            ("crop_left", "first column of the resized image {} that was encoded"),
        ] {
            let meaning = meaning.replace("{}", &image.to_string());
            columns.push(Column::new(format!("image_{image}_{name}"), Int32, true, meaning));
        }
        for variant in if flipped { &["", "flipped_"][..] } else { &[""] } {
            let flip = if variant.is_empty() { "" } else { ", flipped horizontally" };
            for (name, meaning) in
                [("mean", "mean of the latents"), ("std", "standard deviation of the latents")]
            {
                columns.push(Column::new(
                    format!("image_{image}_{variant}{name}"),
                    stored.list(),
                    true,
                    format!("{meaning} of image {image}{flip}: channel, row, column; not scaled"),
                ));
            }
        }
    }
    columns.extend([
        Column::new(
            "status",
            Text,
            false,
            "`ok`, or why the row has no latents: a `status` of the labels",
        ),
        Column::new("error", Text, true, "detail of the failure, for people; null when `ok`"),
    ]);
    columns
}

/// The columns of a part of cached captions, in file order.
pub fn captions_columns(stored: StoredFloat) -> Vec<Column> {
    vec![
        Column::new(
            "caption_index",
            ColumnType::Int64,
            false,
            "number of the caption in the cache, from 0: the empty caption, then all in order of \
             first appearance",
        ),
        Column::new("caption", ColumnType::Text, false, "the caption"),
        Column::new(
            "prompt_embeds",
            stored.list(),
            false,
            "prompt embeddings that the UNet attends to: token, feature; for SDXL the features of \
             both text encoders are concatenated",
        ),
        Column::new(
            "pooled_prompt_embeds",
            stored.list(),
            true,
            "pooled and projected output of SDXL's second text encoder; null for other models",
        ),
    ]
}

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

/// Whether a number says what a person chose: 1 for image 0, 0 for image 1, 0.5 for a tie.
pub fn is_human_label(number: f64) -> bool {
    number == 0.0 || number == 0.5 || number == 1.0
}

/// What a column of the pairs may be stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairType {
    /// Text in any of Arrow's forms.
    Text,
    /// A floating point or whole number.
    Number,
    /// A whole number or text.
    Identifier,
    /// True or false.
    Boolean,
    /// An encoded image (JPEG, PNG, WebP): plain bytes, or the struct `{bytes, path}` of the
    /// `datasets` library.
    Image,
}

impl PairType {
    /// The name in the reference page and in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Number => "number or bool",
            Self::Identifier => "string, whole number or UUID",
            Self::Boolean => "bool, or 0 and 1",
            Self::Image => "binary or struct{bytes, path}",
        }
    }
}

/// When a column of the pairs must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always.
    Required,
    /// Only where images are read.
    WithImages,
    /// Never; absent is the same as null in every row.
    Optional,
}

/// One column of a pairs file, in Pick-a-Pic's naming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairColumn {
    /// The name in the file.
    pub name: &'static str,
    /// What it may be stored as.
    pub kind: PairType,
    /// When it must be there.
    pub presence: Presence,
    /// One sentence for the reference page.
    pub meaning: &'static str,
}

/// The columns that are read from a pairs file. Others, such as the rest of Pick-a-Pic's, are never
/// read and may have any type.
pub const PAIR_COLUMNS: [PairColumn; 9] = [
    PairColumn {
        name: "caption",
        kind: PairType::Text,
        presence: Presence::Required,
        meaning: "prompt of both images",
    },
    PairColumn {
        name: "image_0_uid",
        kind: PairType::Identifier,
        presence: Presence::Required,
        meaning: "name of image 0; equal names are the same image",
    },
    PairColumn {
        name: "image_1_uid",
        kind: PairType::Identifier,
        presence: Presence::Required,
        meaning: "name of image 1; equal names are the same image",
    },
    PairColumn {
        name: "jpg_0",
        kind: PairType::Image,
        presence: Presence::WithImages,
        meaning: "encoded image 0",
    },
    PairColumn {
        name: "jpg_1",
        kind: PairType::Image,
        presence: Presence::WithImages,
        meaning: "encoded image 1",
    },
    PairColumn {
        name: "label_0",
        kind: PairType::Number,
        presence: Presence::Optional,
        meaning: "people's choice: 1 for image 0, 0 for image 1, 0.5 for a tie, any other number is \
                  refused; NaN counts as null",
    },
    PairColumn {
        name: "label_1",
        kind: PairType::Number,
        presence: Presence::Optional,
        meaning: "1 - `label_0`; where it is not, the row has no human label",
    },
    PairColumn {
        name: "ranking_id",
        kind: PairType::Identifier,
        presence: Presence::Optional,
        meaning: "name of the pair; null or empty counts as absent",
    },
    PairColumn {
        name: "has_label",
        kind: PairType::Boolean,
        presence: Presence::Optional,
        meaning: "whether `label_0` was given by a person; where it is false, the row has no human \
                  label",
    },
];
