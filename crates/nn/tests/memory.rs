//! Reuse of the memory of CPU tensors (`nn::device::reuse_memory`).
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use nn::device::reuse_memory;
use tch::{Device, Kind, Tensor};

const MIB: i64 = 1 << 20;

/// One test at a time: they measure the memory of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor of so many bytes, every page of it written.
fn tensor(bytes: i64) -> Tensor {
    Tensor::ones([bytes], (Kind::Uint8, Device::Cpu))
}

#[test]
fn a_block_serves_the_next_tensor_of_about_its_size() {
    let _alone = alone();
    let before = tensor(4 * MIB);
    reuse_memory();
    // A tensor of the previous allocator is freed by it.
    drop(before);

    let first = tensor(4 * MIB);
    let place = first.data_ptr();
    drop(first);
    for bytes in [4 * MIB, 4 * MIB - 1, 3 * MIB] {
        let next = tensor(bytes);
        assert_eq!(next.data_ptr(), place, "{bytes} bytes");
        assert_eq!(next.sum(Kind::Int64).int64_value(&[]), bytes);
    }
    for bytes in [4 * MIB + 1, 2 * MIB, MIB / 2] {
        assert_ne!(tensor(bytes).data_ptr(), place, "{bytes} bytes");
    }
    // A block in use is not handed out again.
    let (one, other) = (tensor(4 * MIB), tensor(4 * MIB));
    assert_ne!(one.data_ptr(), other.data_ptr());
}

#[test]
fn small_tensors_and_large_ones_change_their_size() {
    let _alone = alone();
    reuse_memory();
    let mut grown = tensor(MIB / 2);
    drop(grown.resize_([3 * MIB]));
    assert_eq!(grown.narrow(0, 0, MIB / 2).sum(Kind::Int64).int64_value(&[]), MIB / 2);
    drop(grown.resize_([9 * MIB]));
    assert_eq!(grown.narrow(0, 0, MIB / 2).sum(Kind::Int64).int64_value(&[]), MIB / 2);
}

#[test]
fn too_little_memory_is_known_as_such() {
    let _alone = alone();
    reuse_memory();
    let beyond = Tensor::f_empty([1 << 47], (Kind::Uint8, Device::Cpu)).unwrap_err();
    let error = nn::NetworkError::from(beyond);
    assert!(error.is_out_of_memory(), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_kept_stays_below_what_was_in_use_at_most() {
    let _alone = alone();
    reuse_memory();
    let start = resident_bytes();
    drop(tensor(64 * MIB));
    // None fits into a block of the previous one: keeping all would take 149 MiB.
    for mebibytes in [4, 7, 11, 17, 26, 40, 64] {
        drop(tensor(mebibytes * MIB));
        let more = resident_bytes() - start;
        assert!(more < 76 * MIB, "{} MiB are kept after a tensor of {mebibytes}", more / MIB);
    }
    // A request that fails does not count as memory in use.
    assert!(Tensor::f_empty([1 << 47], (Kind::Uint8, Device::Cpu)).is_err());
    for mebibytes in [10, 16, 25, 39, 60] {
        drop(tensor(mebibytes * MIB));
        let more = resident_bytes() - start;
        assert!(more < 76 * MIB, "{} MiB are kept after a tensor of {mebibytes}", more / MIB);
    }
    // Nor does everything go back.
    assert!(resident_bytes() - start > 48 * MIB);
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> i64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<i64>().unwrap() * 1024
}
