//! What a program finds on this machine: libtorch, CUDA and GPUs, the CPU, memory, disks and the
//! hub, and what is wrong with them. The command `doctor` of every program prints it:
//!
//! ```ignore
//! let report = nn::doctor::examine();
//! let text = if json { report.to_json()? } else { report.to_string() };
//! runkit::program::say(&text)?;
//! Ok(if report.is_usable() { ExitStatus::Done } else { ExitStatus::Failed })
//! ```
//!
//! Nothing here fails: a fact that cannot be had is left out, or is one of the [`Problem`]s.

mod machine;
mod problems;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::Settings;
use runkit::text::escape_for_terminal;
use serde::Serialize;

pub use machine::{Cpu, Memory};
pub use problems::{Level, Problem};

use crate::shim::facts;

/// How long each wait for the hub may take.
const HUB_LIMIT: Duration = Duration::from_secs(3);

/// Everything that [`examine`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The library that computes.
    pub libtorch: Libtorch,
    /// CUDA and its GPUs.
    pub cuda: Cuda,
    /// The processor.
    pub cpu: Cpu,
    /// The memory of the CPU.
    pub memory: Memory,
    /// The Hugging Face Hub and its cache; `None` if the environment names no usable one.
    pub hub: Option<Hub>,
    /// The current folder.
    pub folder: Disk,
    /// What is wrong, errors first.
    pub problems: Vec<Problem>,
}

/// The libtorch that this process loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Libtorch {
    /// The version that is loaded.
    pub version: String,
    /// The version that the program was built for.
    pub built_for: String,
    /// The file it was loaded from.
    pub path: Option<PathBuf>,
    /// The instructions its CPU kernels use, such as `AVX512`.
    pub cpu_capability: String,
    /// Threads it uses for one operation.
    pub threads: usize,
}

/// CUDA, as far as libtorch and the driver have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cuda {
    /// Whether this libtorch has CUDA kernels.
    pub built_in: bool,
    /// The CUDA version that libtorch is built for.
    pub runtime: Option<String>,
    /// The newest CUDA version that the driver supports; `None` without a driver.
    pub driver: Option<String>,
    /// The release of the driver, such as `580.95.05`.
    pub driver_release: Option<String>,
    /// The version of cuDNN.
    pub cudnn: Option<String>,
    /// The version of NCCL, if it can be loaded.
    pub nccl: Option<String>,
    /// The GPUs that `cuda:N` names, in that order.
    pub gpus: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gpu {
    /// `NVIDIA H200`, for example.
    pub name: Option<String>,
    /// The compute capability: 8.0 (Ampere) and later multiply bf16.
    pub compute_capability: Option<String>,
    /// Bytes that are free, with this process's CUDA context in place.
    pub free_bytes: Option<u64>,
    /// Bytes in all.
    pub total_bytes: Option<u64>,
    /// Why a small product on it failed.
    pub error: Option<String>,
}

/// The Hugging Face Hub, as the environment names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hub {
    /// Its address.
    pub endpoint: String,
    /// Whether `HF_HUB_OFFLINE` forbids downloads; the hub is not asked then.
    pub offline: bool,
    /// Whether the environment holds a token.
    pub token: bool,
    /// The HTTP status of its front page.
    pub status: Option<u16>,
    /// Why it did not answer.
    pub error: Option<String>,
    /// The cache of downloads.
    pub cache: Disk,
    /// Bytes of the files in the cache; `None` if there is no cache yet.
    pub cached_bytes: Option<u64>,
}

/// A folder and the room on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Disk {
    /// The folder.
    pub path: PathBuf,
    /// Bytes that this process may still write there.
    pub free_bytes: Option<u64>,
}

/// Gathers all facts and looks for problems. Takes up to ten seconds if the hub does not answer.
pub fn examine() -> Report {
    let facts: HashMap<String, String> =
        facts::facts(true).unwrap_or_default().into_iter().collect();
    let text = |key: &str| facts.get(key).cloned();
    let number = |key: &str| text(key).and_then(|value| value.parse::<u64>().ok());
    let gpu = |index: usize| {
        let key = |part: &str| format!("gpu.{index}.{part}");
        let gpu = Gpu {
            name: text(&key("name")),
            compute_capability: text(&key("capability")),
            free_bytes: number(&key("free")),
            total_bytes: number(&key("total")),
            error: text(&key("error")),
        };
        (gpu.total_bytes.is_some() || gpu.error.is_some()).then_some(gpu)
    };
    let libtorch = Libtorch {
        version: text("version").unwrap_or_default(),
        built_for: text("built_for").unwrap_or_default(),
        path: text("path").map(PathBuf::from),
        cpu_capability: text("cpu_capability").unwrap_or_default(),
        threads: number("threads").and_then(|count| count.try_into().ok()).unwrap_or(1),
    };
    let cuda = Cuda {
        built_in: facts.contains_key("cuda_runtime"),
        runtime: number("cuda_runtime").map(cuda_version),
        driver: number("cuda_driver").map(cuda_version),
        driver_release: machine::read_line("/sys/module/nvidia/version"),
        cudnn: number("cudnn").map(library_version),
        nccl: number("nccl").map(library_version),
        gpus: (0..).map_while(gpu).collect(),
    };
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let settings = Settings::from_environment();
    let mut report = Report {
        libtorch,
        cuda,
        cpu: Cpu::of_this_machine(),
        memory: Memory::of_this_machine(),
        hub: settings.as_ref().ok().map(Hub::of),
        folder: Disk::of(&folder),
        problems: Vec::new(),
    };
    report.problems = problems::of(&report, settings.err().map(|error| error.to_string()));
    report
}

/// libtorch and CUDA in a few words, for `--version`: `libtorch 2.11.0, CUDA 13.0`. Asks no driver.
pub fn version() -> String {
    let facts: HashMap<String, String> =
        facts::facts(false).unwrap_or_default().into_iter().collect();
    let cuda = facts.get("cuda_runtime").and_then(|version| version.parse().ok());
    let cuda =
        cuda.map_or("no CUDA".to_owned(), |version| format!("CUDA {}", cuda_version(version)));
    format!("libtorch {}, {cuda}", facts.get("built_for").map_or("?", String::as_str))
}

impl Report {
    /// Whether the programs can run here: there may be warnings, but no error.
    pub fn is_usable(&self) -> bool {
        self.problems.iter().all(|problem| problem.level != Level::Error)
    }

    /// The report as one JSON object that ends with a new line.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// One line for each fact, then the problems.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &str| {
            writeln!(formatter, "{name:<11} {}", escape_for_terminal(value))
        };
        let Self { libtorch, cuda, cpu, memory, hub, folder, problems } = self;
        let path = libtorch.path.as_deref().unwrap_or(Path::new("?"));
        line("libtorch", &format!("{}, {}", libtorch.version, path.display()))?;
        line("cuda", &cuda.to_string())?;
        for (index, gpu) in cuda.gpus.iter().enumerate() {
            line(&format!("cuda:{index}"), &gpu.to_string())?;
        }
        line("nccl", cuda.nccl.as_deref().unwrap_or("not found"))?;
        line("cpu", &cpu.to_string())?;
        let (features, used) = (cpu.features.join(" "), &libtorch.cpu_capability);
        line("cpu kernels", &format!("{used}, {} threads; CPU has {features}", libtorch.threads))?;
        line("bf16 on cpu", cpu.bf16_advice())?;
        line("memory", &memory.to_string())?;
        if let Some(hub) = hub {
            line("hub", &hub.to_string())?;
            line("hub token", if hub.token { "yes" } else { "no" })?;
            let cached = hub.cached_bytes.map_or("nothing".to_owned(), gigabytes);
            line("hub cache", &format!("{}, holds {cached}", hub.cache))?;
        }
        line("this folder", &folder.to_string())?;
        for Problem { level, what, hint } in problems {
            line(&format!("{level}:"), what)?;
            line("  hint:", hint)?;
        }
        if problems.is_empty() { line("problems", "none found") } else { Ok(()) }
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.runtime {
            Some(version) => write!(formatter, "{version} in libtorch")?,
            None => formatter.write_str("not in this libtorch")?,
        }
        match (&self.driver_release, &self.driver) {
            (Some(release), Some(version)) => {
                write!(formatter, ", driver {release} for CUDA {version}")?;
            }
            (None, Some(version)) => write!(formatter, ", driver for CUDA {version}")?,
            (_, None) => formatter.write_str(", no driver")?,
        }
        match &self.cudnn {
            Some(version) => write!(formatter, ", cuDNN {version}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name.as_deref().unwrap_or("a GPU"))?;
        if let Some(capability) = &self.compute_capability {
            write!(formatter, ", compute capability {capability}")?;
        }
        if let (Some(free), Some(total)) = (self.free_bytes, self.total_bytes) {
            write!(formatter, ", {} of {} free", gigabytes(free), gigabytes(total))?;
        }
        match &self.error {
            Some(_) => formatter.write_str(", not usable"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.endpoint)?;
        match self.status {
            _ if self.offline => formatter.write_str(", offline by HF_HUB_OFFLINE"),
            Some(status) => write!(formatter, ", answers HTTP {status}"),
            None => formatter.write_str(", does not answer"),
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.path.display())?;
        match self.free_bytes {
            Some(free) => write!(formatter, ", {} free", gigabytes(free)),
            None => Ok(()),
        }
    }
}

impl Disk {
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), free_bytes: runkit::files::free_space(path).ok() }
    }
}

impl Hub {
    fn of(settings: &Settings) -> Self {
        let answer = (!settings.offline).then(|| settings.reach(HUB_LIMIT));
        Self {
            endpoint: settings.endpoint.clone(),
            offline: settings.offline,
            token: settings.token.is_some(),
            status: answer.as_ref().and_then(|answer| answer.as_ref().ok().copied()),
            error: answer.and_then(Result::err),
            cache: Disk::of(&settings.cache),
            cached_bytes: blobs(&settings.cache),
        }
    }
}

/// Bytes of all `REPOSITORY/blobs/*`, which the snapshots link to; `None` if there is no cache.
fn blobs(cache: &Path) -> Option<u64> {
    let bytes = |folder: std::fs::DirEntry| -> u64 {
        let blobs = std::fs::read_dir(folder.path().join("blobs")).into_iter().flatten().flatten();
        blobs.filter_map(|blob| blob.metadata().ok()).map(|found| found.len()).sum()
    };
    Some(std::fs::read_dir(cache).ok()?.flatten().map(bytes).sum())
}

/// 13000 is 13.0.
fn cuda_version(number: u64) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// NCCL since 2.9 and cuDNN since 9: 22907 is 2.29.7.
fn library_version(number: u64) -> String {
    format!("{}.{}.{}", number / 10_000, number % 10_000 / 100, number % 100)
}

fn gigabytes(bytes: u64) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{:.1} GB", bytes as f64 / 1e9);
    text
}
