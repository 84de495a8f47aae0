//! Copies of checkpoints elsewhere: which files they have, and how a copy is put together again.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{CHECKPOINTS, FILES, FileRecord, MARKER, Records, folder, remove, shards};

/// The name of a checkpoint's file below the folder of a run.
pub(crate) fn name_in_run(step: u64, file: &str) -> String {
    format!("{CHECKPOINTS}/step-{step:06}/{file}")
}

/// The step and the file of a name below the folder of a run, if a checkpoint has such a file.
pub(crate) fn parse(name: &str) -> Option<(u64, &str)> {
    let below = name.strip_prefix(CHECKPOINTS)?.strip_prefix("/step-")?;
    let (digits, file) = below.split_once('/')?;
    let step = digits.parse().ok()?;
    let is_file = FILES.contains(&file) || shards::is_shard(file);
    (is_file && name == name_in_run(step, file)).then_some((step, file))
}

/// The steps of the complete checkpoints among names below the folder of a run, in order.
pub(crate) fn complete_in<'names>(names: impl Iterator<Item = &'names String>) -> Vec<u64> {
    let marks = names.filter_map(|name| parse(name).filter(|(_, file)| *file == MARKER));
    let mut steps: Vec<u64> = marks.map(|(step, _)| step).collect();
    steps.sort_unstable();
    steps
}

/// Opens the files of a complete checkpoint, `DONE` last. They can be read to the end even if the
/// checkpoint is deleted meanwhile.
///
/// # Errors
/// If one cannot be opened.
pub(crate) fn open_files(checkpoint: &Path) -> Result<Vec<(String, File)>> {
    let mark = std::fs::read(checkpoint.join(MARKER));
    let mark = mark.with_context(|| format!("cannot read {}", checkpoint.display()))?;
    let names = records(&mark)?.into_keys().chain([MARKER.to_owned()]);
    let open = |name: String| {
        let path = checkpoint.join(&name);
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name, file))
    };
    names.map(open).collect()
}

/// The files that the `DONE` of a checkpoint lists, with their lengths; `None` if it is not one.
pub(crate) fn files_of(mark: &[u8]) -> Option<Vec<(String, u64)>> {
    let listed = records(mark).ok()?.into_iter();
    Some(listed.map(|(name, record)| (name, record.bytes)).collect())
}

/// Puts a copied checkpoint into the folder of a run. `mark` is its `DONE`, and `fetch` copies one of
/// its files to a path and returns its length and BLAKE3 hash. Whether all files are those that
/// `DONE` lists: if not, nothing is left of it.
///
/// # Errors
/// If `mark` is not that of a checkpoint, or a file cannot be copied.
pub(crate) fn put_together(
    checkpoints: &Path,
    step: u64,
    mark: &[u8],
    mut fetch: impl FnMut(&str, &Path) -> Result<(u64, String)>,
) -> Result<bool> {
    let target = folder(checkpoints, step);
    remove(&target)?;
    runkit::files::create_folder(&target)?;
    for (name, expected) in records(mark)? {
        let path = target.join(&name);
        runkit::files::create_folder(path.parent().unwrap_or(&target))?;
        let (bytes, blake3) = fetch(&name, &path)?;
        if (FileRecord { bytes, blake3 }) != expected {
            tracing::warn!("{}: damaged: it is not the file that {MARKER} lists", path.display());
            remove(&target)?;
            return Ok(false);
        }
    }
    runkit::files::write_atomic(target.join(MARKER), |file| file.write_all(mark))?;
    Ok(true)
}

/// The files that a mark lists.
fn records(mark: &[u8]) -> Result<Records> {
    let records: Records = serde_json::from_slice(mark)
        .with_context(|| format!("{MARKER} of a checkpoint: expected a list of files"))?;
    let foreign = records.keys().find(|name| {
        let name = name.as_str();
        !FILES.contains(&name) && !shards::is_shard(name)
    });
    ensure!(
        foreign.is_none() && !records.contains_key(MARKER),
        "{MARKER} of a checkpoint: expected files of a checkpoint, found {foreign:?}"
    );
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_checkpoints_are_recognised() {
        for (name, expected) in [
            ("checkpoints/step-000012/DONE", Some((12, "DONE"))),
            ("checkpoints/step-1000000/unet/config.json", Some((1_000_000, "unet/config.json"))),
            (
                "checkpoints/step-000012/optimizer-00001-of-00008.safetensors",
                Some((12, "optimizer-00001-of-00008.safetensors")),
            ),
            ("checkpoints/step-000012/mine.txt", None),
            ("checkpoints/step-12/DONE", None),
            ("checkpoints/step-000012/../DONE", None),
            ("step-000012/DONE", None),
        ] {
            assert_eq!(parse(name), expected, "{name}");
        }
        let names = ["checkpoints/step-000009/DONE", "checkpoints/step-000010/state.json"];
        assert_eq!(complete_in(names.map(str::to_owned).iter()), [9]);
    }

    #[test]
    fn a_mark_names_files_of_a_checkpoint_only() {
        for text in ["[]", "{\"../x\": {\"bytes\": 1, \"blake3\": \"\"}}", "{\"DONE\": 1}"] {
            assert!(records(text.as_bytes()).is_err(), "{text}");
        }
        let mark = b"{\"state.json\": {\"bytes\": 7, \"blake3\": \"\"}}";
        assert_eq!(files_of(mark), Some(vec![("state.json".to_owned(), 7)]));
        assert_eq!(files_of(b"{"), None);
    }
}
