//! One row of labels and the reasons why a row may have no votes.

use std::fmt;
use std::str::FromStr;

/// Why a row has votes or has none. Later versions may add reasons; readers treat an unknown one as
/// a row without votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Every voter has voted.
    Ok,
    /// An image is null or has no bytes.
    MissingImage,
    /// An image could not be decoded: damaged, truncated, or in an unsupported format.
    DecodeError,
    /// An image has more bytes, a longer side or more pixels than the limits allow.
    ImageTooLarge,
    /// The caption is null.
    MissingCaption,
    /// The caption holds nothing but white space.
    EmptyCaption,
    /// The caption has more bytes than a prompt may have.
    CaptionTooLong,
    /// One uid names images with different bytes in the input. Earlier versions wrote this; now
    /// each of the images is scored.
    UidConflict,
    /// A scorer returned NaN or an infinity. Earlier versions wrote this in labels; now such a row is
    /// [`Status::Partial`]. A cache of latents has it if the autoencoder did.
    NonFinite,
    /// A scorer has no score or no vote here. The others have their scores and votes, and `error`
    /// names the scorer and the reason. Whether they decide the row is a setting (`--missing`).
    Partial,
}

impl Status {
    /// All reasons, in the order of the reference page.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::MissingImage,
        Self::DecodeError,
        Self::ImageTooLarge,
        Self::MissingCaption,
        Self::EmptyCaption,
        Self::CaptionTooLong,
        Self::UidConflict,
        Self::NonFinite,
        Self::Partial,
    ];

    /// The value in the column `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::MissingImage => "missing_image",
            Self::DecodeError => "decode_error",
            Self::ImageTooLarge => "image_too_large",
            Self::MissingCaption => "missing_caption",
            Self::EmptyCaption => "empty_caption",
            Self::CaptionTooLong => "caption_too_long",
            Self::UidConflict => "uid_conflict",
            Self::NonFinite => "non_finite",
            Self::Partial => "partial",
        }
    }

    /// One sentence for the reference page.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "every voter has voted",
            Self::Partial => {
                "a scorer failed here: its scores and its vote are null, those of the others are \
                 there, and `error` names scorer and reason; `vote_sum` and `consensus` are null, or \
                 with `--missing vote` those of the voters that are there"
            }
            Self::MissingImage => "an image is null, has no bytes, or its file is not there",
            Self::DecodeError => {
                "an image could not be decoded: damaged, truncated, or in an unsupported format"
            }
            Self::ImageTooLarge => {
                "an image has more bytes, a longer side or more pixels than the limits allow"
            }
            Self::MissingCaption => "the caption is null",
            Self::EmptyCaption => "the caption holds nothing but white space",
            Self::CaptionTooLong => "the caption has more bytes than a prompt may have",
            Self::UidConflict => {
                "one uid names images with different bytes in the input (only in files of earlier \
                 versions; now each image is scored)"
            }
            Self::NonFinite => {
                "a network returned NaN or an infinity (in labels only in files of earlier versions, \
                 which now say `partial`)"
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A status that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0:?}")]
pub struct UnknownStatus(pub String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// One row of `labels.parquet`; [`crate::columns::labels_columns`] says what each value means.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelRow {
    /// Stable and unique name of the pair.
    pub pair_id: String,
    /// The input file.
    pub source_file: String,
    /// The row in that file, from 0.
    pub source_row: i64,
    /// The prompt.
    pub caption: Option<String>,
    /// The names of the two images.
    pub image_uid: [Option<String>; 2],
    /// The human label.
    pub human_label_0: Option<f64>,
    /// The scores of image 0 and image 1 by each scorer.
    pub scores: Vec<[Option<f32>; 2]>,
    /// The vote of each scorer: +1, -1 or none. A scorer that compares the images themselves votes
    /// without scores.
    pub votes: Vec<Option<i8>>,
    /// The sum of the votes; none if the row is not decided.
    pub vote_sum: Option<i8>,
    /// Its sign.
    pub consensus: Option<i8>,
    /// Whether there are votes, or why not.
    pub status: Status,
    /// Detail of a failure.
    pub error: Option<String>,
}
