//! Devices, precisions, threads, and inference mode.

use std::fmt;
use std::str::FromStr;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use runkit::text::quoted;
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, TchError, Tensor};

use crate::shim::{self, InferenceMode};

/// A device or precision that was asked for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The text names no device.
    #[error("unknown device {}, expected auto, cpu, cuda or cuda:N{}", quoted(.0), Meant(device_meant(.0)))]
    UnknownDevice(String),
    /// The text names no precision.
    #[error("unknown precision {}, expected f32, bf16 or f16{}", quoted(.0), Meant(precision_meant(.0)))]
    UnknownPrecision(String),
    /// CUDA was asked for where libtorch sees none.
    #[error(
        "cuda was asked for, but libtorch sees no usable GPU\n\
         hint: check the driver with nvidia-smi, or use --device cpu"
    )]
    NoCuda,
    /// A GPU was asked for by a number that does not exist.
    #[error("cuda:{index} was asked for, but there are only {count} GPUs (numbered from 0)")]
    NoSuchGpu {
        /// The number asked for.
        index: usize,
        /// How many GPUs libtorch sees.
        count: usize,
    },
    /// Half precision on the CPU.
    #[error(
        "f16 on the CPU is about a hundred times slower than f32\n\
         hint: use --dtype bf16, or f32 where scores must agree to the last digits"
    )]
    HalfOnCpu,
    /// bf16 on a GPU that has none.
    #[error(
        "cuda:{index} is older than Ampere (compute capability below 8.0) and computes bf16 in \
         f32, slower than f32 itself\n\
         hint: use --dtype f32, or f16 to score and to generate images"
    )]
    NoBf16 {
        /// The GPU's number.
        index: usize,
    },
}

impl DeviceError {
    /// Whether the word is understood and the device is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoCuda | Self::NoSuchGpu { .. })
    }
}

/// The device that another program means by this word.
fn device_meant(word: &str) -> Option<&'static str> {
    let word = word.trim().to_lowercase();
    match word.trim_end_matches(|end: char| end.is_ascii_digit() || end == ':') {
        "gpu" | "gpus" | "nvidia" | "cuda" | "cuda:" | "" => Some("cuda"),
        other => runkit::config::nearest_name(other, ["auto", "cpu", "cuda"]),
    }
}

/// The number format that another program means by this word.
fn precision_meant(word: &str) -> Option<&'static str> {
    match word.trim().to_lowercase().replace("torch.", "").as_str() {
        "fp16" | "float16" | "half" | "16" => Some("f16"),
        "bfloat16" | "bfp16" | "brain" => Some("bf16"),
        "fp32" | "float32" | "float" | "single" | "full" | "32" | "no" | "tf32" => Some("f32"),
        other => runkit::config::nearest_name(other, ["f32", "bf16", "f16"]),
    }
}

/// A hint, if something near was meant.
struct Meant(Option<&'static str>);

impl fmt::Display for Meant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(formatter, "\nhint: did you mean {name}?"),
            None => Ok(()),
        }
    }
}

/// A device as the user names it: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU where libtorch sees one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The device itself; an error where it is not there.
    pub fn resolve(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if Cuda::is_available() => Ok(Device::Cuda(0)),
            Self::Auto => Ok(Device::Cpu),
            Self::Cuda(_) if !Cuda::is_available() => Err(DeviceError::NoCuda),
            Self::Cuda(index) => {
                let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
                if index < count {
                    Ok(Device::Cuda(index))
                } else {
                    Err(DeviceError::NoSuchGpu { index, count })
                }
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::UnknownDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// `auto`, `cpu`, `cuda` or `cuda:N`, as a device that is there.
pub fn parse(text: &str) -> Result<Device, DeviceError> {
    text.parse::<DeviceChoice>()?.resolve()
}

/// The number format a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bit floating point.
    #[default]
    F32,
    /// 16 bit floating point with the exponent of `f32`.
    Bf16,
    /// IEEE 16 bit floating point; GPUs only.
    F16,
}

impl Precision {
    /// libtorch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// True where products of this format are computed in f32 and rounded after it: bf16 on a processor
    /// that multiplies f32 faster. In training no cast of a weight is kept then for the gradients.
    pub fn upcasts_bf16(self, device: Device) -> bool {
        self == Self::Bf16 && device == Device::Cpu && !multiplies_bf16()
    }

    /// Refuses what would only look like a hang: `f16` on the CPU, `bf16` on a GPU before Ampere.
    pub fn check(self, device: Device) -> Result<(), DeviceError> {
        match (self, device) {
            (Self::F16, Device::Cpu) => Err(DeviceError::HalfOnCpu),
            // A GPU that cannot be asked is told of by the first tensor on it.
            (Self::Bf16, Device::Cuda(index)) if !shim::has_bf16(index).unwrap_or(true) => {
                Err(DeviceError::NoBf16 { index })
            }
            _ => Ok(()),
        }
    }
}

/// True on an x86 processor whose oneDNN may not use AVX-512, for want of it or because `ONEDNN_MAX_CPU_ISA`
/// names less. It has fewer kernels then.
pub(crate) fn lacks_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static LACKS: LazyLock<bool> = LazyLock::new(|| {
            let limit = std::env::var("ONEDNN_MAX_CPU_ISA").unwrap_or_default().to_uppercase();
            let is_less = ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"];
            is_less.contains(&limit.as_str()) || !std::arch::is_x86_feature_detected!("avx512f")
        });
        *LACKS
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True where a product in bf16 takes less time than one in f32. Of x86 processors that takes AVX-512 with
/// bf16, and of Intel's AMX as well: where a virtual machine hides it, libtorch's product in bf16 does 0.6 times
/// as many operations in a second (docs/performance.md).
fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e]; // "GenuineIntel"
        static MULTIPLIES: LazyLock<bool> = LazyLock::new(|| {
            let maker = std::arch::x86_64::__cpuid(0);
            let is_intel = [maker.ebx, maker.edx, maker.ecx] == INTEL;
            let has_amx = has_amx_bf16();
            let has_bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
            !lacks_avx512() && has_bf16 && (has_amx || !is_intel)
        });
        *MULTIPLIES
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// True if the processor shows Intel's AMX with bf16, which std does not detect yet.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_amx_bf16() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX_BF16 != 0
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(DeviceError::UnknownPrecision(text.to_owned())),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// How many CPU threads libtorch uses for one operation.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Sets how many CPU threads libtorch uses for one operation, for all threads that call it later.
/// Zero counts as one. Threads of other pools that spin beside them cost more than they give: the
/// sum should not exceed the cores.
pub fn set_threads(count: usize) {
    tch::set_num_threads(i32::try_from(count.max(1)).unwrap_or(i32::MAX));
}

/// Keeps the memory of large CPU tensors for the next ones when they are gone, from now on and for the
/// whole process; for the start of a program. A pass of a network asks for the same blocks every time, and
/// the system would clear their pages every time.
///
/// What is kept and what is in use stay together below 17/16 of what was in use at most, and below 3/2 where
/// blocks serve requests smaller than they are. On the heap of the C library, gradients that stay and activations
/// that go would leave holes between each other: a fifth of the memory of a training pass of Stable Diffusion at 512 px (docs/performance.md).
pub fn reuse_memory() {
    shim::reuse_memory();
}

/// The tensor on the device. To a GPU it is copied while this thread goes on, out of memory that the GPU can
/// read itself: an ordinary copy would wait for all work that the GPU was given before.
///
/// # Errors
/// Where libtorch has not enough memory.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(index)) => shim::upload(tensor, index),
        _ => tensor.f_to_device(device),
    }
}

/// Memory of a GPU in bytes, at its most so far in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PeakDeviceMemory {
    /// What tensors held at once.
    pub allocated: u64,
    /// What the driver gave for tensors; the rest was free for reuse or lost between them.
    pub reserved: u64,
}

/// How much memory of a GPU was in use at most; none for the CPU.
///
/// # Errors
/// Where libtorch sees no such GPU.
pub fn peak_memory(device: Device) -> Result<Option<PeakDeviceMemory>, TchError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let [allocated, reserved] = shim::peak_device_bytes(index)?;
    Ok(Some(PeakDeviceMemory { allocated, reserved }))
}

/// Runs `body` in libtorch's inference mode on this thread: no gradients and no bookkeeping for
/// them. What it returns may be read and computed with, but not changed in place outside.
pub fn inference<T>(body: impl FnOnce() -> T) -> T {
    let _mode = InferenceMode::enter();
    body()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:13"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1x",
            "CPU",
            "cuda:99999999999999999999",
        ] {
            assert_eq!(
                text.parse::<DeviceChoice>(),
                Err(DeviceError::UnknownDevice(text.to_owned()))
            );
        }
        assert_eq!(parse("cpu"), Ok(Device::Cpu));
        if !Cuda::is_available() {
            assert_eq!(parse("cuda:0"), Err(DeviceError::NoCuda));
            assert_eq!(parse("auto"), Ok(Device::Cpu));
        }
    }

    #[test]
    fn precisions_are_read_and_written() {
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let text = precision.to_string();
            assert_eq!(text.parse::<Precision>().unwrap(), precision);
            assert_eq!(serde_json::to_string(&precision).unwrap(), format!("{text:?}"));
        }
        for (word, meant) in [
            ("fp32", "f32"),
            ("float32", "f32"),
            ("fp16", "f16"),
            ("torch.float16", "f16"),
            ("half", "f16"),
            ("bfloat16", "bf16"),
            ("BF16", "bf16"),
        ] {
            let message = word.parse::<Precision>().unwrap_err().to_string();
            assert!(message.ends_with(&format!("hint: did you mean {meant}?")), "{message}");
        }
        for (word, meant) in
            [("gpu", "cuda"), ("GPU:1", "cuda"), ("CPU", "cpu"), ("cuda:1x", "cuda")]
        {
            let message = word.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.ends_with(&format!("hint: did you mean {meant}?")), "{message}");
        }
        assert_eq!(Precision::F16.check(Device::Cpu), Err(DeviceError::HalfOnCpu));
        assert_eq!(Precision::Bf16.check(Device::Cpu), Ok(()));
        assert_eq!(Precision::F16.check(Device::Cuda(0)), Ok(()));
        if !Cuda::is_available() {
            assert_eq!(Precision::Bf16.check(Device::Cuda(0)), Ok(()));
        }
    }

    #[test]
    fn inference_mode_builds_no_graph_and_ends_with_the_closure() {
        let leaf = tch::Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        assert!(!inference(|| (&leaf * 2.0).requires_grad()));
        assert!(!inference(|| inference(|| (&leaf * 2.0).requires_grad())));
        assert!((&leaf * 2.0).requires_grad());
        // A panic inside leaves the mode as well.
        let unwound = std::panic::catch_unwind(|| inference(|| std::panic::panic_any(1)));
        assert!(unwound.is_err());
        assert!((&leaf * 2.0).requires_grad());
    }
}
