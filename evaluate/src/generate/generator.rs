//! The networks of one model at work: from jobs to images.

use std::collections::HashMap;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Instant;

use anyhow::{Context as _, Result};
use media::text::Tokenizer as _;
use nn::NetworkError;
use nn::pipeline::{Image, Pipeline, PromptEmbeds, SampleRequest};
use tch::Tensor;

use super::model::Model;
use super::{Config, Job};

/// Calls of the UNet that are timed.
const TIMED_CALLS: usize = 3;

/// A loaded model.
pub(super) struct Generator<'run> {
    model: &'run Model,
    config: &'run Config,
    pipeline: Pipeline,
    negative: PromptEmbeds,
    /// Encoded prompts, by id. Jobs of one prompt follow each other, so only the prompts of the
    /// batch before can be needed again.
    prompts: HashMap<String, PromptEmbeds>,
}

impl<'run> Generator<'run> {
    /// Loads the networks and encodes the negative prompt.
    pub(super) fn load(model: &'run Model, config: &'run Config) -> Result<Self> {
        let pipeline =
            Pipeline::load_with(&model.files, &model.loras, config.device, config.precision)
                .with_context(|| format!("model {}", model.name))?;
        let text = config.negative_prompt.as_deref();
        // SDXL takes zeros if there is no negative prompt, but not if it is empty.
        let tokens = tokens(model, text.unwrap_or_default())?;
        let negative = pipeline.encode_negative_prompt(&tokens, text.is_none())?;
        Ok(Self { model, config, pipeline, negative, prompts: HashMap::new() })
    }

    /// Generates the images of `jobs` together, or nothing if `progress` breaks. After each call of
    /// the UNet, `progress` receives how many calls are done, and how many there are.
    pub(super) fn generate(
        &mut self,
        jobs: &[Job<'_>],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Image>>> {
        self.generate_together(jobs, progress).map_err(|error| {
            let hint = match error.downcast_ref::<NetworkError>() {
                Some(error) if error.is_out_of_memory() && jobs.len() > 1 => {
                    format!("; hint: --batch-size {}", jobs.len() / 2)
                }
                Some(error) if error.is_out_of_memory() => "; hint: a smaller --size".to_owned(),
                _ => String::new(),
            };
            let first = jobs.first().map(|job| format!(" from prompt {}", job.prompt.id));
            let [name, first] = [self.model.name.as_str(), first.as_deref().unwrap_or_default()];
            error.context(format!(
                "model {name}: cannot generate {} images{first}{hint}",
                jobs.len()
            ))
        })
    }

    /// Seconds of a call of the UNet for all of these jobs. The first call also allocates; it
    /// counts only if there is no other.
    pub(super) fn seconds_of_call(&mut self, jobs: &[Job<'_>]) -> Result<Option<f64>> {
        let mut ends = Vec::new();
        let start = Instant::now();
        self.generate(jobs, &mut |done, all| {
            ends.push(start.elapsed().as_secs_f64());
            if done < TIMED_CALLS.min(all) { Continue(()) } else { Break(()) }
        })?;
        Ok(match ends[..] {
            [] => None,
            [only] => Some(only),
            [first, .., last] => Some((last - first) / (ends.len() - 1) as f64),
        })
    }

    fn generate_together(
        &mut self,
        jobs: &[Job<'_>],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Image>>> {
        self.prompts.retain(|id, _| jobs.iter().any(|job| job.prompt.id == *id));
        for job in jobs {
            if !self.prompts.contains_key(&job.prompt.id) {
                // Alone, so that its last bits do not depend on who else is in the batch.
                let text = self.pipeline.encode_prompt(&tokens(self.model, &job.prompt.text)?)?;
                self.prompts.insert(job.prompt.id.clone(), text);
            }
        }
        let rows: Vec<&PromptEmbeds> =
            jobs.iter().filter_map(|job| self.prompts.get(&job.prompt.id)).collect();
        let seeds: Vec<u64> = jobs.iter().map(|job| job.seed).collect();
        let record = &self.model.record;
        let request = SampleRequest {
            prompt: &stacked(&rows)?,
            negative: &self.negative,
            seeds: &seeds,
            steps: self.config.steps,
            guidance: record.guidance,
            sampler: record.scheduler,
            height: record.size.height,
            width: record.size.width,
        };
        Ok(self.pipeline.sample(&request, progress)?)
    }
}

/// The tokens of a text, `[1, L]` for each text encoder.
fn tokens(model: &Model, text: &str) -> Result<Vec<Tensor>> {
    let tokenizers = model.tokenizers.iter();
    tokenizers
        .map(|tokenizer| Ok(Tensor::f_from_slice(&tokenizer.encode(text).ids)?.f_unsqueeze(0)?))
        .collect()
}

/// The rows under each other.
fn stacked(rows: &[&PromptEmbeds]) -> Result<PromptEmbeds> {
    let hidden: Vec<&Tensor> = rows.iter().map(|row| &row.embeds_BLD).collect();
    let pooled: Option<Vec<&Tensor>> = rows.iter().map(|row| row.pooled_BD.as_ref()).collect();
    Ok(PromptEmbeds {
        embeds_BLD: Tensor::f_cat(&hidden, 0)?,
        pooled_BD: pooled.map(|pooled| Tensor::f_cat(&pooled, 0)).transpose()?,
    })
}
