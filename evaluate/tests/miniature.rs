//! The miniature pipeline follows its prompts: the miniature CLIP finds the caption of an image
//! among twenty far more often than chance. (`scripts/miniature/evaluate_diffusion.py` measures it
//! on all captions and seeds: 78 %.)
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;

use common::{Fixture, Generated as _, Run};
use media::decode::{Limits, decode};
use nn::device::Precision;
use scorers::{Compute, DescribedScorers, ScorersConfig};
use tch::Device;

const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini");
const CAPTIONS: usize = 20;
/// Chance is 5 %.
const LEAST: f64 = 0.6;

#[test]
fn images_show_what_was_asked_for() {
    let fixture = Fixture::new(&[]);
    let prompts = Path::new(MINI).join("prompts.txt");
    let captions = std::fs::read_to_string(&prompts).unwrap();
    let captions: Vec<&str> = captions.lines().take(CAPTIONS).collect();
    let limit = CAPTIONS.to_string();
    let mut more = vec!["--prompts", prompts.to_str().unwrap(), "--limit", &limit];
    more.extend(["--seeds", "2", "--steps", "20", "--guidance", "4", "--scheduler", "dpmpp-2m"]);
    let run = Run::of(&mut fixture.generate(&[&format!("mini={MINI}/sd")], &more));
    run.expect_generated(2 * CAPTIONS, 2 * CAPTIONS);

    let mut config = ScorersConfig::read(&Path::new(MINI).join("scorers.toml")).unwrap();
    config.scorer.retain(|scorer| scorer.name == "clip");
    let compute = Compute { device: Device::Cpu, precision: Precision::F32 };
    let clip = DescribedScorers::of(&config, compute).unwrap().load().unwrap();
    let preprocessor = clip.image_preprocessor();
    // By path, so by prompt and then by seed.
    let prepared: Vec<_> = fixture
        .files("out/images")
        .values()
        .map(|png| preprocessor.preprocess(&decode(png, &Limits::default()).unwrap()).unwrap())
        .collect();
    let images = clip.encode_images(&prepared.iter().collect::<Vec<_>>()).unwrap();
    let texts = clip.encode_texts(&clip.tokenize(&captions)).unwrap();
    let pairs: Vec<(usize, usize)> = (0..prepared.len())
        .flat_map(|image| (0..CAPTIONS).map(move |caption| (image, caption)))
        .collect();
    let scores = clip.score(&images, &texts, &pairs).unwrap().swap_remove(0);
    let scores: Vec<f32> = scores.into_iter().map(Result::unwrap).collect();
    let found = scores.chunks(CAPTIONS).enumerate().filter(|(image, scores)| {
        let right = scores[image / 2];
        scores.iter().filter(|score| **score >= right).count() == 1
    });
    let share = found.count() as f64 / prepared.len() as f64;
    println!("the right caption of {CAPTIONS} comes first for {share:.3} of the images");
    assert!(share >= LEAST, "{share}");
}
