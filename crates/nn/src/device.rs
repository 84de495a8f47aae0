//! Devices, precisions, threads, and inference mode.

use std::fmt;
use std::str::FromStr;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use runkit::launch::Launch;
use runkit::text::quoted;
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, TchError, Tensor};

use crate::shim::{self, InferenceMode};

/// A device or a precision is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The text is not the name of a device.
    #[error("unknown device {}, expected auto, cpu, cuda or cuda:N{}", quoted(.0), Meant(device_meant(.0)))]
    UnknownDevice(String),
    /// The text is not the name of a precision.
    #[error("unknown precision {}, expected f32, tf32, bf16 or f16{}", quoted(.0), Meant(precision_meant(.0)))]
    UnknownPrecision(String),
    /// The user asks for CUDA, and libtorch sees no GPU.
    #[error(
        "cuda was asked for, but libtorch sees no usable GPU\n\
         hint: check the driver with nvidia-smi, or use --device cpu"
    )]
    NoCuda,
    /// The user asks for a GPU by a number that does not exist.
    #[error("cuda:{index} was asked for, but there are only {count} GPUs (numbered from 0)")]
    NoSuchGpu {
        /// The number asked for.
        index: usize,
        /// How many GPUs libtorch sees.
        count: usize,
    },
    /// A launcher started more processes on this machine than it has GPUs.
    #[error(
        "LOCAL_RANK={local_rank} takes GPU {local_rank} of this machine, and there are only {count} \
         (numbered from 0)\nhint: start one process for each GPU, as torchrun --nproc-per-node \
         {count} does, or give --device"
    )]
    NoGpuOfRank {
        /// The rank among the processes of this machine.
        local_rank: usize,
        /// How many GPUs libtorch sees.
        count: usize,
    },
    /// Half precision on the CPU.
    #[error(
        "f16 on the CPU is about a hundred times slower than f32\n\
         hint: use --dtype bf16, or f32 where scores must agree to the last digits"
    )]
    HalfOnCpu,
    /// TF32 on a device that does not have it.
    #[error(
        "{device} has no TF32, which GPUs have since Ampere (compute capability 8.0)\n\
         hint: use --dtype f32"
    )]
    NoTf32 {
        /// The device.
        device: String,
    },
    /// libtorch could not be set up.
    #[error("{0}")]
    Failed(String),
    /// bf16 on a GPU that does not multiply it.
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
    /// Whether the name is valid, but the device does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoCuda | Self::NoSuchGpu { .. } | Self::NoGpuOfRank { .. })
    }
}

/// The device that other programs call by this word.
fn device_meant(word: &str) -> Option<&'static str> {
    let word = word.trim().to_lowercase();
    match word.trim_end_matches(|end: char| end.is_ascii_digit() || end == ':') {
        "gpu" | "gpus" | "nvidia" | "cuda" | "cuda:" | "" => Some("cuda"),
        other => runkit::config::nearest_name(other, ["auto", "cpu", "cuda"]),
    }
}

/// The precision that other programs call by this word.
fn precision_meant(word: &str) -> Option<&'static str> {
    match word.trim().to_lowercase().replace("torch.", "").as_str() {
        "fp16" | "float16" | "half" | "16" => Some("f16"),
        "bfloat16" | "bfp16" | "brain" => Some("bf16"),
        "fp32" | "float32" | "float" | "single" | "full" | "32" | "no" => Some("f32"),
        other => runkit::config::nearest_name(other, ["f32", "tf32", "bf16", "f16"]),
    }
}

/// A hint, if a similar name exists.
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
    /// The first GPU if libtorch sees one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// As [`DeviceChoice::resolve`] for one of several processes of a machine: `auto` is the GPU of
    /// the rank among them, if libtorch sees a GPU.
    ///
    /// # Errors
    /// If the device does not exist.
    pub fn resolve_for(self, local_rank: usize) -> Result<Device, DeviceError> {
        match self {
            Self::Auto if Cuda::is_available() => {
                let is_given = std::env::var_os("LOCAL_RANK").is_some();
                gpu_of_rank(local_rank, is_given, gpu_count())
            }
            other => other.resolve(),
        }
    }

    /// The device itself, or an error if it does not exist.
    pub fn resolve(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if Cuda::is_available() => Ok(Device::Cuda(0)),
            Self::Auto => Ok(Device::Cpu),
            Self::Cuda(_) if !Cuda::is_available() => Err(DeviceError::NoCuda),
            Self::Cuda(index) => {
                let count = gpu_count();
                if index < count {
                    Ok(Device::Cuda(index))
                } else {
                    Err(DeviceError::NoSuchGpu { index, count })
                }
            }
        }
    }
}

fn gpu_count() -> usize {
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}

/// `is_given` says that a launcher set `LOCAL_RANK`. srun does not, and may show each task a GPU of
/// its own (`--gpus-per-task`): then the only one is the right one.
fn gpu_of_rank(local_rank: usize, is_given: bool, count: usize) -> Result<Device, DeviceError> {
    if local_rank < count {
        Ok(Device::Cuda(local_rank))
    } else if count == 1 && !is_given {
        Ok(Device::Cuda(0))
    } else {
        Err(DeviceError::NoGpuOfRank { local_rank, count })
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

/// The device named `auto`, `cpu`, `cuda` or `cuda:N`, if it exists.
pub fn parse(text: &str) -> Result<Device, DeviceError> {
    text.parse::<DeviceChoice>()?.resolve()
}

/// The dtype that a network computes in.
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

    /// True if products in this dtype are upcast to f32 and rounded afterwards: for bf16 on a
    /// processor that multiplies f32 faster. Training then keeps no cast copies of the weights for
    /// the gradients.
    pub fn upcasts_bf16(self, device: Device) -> bool {
        self == Self::Bf16 && device == Device::Cpu && !multiplies_bf16()
    }

    /// Rejects what would look like a hang: `f16` on the CPU, `bf16` on a GPU older than Ampere.
    pub fn check(self, device: Device) -> Result<(), DeviceError> {
        match (self, device) {
            (Self::F16, Device::Cpu) => Err(DeviceError::HalfOnCpu),
            // If a GPU cannot answer, the first tensor on it reports why.
            (Self::Bf16, Device::Cuda(index)) if !shim::has_bf16(index).unwrap_or(true) => {
                Err(DeviceError::NoBf16 { index })
            }
            _ => Ok(()),
        }
    }
}

/// True on an x86 processor without AVX-512, or if `ONEDNN_MAX_CPU_ISA` keeps oneDNN from using it.
/// oneDNN has fewer kernels then.
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

#[cfg(test)]
thread_local! {
    static MULTIPLIES_BF16: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `body` as on a processor that multiplies bf16 fast, so that its paths are tested on any.
#[cfg(test)]
pub(crate) fn multiplying_bf16<T>(body: impl FnOnce() -> T) -> T {
    let before = MULTIPLIES_BF16.replace(true);
    let result = body();
    MULTIPLIES_BF16.set(before);
    result
}

/// True if a product in bf16 takes less time than one in f32. On x86 this requires AVX512_BF16, and
/// on Intel also AMX: in virtual machines that hide AMX, libtorch's bf16 product runs at 0.6 times
/// the rate of f32 (docs/performance.md).
fn multiplies_bf16() -> bool {
    #[cfg(test)]
    if MULTIPLIES_BF16.get() {
        return true;
    }
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

/// The dtype that the user names for a device: `f32`, `tf32`, `bf16` or `f16`. It holds for the whole
/// process:
///
/// - `f32` multiplies exactly. libtorch's own default rounds the inputs of convolutions to TF32 on
///   a GPU; here both convolutions and matrix products are exact.
/// - `tf32` keeps weights and activations in f32 and rounds the inputs of products to 10 bits of
///   mantissa, on the tensor cores of GPUs since Ampere.
///
/// A GPU that could multiply several times faster is warned of.
///
/// # Errors
/// If there is no such dtype, or the device does not have it.
pub fn choose_dtype(name: &str, device: Device) -> Result<Precision, DeviceError> {
    let is_tf32 = name == "tf32";
    let precision = if is_tf32 { Precision::F32 } else { name.parse()? };
    precision.check(device)?;
    let has_tf32 = has_tf32(device);
    if is_tf32 && !has_tf32 {
        return Err(DeviceError::NoTf32 { device: named(device) });
    }
    if device.is_cuda() {
        shim::set_tf32(is_tf32).map_err(|error| DeviceError::Failed(error.to_string()))?;
    }
    if precision == Precision::F32 && !is_tf32 && has_tf32 {
        tracing::warn!(
            "--dtype f32 multiplies exactly, without the tensor cores of {}; hint: tf32 (products \
             of 10-bit mantissas) and bf16 (8 bits, half the memory) are several times as fast",
            named(device)
        );
    }
    Ok(precision)
}

/// As [`choose_dtype`] for work that only infers, where `auto` is `tf32` on a GPU since Ampere, and
/// `f32` on any other device.
///
/// # Errors
/// As [`choose_dtype`].
pub fn choose_dtype_or_auto(name: &str, device: Device) -> Result<Precision, DeviceError> {
    if name != "auto" {
        return choose_dtype(name, device);
    }
    if !has_tf32(device) {
        return choose_dtype("f32", device);
    }
    let precision = choose_dtype("tf32", device)?;
    tracing::info!(
        "computing in tf32 on {}: f32 weights, products of 10-bit mantissas; --dtype bf16 (8 bits) \
         is about twice as fast, f32 is exact and several times slower",
        named(device)
    );
    Ok(precision)
}

/// The name of the dtype that a network of `precision` computes in on a device, as manifests record
/// it: `f32`, `tf32`, `bf16` or `f16`.
pub fn dtype_name(precision: Precision, device: Device) -> String {
    let is_tf32 = device.is_cuda()
        && precision == Precision::F32
        && shim::tf32().is_ok_and(|allowed| allowed == [true, true]);
    if is_tf32 { "tf32".to_owned() } else { precision.to_string() }
}

/// Whether a device is a GPU since Ampere.
fn has_tf32(device: Device) -> bool {
    match device {
        Device::Cuda(index) => Cuda::is_available() && shim::has_bf16(index).unwrap_or(false),
        _ => false,
    }
}

fn named(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "the CPU".to_owned(),
    }
}

/// How many CPU threads libtorch uses for one operation.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Sets how many CPU threads libtorch uses for one operation, whichever thread calls it later. Zero
/// counts as one. The sum over all thread pools should not exceed the cores: threads that wait for
/// each other spin, which costs more than another thread gains.
pub fn set_threads(count: usize) {
    tch::set_num_threads(i32::try_from(count.max(1)).unwrap_or(i32::MAX));
}

/// Divides the cores of this machine between the processes that a launcher started on it: the
/// threads of rayon, which decode and hash, and those of libtorch. Call it at the start of a
/// program. `RAYON_NUM_THREADS` and `OMP_NUM_THREADS` win.
pub fn share_cores(launch: &Launch) {
    if launch.local_world < 2 {
        return;
    }
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / launch.local_world).max(1);
    if !is_set("RAYON_NUM_THREADS") {
        // Fails if there is a pool already, which then stays.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    if !is_set("OMP_NUM_THREADS") {
        set_threads(threads);
    }
}

/// Reuses the memory of large CPU tensors, from now on and in the whole process; call it at the
/// start of a program. Each pass of a network asks for the same blocks, and the system would clear
/// their pages each time.
///
/// Blocks in use and kept blocks together stay below 17/16 of the peak in use, or below 3/2 of it
/// if blocks serve requests that are smaller than the block. On the heap of the C library,
/// gradients that stay and activations that go would leave holes: a fifth of the memory of a
/// training pass of Stable Diffusion at 512 px (docs/performance.md).
pub fn reuse_memory() {
    shim::reuse_memory();
}

/// The tensor on the device. The copy to a GPU does not block: it reads pinned memory, while an
/// ordinary copy would wait for all queued work of the GPU.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(index)) => shim::upload(tensor, index),
        _ => tensor.f_to_device(device),
    }
}

/// A tensor of these sizes on the device, filled from rows of equal length: one copy of the rows,
/// into pinned memory for a GPU, and one to the GPU, which does not block.
pub fn upload_rows(rows: &[&[f32]], sizes: &[i64], device: Device) -> Result<Tensor, TchError> {
    upload(&shim::from_rows(rows, sizes, device.is_cuda())?, device)
}

/// The peak memory of a GPU in this process so far, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PeakDeviceMemory {
    /// The most that tensors held at once.
    pub allocated: u64,
    /// The most that the driver gave for tensors; what they do not hold is free for reuse or
    /// fragmented.
    pub reserved: u64,
}

/// The peak memory of a GPU; `None` for the CPU.
pub fn peak_memory(device: Device) -> Result<Option<PeakDeviceMemory>, TchError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let [allocated, reserved] = shim::peak_device_bytes(index)?;
    Ok(Some(PeakDeviceMemory { allocated, reserved }))
}

/// Runs `body` in libtorch's inference mode on this thread, without gradients and the bookkeeping
/// for them. Code outside may read its tensors and compute with them, but must not change them in
/// place.
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
    fn a_rank_takes_its_own_gpu() {
        assert_eq!(gpu_of_rank(1, true, 2), Ok(Device::Cuda(1)));
        assert_eq!(gpu_of_rank(3, false, 1), Ok(Device::Cuda(0)));
        assert!(gpu_of_rank(1, true, 1).is_err());
        let message = gpu_of_rank(2, true, 2).unwrap_err().to_string();
        assert!(message.contains("LOCAL_RANK=2") && message.contains("only 2"), "{message}");
        assert_eq!(DeviceChoice::Cpu.resolve_for(7), Ok(Device::Cpu));
        if !Cuda::is_available() {
            assert_eq!(DeviceChoice::Auto.resolve_for(1), Ok(Device::Cpu));
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
        assert_eq!(choose_dtype_or_auto("auto", Device::Cpu), Ok(Precision::F32));
        assert_eq!(choose_dtype_or_auto("bf16", Device::Cpu), Ok(Precision::Bf16));
        assert_eq!(dtype_name(Precision::F32, Device::Cpu), "f32");
        assert_eq!(choose_dtype("f16", Device::Cpu), Err(DeviceError::HalfOnCpu));
        let message = choose_dtype("tf32", Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("the CPU has no TF32") && message.contains("--dtype f32"));
        assert!(choose_dtype("auto", Device::Cpu).unwrap_err().to_string().contains("tf32, bf16"));
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
        // A panic inside also leaves the mode.
        let unwound = std::panic::catch_unwind(|| inference(|| std::panic::panic_any(1)));
        assert!(unwound.is_err());
        assert!((&leaf * 2.0).requires_grad());
    }

    #[test]
    fn tf32_is_set_for_products_and_convolutions() {
        let before = shim::tf32().unwrap();
        for allowed in [true, false] {
            shim::set_tf32(allowed).unwrap();
            assert_eq!(shim::tf32().unwrap(), [allowed, allowed]);
        }
        // libtorch's own default allows it in convolutions.
        assert_eq!(before, [false, true]);
        shim::set_tf32(false).unwrap();
    }
}
