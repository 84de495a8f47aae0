//! Writes into the program where libtorch lies, so that it starts from any folder without
//! environment variables. The arguments come from `crates/nn/build.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in std::env::var("DEP_NN_SHIM_LINK_ARGUMENTS").unwrap_or_default().split('\t') {
        println!("cargo:rustc-link-arg={argument}");
    }
}
