//! The kernels for GPUs, run on a CPU (`kernels/on_cpu.cpp` says how) and compared with their
//! formulas: index arithmetic and sums are checked without a GPU. The tests that need one are in
//! `src/shim/kernels.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

/// Compiles `on_cpu.cpp` for a dtype of `kernels.cu` and runs it.
fn run(format: u32) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{format}"));
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let compiled = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-pthread", "-w", "-x", "c++"])
        .arg(format!("-DFORMAT={format}"))
        .arg("-I")
        .arg(package.join("csrc"))
        .arg(package.join("tests/kernels/on_cpu.cpp"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let done = Command::new(program).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn in_f32_they_compute_their_formulas() {
    run(0);
}

#[test]
fn in_bf16_they_compute_their_formulas() {
    run(1);
}

#[test]
fn in_f16_they_compute_their_formulas() {
    run(2);
}
