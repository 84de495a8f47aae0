//! An image on the disk: a PNG that holds the recipe to generate it again.

use std::path::Path;

use anyhow::{Context as _, Result};
use nn::pipeline::Image;
use nn::schedule::SamplerKind;
use serde::Serialize;

use crate::sources::Size;

/// The key under which programs find the recipe, as JSON.
pub const RECIPE_KEY: &str = "recipe";
/// The key of the recipe as text, in the form of AUTOMATIC1111's stable-diffusion-webui, which
/// other tools read.
pub const PARAMETERS_KEY: &str = "parameters";

/// What is needed to generate an image again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Recipe<'run> {
    pub(super) prompt: &'run str,
    /// The images keep their bytes, and so this key its name.
    #[serde(rename = "negative")]
    pub(super) negative_prompt: Option<&'run str>,
    pub(super) seed: u64,
    pub(super) steps: usize,
    pub(super) guidance: f64,
    pub(super) scheduler: SamplerKind,
    pub(super) size: Size,
    pub(super) model: &'run str,
    pub(super) checkpoint: &'run str,
    pub(super) dtype: &'run str,
    pub(super) device: &'run str,
    pub(super) program: &'static str,
    pub(super) version: &'static str,
}

impl Recipe<'_> {
    /// As stable-diffusion-webui writes it: the prompt, the negative prompt, a line of settings.
    /// Its sizes are width x height.
    fn parameters(&self) -> String {
        let mut text = self.prompt.to_owned();
        if let Some(negative) = self.negative_prompt.filter(|negative| !negative.is_empty()) {
            text += &format!("\nNegative prompt: {negative}");
        }
        let Size { height, width } = self.size;
        let sampler = match self.scheduler {
            SamplerKind::Ddim => "DDIM",
            SamplerKind::Pndm => "PLMS",
            SamplerKind::Euler => "Euler",
            SamplerKind::DpmSolverPlusPlus2M => "DPM++ 2M",
        };
        text += &format!(
            "\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {width}x{height}, \
             Model hash: {}, Model: {}, Version: {} {}",
            self.steps,
            self.guidance,
            self.seed,
            self.checkpoint.get(..10).unwrap_or(self.checkpoint),
            self.model,
            self.program,
            self.version
        );
        text
    }
}

/// The image as PNG, RGB of 8 bits, with its recipe.
pub(super) fn encode(image: &Image, recipe: &Recipe<'_>) -> Result<Vec<u8>> {
    let side = |length: usize| u32::try_from(length).context("an image is too large for PNG");
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side(image.width)?, side(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let texts = [
        (PARAMETERS_KEY, recipe.parameters()),
        (RECIPE_KEY, runkit::manifest::canonical_json(recipe)?),
    ];
    for (key, text) in texts {
        // tEXt is Latin-1, which some readers take for UTF-8; iTXt is UTF-8.
        if text.is_ascii() {
            encoder.add_text_chunk(key.to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk(key.to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// Writes the bytes under their final name, whole and synced.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(runkit::files::write_atomic(path, |file| std::io::Write::write_all(file, bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe<'run>(prompt: &'run str, negative_prompt: Option<&'run str>) -> Recipe<'run> {
        Recipe {
            prompt,
            negative_prompt,
            seed: 7,
            steps: 20,
            guidance: 7.5,
            scheduler: SamplerKind::DpmSolverPlusPlus2M,
            size: Size { height: 2, width: 3 },
            model: "sd",
            checkpoint: "0123456789abcdef",
            dtype: "f32",
            device: "cpu",
            program: "evaluate",
            version: "0.1.0",
        }
    }

    /// The pixels and the texts of a PNG, by key.
    fn decode(bytes: &[u8]) -> (Vec<u8>, Vec<(String, String)>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let info = reader.info();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let plain = info.uncompressed_latin1_text.iter();
        let mut texts: Vec<(String, String)> =
            plain.map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
        texts.extend(
            info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap())),
        );
        (pixels, texts)
    }

    #[test]
    fn pixels_and_recipe_come_back() {
        let image = Image { width: 3, height: 2, pixels: (0..18).collect() };
        let bytes = encode(&image, &recipe("a fox", None)).unwrap();
        assert_eq!(bytes, encode(&image, &recipe("a fox", None)).unwrap());
        let (pixels, texts) = decode(&bytes);
        assert_eq!(pixels, image.pixels);
        let expected = "a fox\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 7, Size: 3x2, \
                        Model hash: 0123456789, Model: sd, Version: evaluate 0.1.0";
        assert_eq!(texts[0], (PARAMETERS_KEY.to_owned(), expected.to_owned()));
        assert_eq!(texts[1].0, RECIPE_KEY);
        let json: serde_json::Value = serde_json::from_str(&texts[1].1).unwrap();
        assert_eq!(json["prompt"], "a fox");
        assert_eq!(json["negative"], serde_json::Value::Null);
        assert_eq!((&json["scheduler"], &json["size"]), (&"dpmpp-2m".into(), &"2x3".into()));
        assert_eq!((&json["seed"], &json["guidance"]), (&7.into(), &7.5.into()));
    }

    #[test]
    fn other_alphabets_are_utf_8() {
        let image = Image { width: 3, height: 2, pixels: vec![9; 18] };
        let bytes = encode(&image, &recipe("un café 猫", Some("blurry, é"))).unwrap();
        let (_, texts) = decode(&bytes);
        assert!(texts[0].1.starts_with("un café 猫\nNegative prompt: blurry, é\nSteps: 20"));
        assert!(bytes.windows(4).filter(|bytes| bytes == b"iTXt").count() == 2);
        assert_eq!(texts.len(), 2);
    }
}
