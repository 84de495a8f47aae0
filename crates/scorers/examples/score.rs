//! Scores one image with a caption by every scorer of a `scorers.toml`:
//!
//! ```text
//! cargo run --release -p balanceddpo-scorers --example score -- fox.jpg "a red fox in the snow"
//! cargo run --release -p balanceddpo-scorers --example score -- fox.jpg "a red fox" relabel/scorers/published.toml
//! ```
//!
//! The scorers are the miniature ones of this repository unless a third argument names others. The
//! models of `relabel/scorers/published.toml` are downloaded first (15 GB).
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::error::Error;

use scorers::{Compute, DeviceChoice, Limits, Precision, ScorerSet, decode};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(image), Some(caption)) = (arguments.next(), arguments.next()) else {
        return Err("usage: score IMAGE CAPTION [SCORERS.TOML]".into());
    };
    let file = arguments.next().unwrap_or_else(|| "data/mini/scorers.toml".to_owned());

    // The first GPU if there is one, else the CPU. f32 gives the same scores as the Python
    // libraries.
    let compute = Compute { device: DeviceChoice::Auto.resolve()?, precision: Precision::F32 };
    let scorers = ScorerSet::open(file, compute)?;

    let image = decode(&fs_err::read(image)?, &Limits::default())?;
    for (name, score) in scorers.score_one(&image, &caption)? {
        match score {
            Ok(score) => println!("{name:<12}{score:>10.4}"),
            Err(failure) => println!("{name:<12} {failure}"),
        }
    }
    Ok(())
}
