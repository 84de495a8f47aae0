//! Compiles the C++ shim against the libtorch that torch-sys found, and tells every crate that
//! links us how its binaries find that libtorch at run time.
//!
//! A library cannot set the run-time path of a binary, so a package with binaries, tests or benches
//! that link libtorch repeats the arguments in its own build script:
//!
//! ```ignore
//! fn main() {
//!     for argument in std::env::var("DEP_NN_SHIM_LINK_ARGUMENTS").unwrap_or_default().split('\t') {
//!         println!("cargo:rustc-link-arg={argument}");
//!     }
//! }
//! ```
//!
//! Which libtorch it is, torch-sys decides: `LIBTORCH=<folder>`, or with `LIBTORCH_USE_PYTORCH=1`
//! the one of the active Python environment.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    // torch-sys has `links = "tch"`; this is the `lib` folder it links against.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB")?);
    let include = match env::var("LIBTORCH_INCLUDE") {
        Ok(folder) => PathBuf::from(folder).join("include"),
        Err(_) => lib.parent().ok_or("libtorch's lib folder has no parent")?.join("include"),
    };
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");

    // The source of the GPU kernels as a string of C++.
    let generated = PathBuf::from(env::var("OUT_DIR")?);
    let kernels = fs::read_to_string("csrc/kernels.cu")?;
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo's own folder, made anew where it is lost"
    )]
    fs::write(generated.join("kernels.inc"), format!("R\"KERNELS({kernels})KERNELS\"\n"))?;

    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let build = || {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .pic(true)
            .warnings(false)
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
        build
    };
    // c10d's headers read these; `csrc` has stand-ins for those of gloo.
    build()
        .include("csrc")
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .file("csrc/collective.cpp")
        .compile("nn_collective");
    build()
        .include(&generated)
        .file("csrc/shim.cpp")
        .file("csrc/allocator.cpp")
        .file("csrc/facts.cpp")
        .file("csrc/kernels.cpp")
        .file("csrc/nccl.cpp")
        .file("csrc/normalize.cpp")
        .compile("nn_shim");
    // The shim refers to c10 and torch_cpu directly; libraries follow the archive that needs them.
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");

    // DT_RUNPATH rather than DT_RPATH, so that LD_LIBRARY_PATH still decides on other machines. If
    // libtorch lies inside the workspace (`.venv`), the places relative to `target/release` and
    // `target/release/deps` come first, so that programs survive a move of the clone.
    let mut run_paths = vec![lib.display().to_string()];
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    if let Ok(inside) = lib.strip_prefix(&workspace) {
        run_paths.insert(0, format!("$ORIGIN/../../{}", inside.display()));
        run_paths.insert(1, format!("$ORIGIN/../../../{}", inside.display()));
    }
    let arguments = [
        format!("-Wl,--enable-new-dtags,-rpath,{}", run_paths.join(":")),
        // libtorch.so needs the CUDA libraries in builds that have them, and only those: programs
        // see a GPU where libtorch does, and also start with a libtorch for CPUs. No symbol of ours
        // refers to it, so the linker would drop it.
        "-Wl,--no-as-needed,-ltorch,--as-needed".to_owned(),
    ];
    for argument in &arguments {
        println!("cargo:rustc-link-arg={argument}");
    }
    println!("cargo:libtorch={}", lib.display());
    println!("cargo:link_arguments={}", arguments.join("\t"));
    Ok(())
}
