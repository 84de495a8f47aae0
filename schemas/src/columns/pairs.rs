//! The columns that are read from a file of pairs, the input.

/// How a column of the pairs may be stored.
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

/// Whether a column of the pairs is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always.
    Required,
    /// Only to read images.
    WithImages,
    /// Never; an absent column is null in every row.
    Optional,
}

/// One column of a pairs file, in Pick-a-Pic's naming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairColumn {
    /// The name in the file.
    pub name: &'static str,
    /// How it may be stored.
    pub kind: PairType,
    /// Whether it is required.
    pub presence: Presence,
    /// One sentence for the reference page.
    pub meaning: &'static str,
}

/// The columns of a pairs file that this crate reads. It never reads others, such as the rest of
/// Pick-a-Pic's, which may have any type.
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
        meaning: "human label: 1 for image 0, 0 for image 1, 0.5 for a tie; any other number is an \
                  error, NaN counts as null",
    },
    PairColumn {
        name: "label_1",
        kind: PairType::Number,
        presence: Presence::Optional,
        meaning: "1 - `label_0`; if it is not, the row has no human label",
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
        meaning: "whether a person gave `label_0`; if false, the row has no human label",
    },
];
