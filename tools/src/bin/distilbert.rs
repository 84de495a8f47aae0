//! Runs a DistilBERT classifier on tokens from a file: the side of this crate in
//! `scripts/parity/distilbert_parity.py`.
//!
//! ```text
//! cargo run --release -p balanceddpo-tools --bin distilbert -- MODEL_FOLDER TOKENS.json LOGITS.safetensors
//! ```
//!
//! The tokens are an array of arrays of ids, one for each text, without padding; the output holds
//! `logits`, `[texts, labels]`. One line of JSON goes to standard output: the seconds of loading
//! and of computing.
#![expect(clippy::print_stdout, reason = "a program")]

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use nn::device::Precision;
use nn::distilbert::DistilBert;
use nn::weights::write_safetensors;
use serde_json::json;
use tch::Device;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, output] = &arguments[..] else {
        bail!("expected MODEL_FOLDER TOKENS.json LOGITS.safetensors");
    };
    let texts: Vec<Vec<i64>> = serde_json::from_slice(&fs_err::read(tokens)?)?;
    let start = Instant::now();
    let network = DistilBert::open(Path::new(model), Device::Cpu, Precision::F32)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let logits = network.logits(&texts, |_| ())?;
    let seconds = start.elapsed().as_secs_f64();
    write_safetensors(Path::new(output), &[("logits".to_owned(), logits)])?;
    println!("{}", json!({"load_seconds": load_seconds, "seconds": seconds}));
    Ok(())
}
