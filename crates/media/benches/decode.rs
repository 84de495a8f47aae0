//! Images per second of one thread's processor time (on Linux): decoding, resizing, and whole
//! preprocessing recipes.
//!
//! `cargo bench -p balanceddpo-media --bench decode [-- FOLDER]` reads the JPEGs of the folder, or
//! encodes its own. `scripts/bench/pillow_decode.py FOLDER` makes such a folder and measures Pillow
//! on it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark reports and may stop")]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use media::decode::{Image, Limits, Mode, decode};
use media::preprocess::{HpsResize, Kind, Recipe};
use media::resize::{Filter, Resizer};

/// How long each figure is measured; the fastest of three such rounds counts.
const ROUND: Duration = Duration::from_millis(700);

fn main() {
    // Cargo itself passes `--bench`.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let sets = match folder {
        Some(folder) => vec![("folder".to_owned(), read(&PathBuf::from(folder)))],
        None => [512, 1024].map(|side| (side.to_string(), vec![encode(side)])).to_vec(),
    };
    for (name, files) in sets {
        report(&name, &files);
    }
}

fn report(set: &str, files: &[Vec<u8>]) {
    let limits = Limits::default();
    let images: Vec<Image> = files.iter().map(|file| decode(file, &limits).unwrap()).collect();
    let mut resizer = Resizer::new();
    let mut scalar = Resizer::scalar();
    let mut shrink = |image: &Image| resizer.resize(image, (224, 224), Filter::Bicubic).unwrap();
    line(set, "decode", files, |file| decode(file, &limits).unwrap());
    line(set, "resize", &images, &mut shrink);
    line(set, "resize-scalar", &images, |image| {
        scalar.resize(image, (224, 224), Filter::Bicubic).unwrap()
    });
    line(set, "decode+resize", files, |file| shrink(&decode(file, &limits).unwrap()));
    for (task, kind) in [
        ("decode+hf", Kind::hf(224)),
        ("decode+hps-legacy", Kind::Hps { resize: HpsResize::Legacy }),
        ("decode+hps-antialias", Kind::Hps { resize: HpsResize::Antialias }),
    ] {
        let recipe = Recipe::published(kind);
        let mut out = vec![0.0; recipe.output_len()];
        line(set, task, files, |file| {
            recipe.apply(&decode(file, &limits).unwrap(), &mut out).unwrap();
            out[0]
        });
    }
}

/// Measures one task over all inputs, again and again, and prints its rate.
fn line<Input, Output>(
    set: &str,
    task: &str,
    inputs: &[Input],
    mut run: impl FnMut(&Input) -> Output,
) {
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let (start, busy, mut done) = (Instant::now(), processor_seconds(), 0);
        while start.elapsed() < ROUND {
            for input in inputs {
                black_box(run(black_box(input)));
                done += 1;
            }
        }
        best = best.max(f64::from(done) / (processor_seconds() - busy));
    }
    println!("bench=media set={set} task={task} images_per_second={best:.1}");
}

/// Seconds this thread has run, so that other programs on the machine count less.
fn processor_seconds() -> f64 {
    let statistics = fs_err::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = statistics.split(' ').next().unwrap().parse::<f64>().unwrap();
    nanoseconds / 1e9
}

/// All JPEGs of a folder, in the order of their names.
fn read(folder: &PathBuf) -> Vec<Vec<u8>> {
    let entries = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "jpg")).collect();
    paths.sort();
    paths.iter().map(|path| fs_err::read(path).unwrap()).collect()
}

/// A square JPEG of waves, edges and grain, quality 90, 4:2:0.
fn encode(side: u32) -> Vec<u8> {
    let mut pixels = Vec::new();
    for y in 0..side {
        for x in 0..side {
            let grain = (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729)) % 23;
            let edge = if (x + 2 * y) % 64 < 32 { 40 } else { 0 };
            for c in 0..3 {
                let wave = (x * (3 + c) / 4 + y * (5 - c) / 4) % 194;
                pixels.push((wave + grain + edge) as u8);
            }
        }
    }
    let image = Image::new(Mode::Rgb, side, side, pixels).unwrap();
    let image = turbojpeg::Image {
        pixels: image.pixels(),
        width: side as usize,
        pitch: side as usize * 3,
        height: side as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
}
