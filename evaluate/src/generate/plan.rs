//! What a run would generate, and how long it takes.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use nn::schedule::SamplerKind;
use serde::Serialize;

use super::Generation;
use super::generator::Generator;
use crate::output::duration;
use crate::sources::Size;

/// What `Generation::run` would do.
#[derive(Debug, Clone, Serialize)]
pub struct GenerationPlan {
    /// How many prompts each set has.
    pub prompts: BTreeMap<String, usize>,
    /// Images of each prompt and model.
    pub images_per_prompt: usize,
    /// The models.
    pub models: Vec<ModelPlan>,
    /// Bytes that the images will take.
    pub bytes_needed: u64,
    /// Bytes that the disk has left.
    pub bytes_free: u64,
    /// How long it takes.
    pub seconds: f64,
}

/// What is to be generated with a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelPlan {
    /// Its name.
    pub model: String,
    /// Images of it.
    pub images: usize,
    /// Those that are not there yet.
    pub missing: usize,
    /// Their size.
    pub size: Size,
    /// Denoising steps.
    pub steps: usize,
    /// The scheduler.
    pub scheduler: SamplerKind,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Images generated together.
    pub batch_size: usize,
}

impl Generation<'_> {
    /// What `Generation::run` would do. The networks of every model are loaded and timed; nothing
    /// is written.
    ///
    /// # Errors
    /// If a checkpoint cannot be loaded.
    pub fn dry_run(&self) -> Result<GenerationPlan> {
        let mut prompts = BTreeMap::<String, usize>::new();
        for prompt in self.prompts {
            *prompts.entry(prompt.set.clone()).or_default() += 1;
        }
        let (mut models, mut seconds) = (Vec::new(), 0.0);
        for work in self.work() {
            let record = &work.model.record;
            models.push(ModelPlan {
                model: work.model.name.clone(),
                images: self.jobs.len(),
                missing: work.missing,
                size: record.size,
                steps: self.config.steps,
                scheduler: record.scheduler,
                guidance: record.guidance,
                batch_size: work.batch_size,
            });
            if let Some(batch) = work.incomplete().next() {
                let call = Generator::load(work.model, self.config)?.seconds_of_call(batch.jobs)?;
                let batches = work.incomplete().count();
                seconds += call.unwrap_or_default() * (batches * work.model.calls) as f64;
            }
        }
        Ok(GenerationPlan {
            prompts,
            images_per_prompt: self.config.seeds.clone().count(),
            models,
            bytes_needed: self.bytes(),
            bytes_free: runkit::files::free_space(&self.config.out)?,
            seconds,
        })
    }
}

impl fmt::Display for GenerationPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = self.prompts.iter().map(|(set, prompts)| format!("{prompts} prompts of {set}"));
        let sets = sets.collect::<Vec<_>>().join(", ");
        writeln!(formatter, "{sets}, {} images each", self.images_per_prompt)?;
        for plan in &self.models {
            let ModelPlan { model, images, missing, size, steps, scheduler, .. } = plan;
            let ModelPlan { guidance, batch_size, .. } = plan;
            writeln!(
                formatter,
                "{model}: {missing} of {images} images to generate at {size}, {steps} steps of \
                 {scheduler}, guidance {guidance}, batches of {batch_size}"
            )?;
        }
        writeln!(
            formatter,
            "disk: about {:.1} MB needed for images, {:.1} GB free\ntime: about {} to generate",
            self.bytes_needed as f64 / 1e6,
            self.bytes_free as f64 / 1e9,
            duration(self.seconds)
        )
    }
}
