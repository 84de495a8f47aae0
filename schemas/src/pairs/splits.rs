//! Finds the split of a data set that a file belongs to, by its name or that of a folder above it.
//!
//! The names are those of the `datasets` library (`datasets/data_files.py`), among them the
//! spelling of published sets, `validation_unique-00000-of-00001-HASH.parquet`.

use std::path::Path;

/// The names of splits: `SPLIT_KEYWORDS` of `datasets`, and two more.
const KEYWORDS: [&str; 12] = [
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "holdout",
    "heldout",
];
/// Pick-a-Pic's `validation_unique` and `test_unique` are splits of their own.
const UNIQUE: &str = "unique";
/// The hub's prefix for a split that it converted only in part.
const PARTIAL: &str = "partial-";

/// The split of each file; `None` if no name tells it. `files` are names below a location, parts
/// separated by `/`, each with its location.
pub(super) fn splits_of(files: &[(&str, &Path)]) -> Vec<Option<String>> {
    let mut splits: Vec<Option<String>> = files.iter().map(|(name, at)| split(name, at)).collect();
    // If there is train-00000-of-00002, the file extra-00000-of-00001 is a split too, as for
    // `datasets`.
    if splits.iter().any(Option::is_some) {
        for (split, (name, _)) in splits.iter_mut().zip(files) {
            *split = split.take().or_else(|| sharded(stem(name)).map(str::to_owned));
        }
    }
    splits
}

/// The split that the name of a file, or of a folder above it, tells; `None` if neither does. Parts
/// of the name are separated by `/`.
#[must_use]
pub fn split_in_name(name: &str) -> Option<String> {
    split(name, Path::new("/"))
}

fn split(name: &str, location: &Path) -> Option<String> {
    let mut parts = name.rsplit('/');
    parts.next().and_then(|file| in_name(stem(file))).or_else(|| parts.find_map(in_name)).or_else(
        || {
            let location = std::path::absolute(location).ok()?;
            in_name(location.file_name()?.to_str()?)
        },
    )
}

fn stem(file: &str) -> &str {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// `NAME` of `NAME-00000-of-00645-HASH`.
fn sharded(stem: &str) -> Option<&str> {
    let (before, after) = stem.rsplit_once("-of-")?;
    let (name, number) = before.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = after.split(['-', '.']).next().unwrap_or_default();
    (digits(number) && digits(count) && !name.is_empty()).then_some(name)
}

/// The split in a name: the one keyword among its words, with the suffix of a published split.
fn in_name(name: &str) -> Option<String> {
    let shards = sharded(name);
    let name = shards.unwrap_or(name);
    let name = name.split_once('=').map_or(name, |(_, value)| value);
    let name = name.strip_prefix(PARTIAL).unwrap_or(name);
    let mut found: Option<(usize, &str)> = None;
    let mut position = 0;
    for word in name.split(|character: char| !character.is_ascii_alphabetic()) {
        if KEYWORDS.iter().any(|keyword| word.eq_ignore_ascii_case(keyword)) {
            match found {
                // train_test.parquet names neither.
                Some((_, other)) if !other.eq_ignore_ascii_case(word) => return None,
                Some(_) => {}
                None => found = Some((position, word)),
            }
        }
        // A separator may be a character of several bytes.
        position += word.len();
        position += name.get(position..)?.chars().next().map_or(0, char::len_utf8);
    }
    let (position, word) = found?;
    let rest = name.get(position + word.len()..)?;
    let separators = |character: char| !character.is_ascii_alphabetic();
    let next = rest.trim_start_matches(separators);
    let next = next.split(separators).next().unwrap_or_default();
    if next.eq_ignore_ascii_case(UNIQUE) {
        return Some(format!("{}_{UNIQUE}", word.to_ascii_lowercase()));
    }
    match shards {
        Some(_) => Some(name.get(position..)?.trim_end_matches(separators).to_owned()),
        None => Some(word.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<Option<String>> {
        let location = Path::new("/data/pairs");
        splits_of(&names.iter().map(|name| (*name, location)).collect::<Vec<_>>())
    }

    #[test]
    fn splits_are_read_of_file_and_folder_names() {
        for (name, expected) in [
            ("data/train-00000-of-00645-b66ac786bf6fb553.parquet", Some("train")),
            (
                "validation_unique-00000-of-00001-33ead111845fc9c4.parquet",
                Some("validation_unique"),
            ),
            ("test_unique-00000-of-00001.parquet", Some("test_unique")),
            ("data/train/0000.parquet", Some("train")),
            ("default/partial-train/0000.parquet", Some("train")),
            ("split=validation/part-0.parquet", Some("validation")),
            ("Test/x.snappy.parquet", Some("test")),
            ("train.parquet", Some("train")),
            ("train0001.parquet", Some("train")),
            ("val_2.parquet", Some("val")),
            ("my_pairs.dev.parquet", Some("dev")),
            ("train-00000-of-00002.snappy.parquet", Some("train")),
            ("pickapic_train.parquet", Some("train")),
            ("validation_unique.parquet", Some("validation_unique")),
            ("test-unique/0.parquet", Some("test_unique")),
            ("train_pairs/0.parquet", Some("train")),
            ("train/test-00000-of-00001.parquet", Some("test")),
            ("pairs-00000-of-00003.parquet", None),
            ("train_test.parquet", None),
            ("latest.parquet", None),
            ("constrained/part-00000.parquet", None),
            ("bücher-train.parquet", Some("train")),
            ("train_ü.parquet", Some("train")),
        ] {
            assert_eq!(of(&[name]), [expected.map(str::to_owned)], "{name}");
        }
    }

    #[test]
    fn beside_a_known_split_every_sharded_name_is_one() {
        let alone = of(&["extra-00000-of-00001.parquet", "pairs-00000-of-00002.parquet"]);
        assert_eq!(alone, [None, None]);
        let beside = of(&["train-00000-of-00001.parquet", "extra-00000-of-00001.parquet"]);
        assert_eq!(beside, [Some("train".to_owned()), Some("extra".to_owned())]);
    }

    #[test]
    fn the_location_itself_may_name_the_split() {
        let names = [("0.parquet", Path::new("/data/train")), ("0.parquet", Path::new("/data/x"))];
        assert_eq!(splits_of(&names), [Some("train".to_owned()), None]);
    }
}
