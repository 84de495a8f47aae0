//! From encoded bytes to the pixels that the autoencoder reads: the transform of
//! SalesforceAIResearch/DiffusionDPO (5233e75) `train.py`, torchvision 0.26 on Pillow images, bit
//! for bit: RGB, `Resize(resolution, BILINEAR)` of the shorter side, `CenterCrop` or `RandomCrop`,
//! `RandomHorizontalFlip`, `ToTensor`, `Normalize(0.5, 0.5)`.
//!
//! The original has square resolutions only. Another one is covered in the same way: the image is
//! resized until it just covers height and width.

use media::decode::Image;
use media::resize::{Filter, Resizer, Window};

use super::augment::Augmentation;

/// The transform of an image, without its random choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transform {
    pub(crate) height: u32,
    pub(crate) width: u32,
    pub(crate) random_crop: bool,
    pub(crate) hflip: bool,
}

/// Pixels, and where in the image they come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pixels {
    /// Channel, row, column, in [-1, 1].
    pub(crate) values: Vec<f32>,
    /// Height and width of the decoded image.
    pub(crate) original_size: (u32, u32),
    /// First row and column of the crop in the resized image.
    pub(crate) crop: (u32, u32),
}

impl Transform {
    /// How many numbers one image has.
    pub(crate) fn numbers(&self) -> usize {
        3 * self.height as usize * self.width as usize
    }

    /// Applies the transform with random choices.
    pub(crate) fn apply(
        &self,
        image: &Image,
        augmentation: Augmentation,
        resizer: &mut Resizer,
    ) -> Pixels {
        self.apply_with(image, Some(augmentation), resizer)
    }

    /// Applies the transform with a central crop and without a flip.
    pub(crate) fn apply_centrally(&self, image: &Image, resizer: &mut Resizer) -> Pixels {
        self.apply_with(image, None, resizer)
    }

    fn apply_with(
        &self,
        image: &Image,
        augmentation: Option<Augmentation>,
        resizer: &mut Resizer,
    ) -> Pixels {
        let image = image.to_rgb();
        let (height, width) = self.covering(image.height(), image.width());
        let (rest_rows, rest_columns) = (height - self.height, width - self.width);
        let (top, left) = match augmentation.filter(|_| self.random_crop) {
            Some(augmentation) => augmentation.crop(rest_rows, rest_columns),
            None => (half(rest_rows), half(rest_columns)),
        };
        let window = Window { left, top, width: self.width, height: self.height };
        let resized = resizer.resize_window(&image, (width, height), window, Filter::Bilinear);
        let mut values = vec![0.0; self.numbers()];
        // The window lies within the resized image by construction.
        if let Ok(resized) = resized {
            let flipped = self.hflip && augmentation.is_some_and(Augmentation::is_flipped);
            self.normalize(resized.pixels(), flipped, &mut values);
        }
        Pixels { values, original_size: (image.height(), image.width()), crop: (top, left) }
    }

    /// Height and width of the resized image: the shorter side exact, the longer one rounded down.
    fn covering(&self, height: u32, width: u32) -> (u32, u32) {
        let scaled = |side: u32, by: u32, over: u32| {
            let scaled = u64::from(side) * u64::from(by) / u64::from(over.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX)
        };
        let narrow =
            u64::from(width) * u64::from(self.height) <= u64::from(height) * u64::from(self.width);
        match narrow {
            true => (scaled(height, self.width, width), self.width),
            false => (self.height, scaled(width, self.height, height)),
        }
    }

    /// Turns interleaved bytes into normalised planes, horizontally flipped if asked.
    fn normalize(&self, pixels: &[u8], flipped: bool, values: &mut [f32]) {
        let table: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - 0.5) / 0.5);
        let width = self.width as usize;
        let plane = self.height as usize * width;
        let (red, rest) = values.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let rows = red
            .chunks_exact_mut(width)
            .zip(green.chunks_exact_mut(width))
            .zip(blue.chunks_exact_mut(width));
        for (((red, green), blue), row) in rows.zip(pixels.chunks_exact(3 * width)) {
            let values = red.iter_mut().zip(green).zip(blue);
            let set = |(((red, green), blue), [r, g, b]): (
                ((&mut f32, &mut f32), &mut f32),
                &[u8; 3],
            )| {
                *red = table[usize::from(*r)];
                *green = table[usize::from(*g)];
                *blue = table[usize::from(*b)];
            };
            let (row, _) = row.as_chunks::<3>();
            if flipped {
                values.zip(row.iter().rev()).for_each(set);
            } else {
                values.zip(row).for_each(set);
            }
        }
    }
}

/// Half a margin, rounded half to even as Python's `round` does.
fn half(rest: u32) -> u32 {
    if rest % 4 == 3 { rest / 2 + 1 } else { rest / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use media::decode::Mode;
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    /// The synthetic image of scripts/goldens/training_transform.py (`formula`).
    fn formula(height: u32, width: u32) -> Image {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    pixels.push(((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) / (1 + c)) as u8);
                }
            }
        }
        Image::new(Mode::Rgb, width, height, pixels).unwrap()
    }

    fn short_sha256(values: &[f32]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn pixels_are_those_of_torchvision() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/transform.json");
        let golden: Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 27);
        for case in cases {
            let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
            let pair = |value: &Value| (number(&value[0]), number(&value[1]));
            let (height, width) = pair(&case["size"]);
            let side = number(&case["resolution"]);
            let mut transform =
                Transform { height: side, width: side, random_crop: false, hflip: false };
            let image = formula(height, width);
            assert_eq!(transform.covering(height, width), pair(&case["resized"]), "{case}");
            let mut resizer = Resizer::new();
            let central = transform.apply_centrally(&image, &mut resizer);
            assert_eq!(central.original_size, (height, width));
            for (index, value) in central.values.iter().take(3).enumerate() {
                assert_eq!(*value, case["first"][index].as_f64().unwrap() as f32, "{case}");
            }
            assert_eq!(short_sha256(&central.values), case["central"], "{case}");

            // Search for a seed that gives the golden's crop and a flip.
            transform.hflip = true;
            let resized = transform.covering(height, width);
            let (top, left) = pair(&case["crop"]);
            let location = super::super::order::Location { file: 0, row: 0 };
            let augmentation = (0..1_000_000)
                .map(|seed| Augmentation::new(seed, 0, location, 0))
                .find(|draw| {
                    draw.is_flipped()
                        && draw.crop(resized.0 - side, resized.1 - side) == (top, left)
                })
                .unwrap();
            let flipped = transform.apply(&image, augmentation, &mut resizer);
            assert_eq!(short_sha256(&flipped.values), case["flipped"], "{case}");
            transform.random_crop = true;
            let cropped = transform.apply(&image, augmentation, &mut resizer);
            assert_eq!(cropped.crop, (top, left));
            assert_eq!(short_sha256(&cropped.values), case["cropped_flipped"], "{case}");
        }
    }

    #[test]
    fn resolutions_that_are_not_square_are_just_covered() {
        for (height, width) in [(3_u32, 5_u32), (64, 48), (17, 90), (1, 1), (1000, 3)] {
            for (rows, columns) in [(8, 8), (8, 12), (12, 8), (1, 7)] {
                let transform =
                    Transform { height: rows, width: columns, random_crop: false, hflip: false };
                let covering = transform.covering(height, width);
                assert!(covering.0 >= rows && covering.1 >= columns);
                assert!(covering.0 == rows || covering.1 == columns);
                let pixels =
                    transform.apply_centrally(&formula(height, width), &mut Resizer::new());
                assert_eq!(pixels.values.len(), transform.numbers());
            }
        }
    }

    #[test]
    fn margins_are_halved_as_python_rounds() {
        let halves: Vec<u32> = (0..9).map(half).collect();
        assert_eq!(halves, [0, 0, 1, 2, 2, 2, 3, 4, 4]);
    }
}
