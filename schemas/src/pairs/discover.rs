//! What the user named → the input files, in a fixed order and with stable names.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::PairsError;

/// The end of the names that are picked up in a folder.
const EXTENSION: &str = "parquet";
/// The characters that make a name a pattern.
const PATTERN_CHARACTERS: [char; 3] = ['*', '?', '['];
/// As a shell matches: `*` does not reach into folders, nor match a leading dot.
const PATTERN_RULES: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name in the output: relative to the folder that was given, or to the pattern-free folder
    /// of a pattern; the bare file name of a single file. Parts are separated by `/`.
    pub source_file: String,
}

/// Finds the input files. Each input is a file, a folder (searched for `*.parquet` at any depth, names
/// that start with a dot left out) or a glob pattern. The order is the order given, and inside a
/// folder or pattern the order of the names, part by part.
///
/// # Errors
/// When an input names nothing, two files have one `source_file`, one file is named twice, or a name
/// is not UTF-8.
pub fn discover(inputs: &[PathBuf]) -> Result<Vec<InputFile>, PairsError> {
    if inputs.is_empty() {
        return Err(PairsError::NoInputs);
    }
    let mut files = Vec::new();
    for input in inputs {
        files.extend(find(input)?);
    }
    refuse_duplicates(&files)?;
    Ok(files)
}

fn find(input: &Path) -> Result<Vec<InputFile>, PairsError> {
    if input.is_dir() {
        let mut paths = Vec::new();
        walk(input, &mut HashSet::new(), &mut paths)?;
        return named(input, input, paths);
    }
    if input.exists() {
        let folder = input.parent().unwrap_or(Path::new(""));
        return named(input, folder, vec![input.to_owned()]);
    }
    match input.to_str() {
        Some(pattern) if pattern.contains(PATTERN_CHARACTERS) => {
            let search = |detail| PairsError::Search { path: input.to_owned(), detail };
            let mut paths = Vec::new();
            for found in glob::glob_with(pattern, PATTERN_RULES)
                .map_err(|error| search(error.to_string()))?
            {
                let path = found.map_err(|error| search(error.to_string()))?;
                if path.is_file() {
                    paths.push(path);
                }
            }
            named(input, &pattern_free_folder(input), paths)
        }
        _ => Err(PairsError::Missing { path: input.to_owned() }),
    }
}

/// The longest leading part of a pattern that has no pattern character in it.
fn pattern_free_folder(pattern: &Path) -> PathBuf {
    pattern
        .components()
        .take_while(|part| match part {
            Component::Normal(name) => !name.to_string_lossy().contains(PATTERN_CHARACTERS),
            _ => true,
        })
        .collect()
}

/// Collects the files below `folder`. A link back to a folder that was seen is not entered again.
fn walk(
    folder: &Path,
    seen: &mut HashSet<PathBuf>,
    files: &mut Vec<PathBuf>,
) -> Result<(), PairsError> {
    let search = |error: std::io::Error| PairsError::Search {
        path: folder.to_owned(),
        detail: error.to_string(),
    };
    if !seen.insert(folder.canonicalize().map_err(search)?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(search)? {
        let path = entry.map_err(search)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, seen, files)?;
        } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    Ok(())
}

/// Sorts the paths and gives them their names relative to `base`.
fn named(input: &Path, base: &Path, mut paths: Vec<PathBuf>) -> Result<Vec<InputFile>, PairsError> {
    if paths.is_empty() {
        return Err(PairsError::Nothing { path: input.to_owned() });
    }
    paths.sort();
    paths.into_iter().map(|path| name(path, base)).collect()
}

fn name(path: PathBuf, base: &Path) -> Result<InputFile, PairsError> {
    // A pattern such as `./*.parquet` yields paths without the leading dot.
    let relative = path.strip_prefix(base).ok().or_else(|| {
        let plain: PathBuf = base.components().filter(|part| *part != Component::CurDir).collect();
        path.strip_prefix(plain).ok()
    });
    let parts: Option<Vec<&str>> = relative
        .unwrap_or(&path)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .map(|part| part.as_os_str().to_str())
        .collect();
    match parts {
        Some(parts) => Ok(InputFile { source_file: parts.join("/"), path }),
        None => Err(PairsError::Name { path }),
    }
}

fn refuse_duplicates(files: &[InputFile]) -> Result<(), PairsError> {
    let mut names: HashMap<&str, &Path> = HashMap::new();
    let mut places: HashMap<PathBuf, &Path> = HashMap::new();
    for file in files {
        // A file that cannot be resolved is reported when it is opened.
        let place = file.path.canonicalize().unwrap_or_else(|_| file.path.clone());
        if let Some(first) = places.insert(place, &file.path) {
            return Err(PairsError::SameFile {
                first: first.to_owned(),
                second: file.path.clone(),
            });
        }
        if let Some(first) = names.insert(&file.source_file, &file.path) {
            return Err(PairsError::SameName {
                first: first.to_owned(),
                second: file.path.clone(),
                source_file: file.source_file.clone(),
            });
        }
    }
    Ok(())
}
