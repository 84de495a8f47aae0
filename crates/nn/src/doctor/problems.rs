//! What is wrong with a machine, and what to do.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::{Gpu, Hub, Report, gigabytes};

/// Less room than this on a disk is worth a warning: the weights of one Stable Diffusion 1.5.
const LITTLE_ROOM: u64 = 5_000_000_000;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The programs do not run here, or not as they run by default.
    Error,
    /// Something is slower than it could be, or will fail later.
    Warning,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub level: Level,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Padded by the caller's format.
        formatter.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// The problems of a machine, errors first. `hub_error` says why the environment names no usable
/// hub.
pub(super) fn of(report: &Report, hub_error: Option<String>) -> Vec<Problem> {
    let mut found = libtorch(report);
    found.extend(cuda(report));
    for (index, gpu) in report.cuda.gpus.iter().enumerate() {
        found.extend(self::gpu(index, gpu));
    }
    if let Some(error) = hub_error {
        found.push(warning(error, "set HF_HOME to a folder for downloads"));
    }
    found.extend(report.hub.iter().flat_map(hub));
    found.extend(room("the current folder", &report.folder.path, report.folder.free_bytes));
    found.sort_by_key(|problem| problem.level);
    found
}

fn error(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { level: Level::Error, what: what.into(), hint: hint.into() }
}

fn warning(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { level: Level::Warning, what: what.into(), hint: hint.into() }
}

fn libtorch(Report { libtorch, cpu, .. }: &Report) -> Vec<Problem> {
    let mut found = Vec::new();
    // 2.11.0+cu130 is 2.11.0 as well.
    if libtorch.version.split('+').next() != Some(&libtorch.built_for) {
        let (built, loaded) = (&libtorch.built_for, &libtorch.version);
        found.push(error(
            format!("this program is built for libtorch {built}, but loaded {loaded}"),
            format!("install torch=={built}, or take other libraries off LD_LIBRARY_PATH"),
        ));
    }
    if cfg!(target_arch = "x86_64") && !cpu.features.contains(&"AVX2") {
        found.push(warning(
            "the CPU has no AVX2: networks run many times slower",
            "in a virtual machine, pass the CPU of the host through",
        ));
    }
    found
}

fn cuda(Report { cuda, .. }: &Report) -> Option<Problem> {
    let has_nvidia = cuda.driver_release.is_some() || cuda.driver.is_some();
    match (cuda.built_in, has_nvidia, cuda.gpus.is_empty()) {
        (false, true, _) => Some(warning(
            "there is an NVIDIA driver, but this libtorch has no CUDA: programs use the CPU",
            "install the CUDA build of torch 2.11 and build the programs with it",
        )),
        (true, true, true) => Some(warning(
            "libtorch has CUDA and there is a driver, but no usable GPU: programs use the CPU",
            match (number(&cuda.driver), number(&cuda.runtime)) {
                (Some(driver), Some(runtime)) if driver < runtime => {
                    "the driver is older than libtorch's CUDA: update it"
                }
                _ => "look at nvidia-smi and CUDA_VISIBLE_DEVICES; pass --gpus all to a container",
            },
        )),
        _ => None,
    }
}

fn gpu(index: usize, gpu: &Gpu) -> Option<Problem> {
    if let Some(reason) = &gpu.error {
        return Some(error(
            format!("a small product on cuda:{index} failed: {reason}"),
            "look at nvidia-smi; hide this GPU with CUDA_VISIBLE_DEVICES, or use --device cpu",
        ));
    }
    match number(&gpu.compute_capability) {
        Some(capability) if capability < 8.0 => Some(warning(
            format!("cuda:{index} is older than Ampere: it does not multiply bf16"),
            "use --dtype f32, or f16",
        )),
        _ => None,
    }
}

fn hub(hub: &Hub) -> Vec<Problem> {
    let offline = "download elsewhere and set HF_HUB_OFFLINE=1; behind a proxy set HTTPS_PROXY; \
                   a mirror is set with HF_ENDPOINT";
    let mut found = match (hub.status, &hub.error) {
        (_, Some(reason)) => {
            vec![warning(format!("{} does not answer: {reason}", hub.endpoint), offline)]
        }
        (Some(status @ (403 | 407 | 500..)), _) => {
            vec![warning(format!("{} answers HTTP {status}", hub.endpoint), offline)]
        }
        _ => Vec::new(),
    };
    found.extend(room("the cache of the hub", &hub.cache.path, hub.cache.free_bytes));
    found
}

/// A warning if there is little room on the disk of a folder.
fn room(name: &str, path: &Path, free: Option<u64>) -> Option<Problem> {
    let free = free.filter(|free| *free < LITTLE_ROOM)?;
    let what = format!("only {} are free for {name}, {}", gigabytes(free), path.display());
    Some(warning(what, "free some, or choose another disk (the cache: HF_HOME)"))
}

fn number(version: &Option<String>) -> Option<f64> {
    version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Gpu, examine};
    use super::{Level, cuda, gpu, hub, libtorch, room};
    use std::path::Path;

    #[test]
    fn what_is_wrong_is_found() {
        let mut report = examine();
        let found = libtorch(&report);
        assert!(found.iter().all(|problem| problem.level == Level::Warning), "{found:?}");
        report.libtorch.version = "2.10.0+cu128".to_owned();
        assert_eq!(libtorch(&report)[0].level, Level::Error);

        report.cuda.gpus.clear();
        report.cuda.driver_release = Some("580.95.05".to_owned());
        report.cuda.built_in = false;
        assert!(cuda(&report).unwrap().what.contains("no CUDA"));
        report.cuda.built_in = true;
        report.cuda.driver = Some("12.4".to_owned());
        report.cuda.runtime = Some("13.0".to_owned());
        assert!(cuda(&report).unwrap().hint.contains("update"));

        let mut card = Gpu {
            name: None,
            compute_capability: Some("10.0".to_owned()),
            free_bytes: Some(1),
            total_bytes: Some(2),
            error: None,
        };
        assert_eq!(gpu(0, &card), None);
        card.compute_capability = Some("7.5".to_owned());
        assert_eq!(gpu(0, &card).unwrap().level, Level::Warning);
        card.error = Some("busy".to_owned());
        assert_eq!(gpu(0, &card).unwrap().level, Level::Error);

        let folder = Path::new("/x");
        assert!(room("x", folder, Some(1)).is_some());
        assert!(room("x", folder, Some(1 << 40)).is_none() && room("x", folder, None).is_none());
        if let Some(mut found) = report.hub {
            (found.status, found.error) = (Some(407), None);
            assert_eq!(hub(&found)[0].level, Level::Warning);
        }
    }
}
