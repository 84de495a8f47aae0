//! One row of each of the two files.

use crate::labels::Status;

/// Which pixels of an image were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the decoded image, in pixels.
    pub size: (u32, u32),
    /// First row and first column of the resized image.
    pub crop: (u32, u32),
}

/// A distribution of latents: independent normal variables, in the order channel, row, column.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Means, not scaled.
    pub mean: Vec<f32>,
    /// Standard deviations, not scaled.
    pub std: Vec<f32>,
}

/// The latents of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageMoments {
    /// Those of the image as it is.
    pub plain: Moments,
    /// Those of the horizontally flipped image, if the cache holds them.
    pub flipped: Option<Moments>,
}

/// One row of `latents-*.parquet` without the latents themselves;
/// [`crate::columns::latents_columns`] says what each value means.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentRow {
    /// Stable name of the pair.
    pub pair_id: String,
    /// The input file.
    pub source_file: String,
    /// The row in that file, from 0.
    pub source_row: i64,
    /// The prompt.
    pub caption: Option<String>,
    /// The number of the prompt in the cache.
    pub caption_index: Option<i64>,
    /// The names of the two images.
    pub image_uid: [Option<String>; 2],
    /// Which pixels were encoded; present if there are latents.
    pub geometry: [Option<Geometry>; 2],
    /// Whether there are latents.
    pub status: Status,
    /// Detail of a failure.
    pub error: Option<String>,
}

/// One row of `captions-*.parquet`; [`crate::columns::captions_columns`] says what each value
/// means.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptionRow {
    /// The number of the caption in the cache.
    pub caption_index: i64,
    /// The caption.
    pub caption: String,
    /// The prompt embeddings, in the order token, feature.
    pub prompt_embeds: Vec<f32>,
    /// The pooled prompt embedding, for SDXL.
    pub pooled_prompt_embeds: Option<Vec<f32>>,
}
