//! The columns of the two files of a cache of latents.

use super::{Column, ColumnType};

/// The dtype of stored latents and prompt embeddings.
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

    /// Bytes per number.
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

/// The columns of a part of cached latents, in file order. With `flipped` they include those of the
/// horizontally flipped images.
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
            "number of the caption in `captions-*.parquet`; null if `caption` is null",
        ),
        Column::new("image_0_uid", Text, true, "name of image 0, as in the input"),
        Column::new("image_1_uid", Text, true, "name of image 1, as in the input"),
    ];
    for image in [0, 1] {
        for (name, meaning) in [
            ("height", "height of image {} before resizing, in pixels"),
            ("width", "width of image {} before resizing, in pixels"),
            ("crop_top", "first row of the crop of the resized image {}"),
            ("crop_left", "first column of the crop of the resized image {}"),
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
        Column::new("error", Text, true, "detail of the failure, as a message; null if `ok`"),
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
            "number of the caption in the cache: 0 for the empty caption, then in order of first \
             appearance",
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
