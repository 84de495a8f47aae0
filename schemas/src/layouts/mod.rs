//! The layouts in which sets of pairs are published, each read as a stream of [`PairRow`]s.
//!
//! | layout | a file is | a record gives | order of the images |
//! |---|---|---|---|
//! | `pickapic` | Parquet with `jpg_0, jpg_1, caption` | one pair | as stored |
//! | `chosen-rejected` | Parquet with `prompt, chosen, rejected` or `img_win, img_lose` | one pair | dealt |
//! | `ranked` | ImageRewardDB's `metadata-*.parquet`, HPDv2's `train.json` and `test.json` | every pair of different rank | as stored |
//! | `hpdv3` | JSON with `prompt, path1, path2` | one pair | dealt |
//! | `webdataset` | a tar of `KEY.jpg_0.jpg …` or `KEY.0.jpg KEY.1.jpg KEY.json` | one pair | as stored |
//! | `jsonl` | lines of `prompt, image_0, image_1` or `prompt, chosen, rejected` | one pair | as stored; dealt |
//! | `folder` | a folder of `NAME_w.EXT, NAME_l.EXT, NAME.txt` | one pair | dealt |
//!
//! `PairFile` tells the layout of a file by its name, columns or first record, or takes the one
//! that was named. Memory: a reader holds one batch of rows, and an opened file about 8 bytes a pair or
//! less, except `folder`, which keeps the names of its files.
//!
//! **Dealing.** A set that puts the winner first would leak its label into every tie (Equation 6
//! gives equal scores to image 0). Such a pair's images change places if [`is_swapped`] of its id:
//! a function of the id alone, so every program deals alike.
//!
//! **Hostile input.** A path that leaves the folder of its file, a missing image and one of more
//! than [`MAX_IMAGE_BYTES`] cost their row, which says why ([`PairRow::absent`]). Broken JSON and
//! a damaged archive are errors that name the record. Nothing is unpacked to the disk.

mod beside;
mod chosen_rejected;
mod convert;
mod deal;
mod folder;
mod hpdv2;
mod hpdv3;
mod image_reward_db;
mod json;
mod jsonl;
mod kept;
mod parts;
mod pickapic;
mod recognise;
mod records;
mod source;
mod table;
mod tar;
mod webdataset;
mod writer;
mod zipped;

use std::fmt;
use std::str::FromStr;

pub use convert::{
    Conversion, ConvertError, Converted, convert, convert_rows, converted, is_converted, names_of,
};
pub use deal::{DEALING, is_swapped};
pub use kept::{Kept, TextStore};
pub(crate) use recognise::{Listing, is_image_of_pair, recognised};
pub(crate) use records::{Batches, Records, open, open_keeping, open_kept};
pub(crate) use source::Folder;
pub use writer::{KEY_DEALING, KEY_FIRST_ROW, LabelsOf, PairsWriter, Sizes};

#[cfg(doc)]
use crate::pairs::PairRow;

/// The largest image file that is read; decoding has the same limit.
pub const MAX_IMAGE_BYTES: u64 = 64 << 20;
/// The largest record of a JSON file.
pub const MAX_RECORD_BYTES: usize = 4 << 20;
/// The most images of one prompt in a ranked set; published ones have up to nine.
pub const MAX_RANKED_IMAGES: usize = 256;

/// A layout of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layout {
    /// Parquet in Pick-a-Pic's columns.
    PickAPic,
    /// Parquet with the preferred and the other image.
    ChosenRejected,
    /// Ranked images of one prompt: ImageRewardDB and HPDv2.
    Ranked,
    /// HPDv3's JSON.
    Hpdv3,
    /// Tars of samples.
    WebDataset,
    /// Lines of JSON.
    Jsonl,
    /// Images and texts in a folder.
    Folder,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 7] = [
        Self::PickAPic,
        Self::ChosenRejected,
        Self::Ranked,
        Self::Hpdv3,
        Self::WebDataset,
        Self::Jsonl,
        Self::Folder,
    ];

    /// The name, as `--layout` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PickAPic => "pickapic",
            Self::ChosenRejected => "chosen-rejected",
            Self::Ranked => "ranked",
            Self::Hpdv3 => "hpdv3",
            Self::WebDataset => "webdataset",
            Self::Jsonl => "jsonl",
            Self::Folder => "folder",
        }
    }

    /// What its files look like, in a few words.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::PickAPic => "Parquet with jpg_0, jpg_1, caption",
            Self::ChosenRejected => "Parquet with prompt, chosen, rejected or img_win, img_lose",
            Self::Ranked => "ImageRewardDB's metadata-*.parquet, HPDv2's train.json and test.json",
            Self::Hpdv3 => "JSON with prompt, path1, path2",
            Self::WebDataset => "tars of KEY.jpg_0.jpg, KEY.jpg_1.jpg, KEY.original_prompt.txt",
            Self::Jsonl => "lines of JSON with prompt and image_0, image_1 or chosen, rejected",
            Self::Folder => "NAME_w.EXT, NAME_l.EXT, NAME.txt",
        }
    }

    /// Whether pairs of the layout may be dealt out ([`DEALING`]): those of `jsonl` are if their
    /// records say `chosen`.
    #[must_use]
    pub const fn is_dealt(self) -> bool {
        matches!(self, Self::ChosenRejected | Self::Hpdv3 | Self::Folder | Self::Jsonl)
    }

    /// The names of all layouts, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that is not a layout's.
#[derive(Debug, thiserror::Error)]
#[error("expected a layout, one of {}; found {found:?}", Layout::names())]
pub struct UnknownLayout {
    /// The name.
    pub found: String,
}

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|layout| layout.name() == name);
        known.ok_or_else(|| UnknownLayout { found: name.to_owned() })
    }
}

/// The names, with what the files look like, for `--help`.
impl clap::ValueEnum for Layout {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()).help(self.description()))
    }
}

impl serde::Serialize for Layout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Layout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_are_refused_with_the_list() {
        for layout in Layout::ALL {
            assert_eq!(layout.to_string().parse::<Layout>().unwrap(), layout);
        }
        let error = "wds".parse::<Layout>().unwrap_err().to_string();
        assert!(error.contains("hpdv3, webdataset") && error.contains("\"wds\""), "{error}");
    }
}
