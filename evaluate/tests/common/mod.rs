//! What the tests run in: a temporary folder, the tiny pipelines with random weights that
//! `scripts/goldens/diffusion_networks.py` makes, and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::Folder;
#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use testkit::{Run, Running, wait_until};

/// Pipelines of 16 x 16 pixels and prompts of 22 letters.
const PIPELINES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");

/// The folder of a tiny pipeline: `sd` or `sdxl`.
pub(crate) fn pipeline(name: &str) -> PathBuf {
    Path::new(PIPELINES).join(name)
}

/// `--model` for a tiny pipeline.
pub(crate) fn model(name: &str) -> String {
    format!("{name}={}", pipeline(name).display())
}

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn evaluate<I: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = I>,
) -> Command {
    testkit::program(env!("CARGO_BIN_EXE_evaluate"), arguments)
}

/// What a run must have done besides ending well.
pub(crate) trait Generated {
    /// The run, which must have generated this many images of these.
    fn expect_generated(self, generated: usize, images: usize) -> Self;
}

impl Generated for Run {
    #[track_caller]
    fn expect_generated(self, generated: usize, images: usize) -> Self {
        let expected = format!("{images} images, {generated} of them new\n");
        assert!(self.stdout.starts_with(&expected), "{self:#?}");
        self.expect_code(0)
    }
}

/// A temporary folder with inputs and outputs.
pub(crate) struct Fixture {
    folder: Folder,
}

impl Fixture {
    /// A fixture with these prompts in `prompts.txt`.
    pub(crate) fn new(prompts: &[&str]) -> Self {
        let fixture = Self { folder: Folder::new() };
        fixture.put("prompts.txt", prompts.join("\n").as_bytes());
        fixture
    }

    /// A copy of a tiny pipeline, to be spoilt.
    pub(crate) fn copy_pipeline(&self, name: &str) -> PathBuf {
        self.copy(&pipeline(name), name)
    }

    /// `evaluate generate` of `models` on `prompts.txt` into `out`, in two steps unless `more` says
    /// otherwise.
    pub(crate) fn generate(&self, models: &[&str], more: &[&str]) -> Command {
        let mut command = evaluate(["generate"]);
        for source in models {
            command.arg("--model").arg(source);
        }
        command.arg("--out").arg(self.path("out")).args(more);
        if !more.contains(&"--prompts") {
            command.arg("--prompts").arg(self.path("prompts.txt"));
        }
        if !more.contains(&"--steps") {
            command.args(["--steps", "2"]);
        }
        command
    }

    /// The images of `out`, by path below `images`.
    pub(crate) fn images(&self) -> BTreeMap<String, DecodedImage> {
        let files = self.files("out/images").into_iter();
        files.map(|(name, bytes)| (name, DecodedImage::decode(&bytes))).collect()
    }
}

impl Deref for Fixture {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

/// A decoded PNG.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecodedImage {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Vec<u8>,
    /// What stands in its text chunks, by key.
    pub(crate) texts: BTreeMap<String, String>,
}

impl DecodedImage {
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let info = reader.info();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let plain = info.uncompressed_latin1_text.iter();
        let mut texts: BTreeMap<String, String> =
            plain.map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
        for chunk in &info.utf8_text {
            texts.insert(chunk.keyword.clone(), chunk.get_text().unwrap());
        }
        Self { width: info.width, height: info.height, pixels, texts }
    }

    /// The recipe inside.
    pub(crate) fn recipe(&self) -> serde_json::Value {
        serde_json::from_str(&self.texts[evaluate::generate::RECIPE_KEY]).unwrap()
    }

    /// The largest difference of two images' numbers.
    pub(crate) fn distance(&self, other: &[u8]) -> u8 {
        assert_eq!(self.pixels.len(), other.len());
        self.pixels.iter().zip(other).map(|(one, two)| one.abs_diff(*two)).max().unwrap()
    }
}
