//! The processor and the memory, as Linux and the control group of a container show them.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;
use tch::Device;

use super::gigabytes;
use crate::device::{self, Precision};

/// The processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cpu {
    /// Its name.
    pub model: Option<String>,
    /// Cores, without hyper-threads.
    pub cores: usize,
    /// Threads that this process may run at once.
    pub threads: usize,
    /// Those of its instruction sets that make a difference here.
    pub features: Vec<&'static str>,
    /// Whether products of bf16 numbers are computed in f32 and rounded.
    pub upcasts_bf16: bool,
}

/// The memory of the CPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// In the machine.
    pub total_bytes: Option<u64>,
    /// Free, or in caches that make room.
    pub available_bytes: Option<u64>,
    /// What the control group allows, if that is less than the machine has.
    pub limit_bytes: Option<u64>,
}

impl Cpu {
    pub(super) fn of_this_machine() -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            model: fields(&text, "model name").next().map(str::to_owned),
            cores: cores(&text).unwrap_or(threads),
            threads,
            features: features(),
            upcasts_bf16: Precision::Bf16.upcasts_bf16(Device::Cpu),
        }
    }

    /// What to expect of `--dtype bf16` on this CPU.
    pub(super) fn bf16_advice(&self) -> &'static str {
        if self.upcasts_bf16 {
            "no fast bf16 instructions: products run in f32, so bf16 saves memory, not time"
        } else {
            "multiplied in hardware: --dtype bf16 is faster than f32"
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, cores, threads, .. } = self;
        let model = model.as_deref().unwrap_or(std::env::consts::ARCH);
        write!(formatter, "{model}, {cores} cores, {threads} threads for this process")
    }
}

impl Memory {
    pub(super) fn of_this_machine() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = |name: &str| {
            let value = fields(&text, name).next()?;
            Some(value.strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
        };
        let total_bytes = kibibytes("MemTotal");
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = limits(&groups).filter_map(|path| read_line(&path)?.parse().ok()).min();
        Self {
            total_bytes,
            available_bytes: kibibytes("MemAvailable"),
            // Without a limit the file holds "max", or the largest multiple of a page.
            limit_bytes: limit.filter(|limit| Some(*limit) < total_bytes),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: Option<u64>| bytes.map_or("?".to_owned(), gigabytes);
        let (total, available) = (shown(self.total_bytes), shown(self.available_bytes));
        write!(formatter, "{total}, {available} available")?;
        match self.limit_bytes {
            Some(limit) => {
                write!(formatter, ", limited to {} by the control group", gigabytes(limit))
            }
            None => Ok(()),
        }
    }
}

/// The first line of a small file of the system; `None` if it is empty or not there.
pub(super) fn read_line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// The values of `name: value` lines.
fn fields<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// How many pairs of socket and core there are; `None` if the system does not number them.
fn cores(cpuinfo: &str) -> Option<usize> {
    let (sockets, cores) = (fields(cpuinfo, "physical id"), fields(cpuinfo, "core id"));
    let distinct: HashSet<(&str, &str)> = sockets.zip(cores).collect();
    (!distinct.is_empty()).then_some(distinct.len())
}

/// The files that may hold the memory limit of this process: of its own group and those above it,
/// in both versions of control groups. In a container the own group is the root of what is mounted.
fn limits(groups: &str) -> impl Iterator<Item = String> {
    groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let above = Path::new(group).ancestors();
        above.map(|path| format!("{root}{}/{file}", path.display())).collect()
    })
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("AVX512", std::arch::is_x86_feature_detected!("avx512f")),
        ("AVX512_VNNI", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("AVX512_BF16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("AMX_BF16", device::has_amx_bf16()),
    ];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::{cores, fields, limits};

    #[test]
    fn the_processor_is_read_from_the_system() {
        let text = "model name\t: A\nphysical id\t: 0\ncore id\t: 0\n\nmodel name\t: A\n\
                    physical id\t: 0\ncore id\t: 0\n\nphysical id\t: 1\ncore id\t: 0\n";
        assert_eq!(fields(text, "model name").next(), Some("A"));
        assert_eq!(cores(text), Some(2));
        assert_eq!(cores("model name: B"), None);
    }

    #[test]
    fn memory_limits_are_looked_for_in_both_versions_of_control_groups() {
        let found: Vec<String> = limits("4:memory:/a\n1:cpu:/a\n0::/b/c\n").collect();
        assert_eq!(
            found,
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory//memory.limit_in_bytes",
                "/sys/fs/cgroup/b/c/memory.max",
                "/sys/fs/cgroup/b/memory.max",
                "/sys/fs/cgroup//memory.max",
            ]
        );
    }
}
