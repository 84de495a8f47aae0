//! A fixture: made-up scores and images of two models, four metrics and three seeds.

#![allow(dead_code, reason = "each test file uses a part of it")]

use evaluate::present::bitmap::Bitmap;
use schemas::scores::ScoreRow;
use tempfile::TempDir;

/// Prompts that try to leave their place.
pub(crate) const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"quotes\" 'and' &amp; {{ 7 * 7 }} {% raw %}",
    "\u{1f98a} un renard \u{202e}gnp.exe\u{0}\u{1b}[31m",
    "]]> --> */ \\u003c/script>",
    LONG,
];
/// A prompt of 2,100 characters without a space.
pub(crate) const LONG: &str = {
    const DIGITS: [u8; 2100] = [b'7'; 2100];
    match std::str::from_utf8(&DIGITS) {
        Ok(text) => text,
        Err(_) => "",
    }
};

/// The metrics of the paper, in its order.
pub(crate) const METRICS: [&str; 4] = ["pickscore", "hps", "clip", "aesthetic"];
/// A name that needs escaping, too.
pub(crate) const MODELS: [&str; 2] = ["base", "tuned <1>"];
/// Images of each prompt.
pub(crate) const SEEDS: i64 = 3;
/// The side of an image, in pixels.
pub(crate) const SIDE: u32 = 32;

/// A folder with images, and their scores.
pub(crate) struct ScoredFixture {
    pub(crate) folder: TempDir,
    pub(crate) rows: Vec<ScoreRow>,
}

impl ScoredFixture {
    /// Every prompt in every set. The second model is better at odd prompts.
    pub(crate) fn new(prompts: &[&str], sets: &[&str]) -> Self {
        let mut fixture = Self { folder: tempfile::tempdir().unwrap(), rows: Vec::new() };
        for (place, model) in MODELS.into_iter().enumerate() {
            for set in sets {
                for (number, prompt) in prompts.iter().enumerate() {
                    for seed in 0..SEEDS {
                        fixture.add([place, number], model, set, prompt, seed);
                    }
                }
            }
        }
        fixture
    }

    fn add(
        &mut self,
        [place, number]: [usize; 2],
        model: &str,
        set: &str,
        prompt: &str,
        seed: i64,
    ) {
        let image = format!("images/{place}/{set}-{number}/{seed}.png");
        let path = self.folder.path().join(&image);
        runkit::files::create_folder(path.parent().unwrap()).unwrap();
        let png = image_of(place, number, seed).png().unwrap();
        runkit::files::write_atomic(&path, |file| file.write_all(&png)).unwrap();
        let ahead = place * (2 * (number % 2));
        for (metric, name) in METRICS.into_iter().enumerate() {
            let spread = ((number * 31 + metric * 17 + seed as usize * 7) % 13) as f32;
            self.rows.push(ScoreRow {
                model: model.to_owned(),
                prompt_set: set.to_owned(),
                prompt_id: format!("{number:05}"),
                prompt: prompt.to_string(),
                category: Some(["Animals", "Food"][number % 2].to_owned()),
                seed,
                metric: name.to_owned(),
                score: Some(0.2 + 0.01 * spread + 0.015 * ahead as f32),
                image: image.clone(),
                error: None,
            });
        }
    }
}

/// An image whose every pixel says where it is and whose it is.
pub(crate) fn image_of(model: usize, prompt: usize, seed: i64) -> Bitmap {
    let pixel = |index: u32| {
        let (x, y) = (index % SIDE, index / SIDE);
        [x as u8 * 8, y as u8 * 8, (model * 97 + prompt * 13 + seed as usize * 41) as u8]
    };
    let pixels = (0..SIDE * SIDE).flat_map(pixel).collect();
    Bitmap { width: SIDE, height: SIDE, pixels }
}
