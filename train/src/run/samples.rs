//! Sample images of fixed prompts, which show what training does.
//!
//! `samples/step-000500/00.png`: the prompts in order; each has its own seed, which never changes.
//! The PNG holds prompt and seed as text.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use nn::distributed::World;
use nn::pipeline::{Family, Image, SampleRequest};
use nn::schedule::SamplerKind;
use runkit::lists;
use runkit::signals::StopFlag;
use tch::{Device, Kind, Tensor};

use super::ranks;
use crate::config::Config;
use crate::model::{BaseModel, Networks};

/// The folder of a run's samples.
pub const FOLDER: &str = "samples";
/// The number of captions that serve as prompts if no file of prompts is given.
const CAPTIONS: usize = 4;
/// The largest number of prompts: more images would cost more time than they are worth.
const MOST: usize = 64;

/// Extensions of files whose lines are not prompts.
const TABLES: [&str; 6] = ["tsv", "csv", "json", "jsonl", "ndjson", "parquet"];

/// A generated image.
#[derive(Debug)]
pub struct SampleImage {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The PNG, with prompt and seed as text.
    pub png: Vec<u8>,
}

/// Generates the sample images of a run.
#[derive(Debug)]
pub struct Sampler {
    /// The prompts.
    pub prompts: Vec<String>,
    /// Steps between sets of images.
    every: u64,
    /// Denoising steps of an image.
    steps: usize,
    /// The guidance scale; `None` for the pipeline's usual one.
    guidance: Option<f64>,
    /// The sampler: how denoising steps are taken.
    kind: SamplerKind,
    /// Whether training uses gradient checkpointing.
    grad_checkpointing: bool,
}

impl Sampler {
    /// Reads the prompts; `captions` serve if no file is named. `None` if the run generates no
    /// samples.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no prompt or too many.
    pub fn new(config: &Config, captions: &[String], base: &BaseModel) -> Result<Option<Self>> {
        let settings = &config.settings;
        if settings.sample_every == 0 {
            return Ok(None);
        }
        let kind = base.schedule.sampler_kind().unwrap_or(SamplerKind::Ddim);
        nn::schedule::Sampler::new(&base.schedule, kind, settings.sample_steps)
            .context("cannot generate sample images; hint: --sample-every 0 generates none")?;
        let prompts = match &settings.sample_prompts {
            None => {
                let mut distinct: Vec<String> = Vec::new();
                for caption in captions {
                    if !distinct.contains(caption) && distinct.len() < CAPTIONS {
                        distinct.push(caption.clone());
                    }
                }
                distinct
            }
            Some(path) => prompts(path)?,
        };
        if prompts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            prompts,
            every: settings.sample_every,
            steps: settings.sample_steps,
            guidance: settings.sample_guidance,
            kind,
            grad_checkpointing: config.settings.grad_checkpointing,
        }))
    }

    /// Whether images are due after this step.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Whether all images of a step exist.
    pub fn exists(&self, run: &Path, step: u64) -> bool {
        (0..self.prompts.len()).all(|index| path(run, step, index).is_file())
    }

    /// Generates the images of a step: each rank those of every W-th prompt, which all ranks then
    /// get. The bits of an image do not depend on the rank.
    ///
    /// # Errors
    /// If the device of a rank is out of memory, or a signal stops one.
    pub fn generate(
        &self,
        base: &BaseModel,
        networks: &mut Networks,
        step: u64,
        world: &World,
        stop: &StopFlag,
    ) -> Result<Vec<SampleImage>> {
        // Inference keeps no activations, so there is nothing to recompute.
        networks.pipeline.unet.set_gradient_checkpointing(false);
        let were_released = networks.pipeline.encoders.are_released();
        let restored = networks.pipeline.encoders.restore().map_err(anyhow::Error::from);
        let own = restored.and_then(|()| self.generate_own(base, networks, step, world, stop));
        if were_released {
            networks.pipeline.encoders.release();
        }
        networks.pipeline.unet.set_gradient_checkpointing(self.grad_checkpointing);
        let (own, lengths) = match own {
            Ok(own) => {
                let lengths = own.iter().map(|image| (image.size, image.png.len())).collect();
                (own, Ok(lengths))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        let lengths: Vec<Vec<((u32, u32), usize)>> = ranks::gather_late(world, lengths)?;
        if world.size() == 1 {
            return Ok(own);
        }
        let mut own = own.into_iter();
        let mut images = Vec::with_capacity(self.prompts.len());
        for index in 0..self.prompts.len() {
            let owner = index % world.size();
            let (size, length) = *lengths
                .get(owner)
                .and_then(|lengths| lengths.get(index / world.size()))
                .context("a rank has generated fewer images than it should")?;
            let sent = match owner == world.rank() {
                true => {
                    Tensor::f_from_slice(&own.next().map(|image| image.png).unwrap_or_default())?
                }
                false => Tensor::f_zeros([i64::try_from(length)?], (Kind::Uint8, Device::Cpu))?,
            };
            world.broadcast(&sent, owner)?;
            images.push(SampleImage { size, png: Vec::<u8>::try_from(&sent)? });
        }
        Ok(images)
    }

    /// Generates this rank's images, one at a time, so that memory does not grow beyond that of
    /// training.
    fn generate_own(
        &self,
        base: &BaseModel,
        networks: &Networks,
        step: u64,
        world: &World,
        stop: &StopFlag,
    ) -> Result<Vec<SampleImage>> {
        let pipeline = &networks.pipeline;
        let negative_tokens = base.tokens(&[""])?;
        let negative = pipeline.encode_negative_prompt(&negative_tokens, true)?;
        let guidance = self.guidance.unwrap_or(match pipeline.family() {
            Family::StableDiffusion => 7.5,
            Family::StableDiffusionXl => 5.0,
        });
        let mut images = Vec::new();
        let prompts = (0u64..).zip(&self.prompts).skip(world.rank()).step_by(world.size());
        for (seed, prompt) in prompts {
            runkit::fault::point("sample");
            let tokens: Vec<Tensor> = base.tokens(&[prompt])?;
            let request = SampleRequest {
                prompt: &pipeline.encode_prompt(&tokens)?,
                negative: &negative,
                seeds: &[seed],
                steps: self.steps,
                guidance,
                sampler: self.kind,
                height: base.resolution,
                width: base.resolution,
            };
            let mut progress = |_, _| stop.flow().map_break(|_| ());
            let generated = pipeline.sample(&request, &mut progress)?;
            stop.check()?;
            for image in generated.unwrap_or_default() {
                let side =
                    |length: usize| u32::try_from(length).context("an image is too large for PNG");
                let size = (side(image.width)?, side(image.height)?);
                images.push(SampleImage {
                    size,
                    png: self.encode(&image, size, prompt, seed, step)?,
                });
            }
        }
        Ok(images)
    }

    fn encode(
        &self,
        image: &Image,
        (width, height): (u32, u32),
        prompt: &str,
        seed: u64,
        step: u64,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // iTXt is UTF-8; tEXt is Latin-1.
        encoder.add_itxt_chunk("prompt".to_owned(), prompt.to_owned())?;
        let facts = [
            ("seed", seed.to_string()),
            ("step", step.to_string()),
            ("sample steps", self.steps.to_string()),
        ];
        for (key, text) in facts {
            encoder.add_text_chunk(key.to_owned(), text)?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&image.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

/// Writes the images of a step.
///
/// # Errors
/// If a file cannot be written.
pub fn write(images: &[SampleImage], run: &Path, step: u64) -> Result<()> {
    runkit::files::create_folder(folder(run, step))?;
    for (index, image) in images.iter().enumerate() {
        let path = path(run, step, index);
        runkit::files::write_atomic(path, |file| file.write_all(&image.png))?;
    }
    Ok(())
}

fn folder(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step:06}"))
}

fn path(run: &Path, step: u64, index: usize) -> PathBuf {
    folder(run, step).join(format!("{index:02}.png"))
}

/// Whether a file name is that of a sample image.
pub(crate) fn is_image(name: &str) -> bool {
    let digits = name.strip_suffix(".png").unwrap_or_default();
    digits.len() >= 2 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads the prompts of a text file, one per line.
fn prompts(path: &Path) -> Result<Vec<String>> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ensure!(
        !TABLES.contains(&extension.as_str()),
        "{}: expected a text file with a prompt in each line, found a .{extension}; hint: save its \
         prompts as .txt",
        path.display()
    );
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the sample prompts {}", path.display()))?;
    let bytes =
        lists::without_mark(&bytes).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let quoting = lists::Quoting::of_lines(lists::lines(bytes));
    let mut prompts = Vec::new();
    for (number, line) in (1..).zip(lists::lines(bytes)) {
        let text = std::str::from_utf8(line).ok().filter(|text| !text.contains('\0'));
        let text = text.with_context(|| {
            format!("{}:{number}: expected UTF-8 text; hint: save it as UTF-8", path.display())
        })?;
        let text = quoting.unquoted(text);
        if !text.trim().is_empty() {
            prompts.push(text.trim().to_owned());
        }
    }
    ensure!(
        (1..=MOST).contains(&prompts.len()),
        "{}: expected 1 to {MOST} prompts, one per line, found {}; hint: without --sample-prompts \
         the captions of the probe are the prompts",
        path.display(),
        prompts.len()
    );
    Ok(prompts)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        prompts(&path).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn lists_of_prompts_are_read_as_evaluate_reads_them() {
        let marked = read("a.txt", b"\xef\xbb\xbfa fox\r\n\r\nsay \"GO\"\r\n").unwrap();
        assert_eq!(marked, ["a fox", "say \"GO\""]);
        assert_eq!(read("a.txt", b"\"say \"\"GO\"\"\"\na\\nb\n").unwrap(), ["say \"GO\"", "a\\nb"]);
        for (name, bytes, says) in [
            ("a.txt", &b"\xff\xfea\0\n\0"[..], "a.txt: expected UTF-8 text, found UTF-16; hint"),
            ("a.txt", b"a\nna\xefve\n", "a.txt:2: expected UTF-8 text; hint"),
            ("a.txt", b"\n", "a.txt: expected 1 to 64 prompts"),
            (
                "a.tsv",
                b"Prompt\na fox\n",
                "expected a text file with a prompt in each line, found a .tsv",
            ),
        ] {
            let error = read(name, bytes).unwrap_err();
            assert!(error.contains(says), "{says:?} is not in {error}");
        }
    }
}
