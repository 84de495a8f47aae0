//! Generates an image from a diffusers folder and saves it as a PNG:
//!
//! ```text
//! cargo run --release -p balanceddpo-nn --example generate -- "a picture of a rat" rat.png
//! cargo run --release -p balanceddpo-nn --example generate -- "a red fox" fox.png stable-diffusion-v1-5
//! ```
//!
//! The model is the miniature one of this repository, with images of 32 pixels, unless a third
//! argument names another folder.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use media::text::{HuggingFaceTokenizer, Tokenizer as _};
use nn::device::{DeviceChoice, Precision};
use nn::pipeline::{Pipeline, PipelineFiles, SampleRequest};
use nn::schedule::SamplerKind;
use tch::Tensor;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(prompt), Some(output)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate PROMPT OUTPUT.png [FOLDER]".into());
    };
    let folder = arguments.next().unwrap_or_else(|| "data/mini/sd".to_owned());

    // The first GPU if there is one, else the CPU.
    let files = PipelineFiles::open(Path::new(&folder), None)?;
    let pipeline = Pipeline::load(&files, DeviceChoice::Auto.resolve()?, Precision::F32)?;

    // Token ids `[1, L]` for each text encoder: one, or two of SDXL.
    let tokens = |text: &str| {
        let encode = |folder| {
            let ids = HuggingFaceTokenizer::open(folder)?.encode(text).ids;
            Ok::<_, Box<dyn Error>>(Tensor::from_slice(&ids).unsqueeze(0))
        };
        files.tokenizers.iter().map(|folder| encode(folder)).collect::<Result<Vec<_>, _>>()
    };
    let factor = pipeline.encoders.vae_config().downscale();
    let (height, width) = pipeline.unet.config().sample_size.unwrap_or((64, 64));
    let request = SampleRequest {
        prompt: &pipeline.encode_prompt(&tokens(&prompt)?)?,
        negative: &pipeline.encode_negative_prompt(&tokens("")?, true)?,
        seeds: &[1],
        steps: 30,
        guidance: 7.5,
        sampler: SamplerKind::DpmSolverPlusPlus2M,
        height: factor * height,
        width: factor * width,
    };
    let images = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(()))?;

    for image in images.unwrap_or_default() {
        let file = fs_err::File::create(&output)?;
        let (width, height) = (u32::try_from(image.width)?, u32::try_from(image.height)?);
        let mut encoder = png::Encoder::new(file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header()?.write_image_data(&image.pixels)?;
    }
    Ok(())
}
