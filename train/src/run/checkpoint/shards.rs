//! The files of the optimizer's state: one, or one of each rank.

use std::path::Path;

const PREFIX: &str = "optimizer-";
const SUFFIX: &str = ".safetensors";

/// The file of a rank's state: `optimizer.safetensors`, or for (rank, how many there are) its
/// `optimizer-00001-of-00008.safetensors`, which counts from 1 as diffusers' shards do.
pub(super) fn name(shard: Option<(usize, usize)>) -> String {
    match shard {
        None => super::OPTIMIZER.to_owned(),
        Some((rank, count)) => format!("{PREFIX}{:05}-of-{count:05}{SUFFIX}", rank + 1),
    }
}

/// Whether this is the name of a shard.
pub(super) fn is_shard(name: &str) -> bool {
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let middle = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
    middle
        .and_then(|middle| middle.split_once("-of-"))
        .is_some_and(|(number, count)| digits(number) && digits(count))
}

/// The names of the shards in a folder, in order; none if it cannot be listed.
pub(super) fn list(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_shard(name)).collect();
    names.sort_unstable();
    names
}
