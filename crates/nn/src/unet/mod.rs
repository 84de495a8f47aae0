//! `UNet2DConditionModel`: the network that predicts the noise (or velocity) in noisy latents from
//! the timestep and the prompt embeddings.
//!
//! One file for each part; each field is loaded under its name in the checkpoint. Behaviour follows
//! huggingface/diffusers `src/diffusers/models/unets/unet_2d_condition.py` at v0.42.1; outputs
//! agree to 1e-4 of their size in f32, gradients to 1e-3 (`tests/unet_goldens.rs`).

mod adapters;
mod attention;
mod config;
mod cost;
mod down;
mod embedding;
mod mid;
mod text;
mod transformer;
mod up;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use adapters::Adapters;
pub use config::UNetConfig;
pub use cost::UNetCost;
use down::DownBlock;
use embedding::{AddedEmbedding, TimeEmbedding};
use mid::MidBlock;
pub use text::ProjectedText;
use text::TextProjections;
use up::UpBlock;

use crate::device::{Precision, inference};
use crate::error::{ModelError, NetworkError};
use crate::layers::{Conv2d, GroupNorm, trains_in_nchw};
use crate::shim;
use crate::weights::{Frozen, Loader, Purpose, WeightCopies, Weights, Written, write_while};

/// The file of weights that [`UNet::save`] writes beside `config.json`.
pub const SAVED_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The usual names of the weights in a folder, the best first, for [`Weights::open_folder`].
pub const WEIGHT_FILES: &[&str] = &[
    SAVED_WEIGHTS,
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.fp16.bin",
];

/// A tensor that every such network has.
pub(crate) const ANCHORS: &[&str] = &["conv_in.weight"];

/// SDXL's conditions beside the text (`added_cond_kwargs` in diffusers).
#[derive(Debug)]
#[doc(alias = "added_cond_kwargs")]
pub struct AddedConditions {
    /// The second text encoder's projected features, `[B, D]`.
    pub pooled_BD: Tensor,
    /// Original height and width, top and left of the crop, target height and width: `[B, 6]`.
    pub time_ids_B6: Tensor,
}

/// The network.
#[derive(Debug)]
#[doc(alias = "UNet2DConditionModel")]
pub struct UNet {
    config: UNetConfig,
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    added_embedding: Option<AddedEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    texts: TextProjections,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    parameters: Vec<(String, Tensor)>,
    copies: WeightCopies,
    adapters: Option<Adapters>,
    device: Device,
    precision: Precision,
    purpose: Purpose,
    spread_weights: u64,
    checkpointing: bool,
}

impl UNet {
    /// Loads the network for inference in `precision`: strict, every tensor with its shape and
    /// finite, all differences in one error.
    ///
    /// # Errors If the checkpoint does not fit the configuration, or the precision does not fit the
    /// device.
    pub fn load(
        config: &UNetConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = weights.rooted(ANCHORS);
        let loader = Loader::new(&weights, "UNet", device, precision);
        Ok(Self::build(config, loader)?.0)
    }

    /// Loads the network for training: weights are f32 and record gradients; products are computed
    /// in `precision`, with the bits that autocast gives. After a change of the weights call
    /// [`UNet::cast_weights`].
    pub fn load_for_training(
        config: &UNetConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = weights.rooted(ANCHORS);
        let loader = Loader::for_training(&weights, "UNet", device, precision);
        Ok(Self::build(config, loader)?.0)
    }

    /// [`UNet::load_for_training`] with gradient checkpointing. In half precision there are no copies of
    /// the weights: each layer casts its own whenever it computes, also when it is recomputed, and
    /// drops them with the rest of its part. Gradients and outputs have the same bits.
    ///
    /// # Errors
    /// As [`UNet::load_for_training`].
    pub fn load_for_checkpointing(
        config: &UNetConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = weights.rooted(ANCHORS);
        let loader = Loader::for_training(&weights, "UNet", device, precision).casting_at_use();
        let mut network = Self::build(config, loader)?.0;
        network.set_gradient_checkpointing(true);
        Ok(network)
    }

    /// Loads the reference model of a network in training. It records no gradients and stores the
    /// weights in `precision`, so that bf16 takes half the memory.
    ///
    /// With the same weights, its output equals that of [`UNet::load_for_training`] bit for bit,
    /// because casting a weight once or at every use gives the same bits. [`UNet::load`] would be
    /// slightly faster, but differs in the last bits.
    pub fn load_reference(
        config: &UNetConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = weights.rooted(ANCHORS);
        let loader = Loader::for_reference(&weights, "UNet", device, precision);
        Ok(Self::build(config, loader)?.0)
    }

    /// Casts the weights to the compute precision for the next passes: call it after every change of
    /// [`UNet::parameters`]. A network that reads its weights in f32 has nothing to cast. Does not
    /// wait for the device.
    ///
    /// # Errors
    /// If libtorch cannot copy them.
    pub fn cast_weights(&mut self) -> Result<(), NetworkError> {
        Ok(self.copies.update()?)
    }

    /// Updates the reference model: copies the weights of a network in training, cast to the
    /// precision of this reference. Does not wait for the device.
    ///
    /// # Errors If this is not a reference, or `other` differs in its tensors or its precision.
    #[doc(alias = "update_reference")]
    #[doc(alias = "reference model updating")]
    pub fn copy_weights_from(&mut self, trained: &Self) -> Result<(), NetworkError> {
        let refused =
            |reason: &str| Err(NetworkError::Input { network: "UNet", reason: reason.to_owned() });
        if self.purpose != Purpose::Reference {
            return refused("weights can be copied into a reference only (UNet::load_reference)");
        }
        if trained.parameters.is_empty() {
            return refused("a network loaded for inference has no plain weights to copy");
        }
        let tensors = |network: &Self| -> Vec<(String, Vec<i64>)> {
            network.parameters.iter().map(|(name, value)| (name.clone(), value.size())).collect()
        };
        if tensors(self) != tensors(trained) || self.precision != trained.precision {
            return refused("expected a network of the reference's tensors and precision");
        }
        tch::no_grad(|| {
            for ((_, own), (_, other)) in self.parameters.iter_mut().zip(&trained.parameters) {
                own.f_copy_(other)?;
            }
            Ok(())
        })
    }

    /// The network, and with adapters its frozen weights.
    fn build(config: &UNetConfig, loader: Loader<'_>) -> Result<(Self, Frozen), ModelError> {
        config.validate()?;
        let mut loader = loader.refusing_non_finite();
        let (device, precision, purpose) = (loader.device(), loader.precision(), loader.purpose());
        precision.check(device)?;
        let channels = &config.block_out_channels;
        let (first, groups) = (config.first_channels(), config.norm_num_groups);
        let mut texts = TextProjections::default();
        let (loader_ref, texts_ref) = (&mut loader, &mut texts);
        let (inputs, outputs) = (config.in_channels, config.out_channels);
        let mut network = Self {
            config: config.clone(),
            conv_in: Conv2d::load_3x3(loader_ref, "conv_in", inputs, first),
            time_embedding: TimeEmbedding::load(config, loader_ref),
            added_embedding: AddedEmbedding::load(config, loader_ref),
            down_blocks: (0..channels.len())
                .map(|index| DownBlock::load(config, index, loader_ref, texts_ref))
                .collect(),
            mid_block: MidBlock::load(config, loader_ref, texts_ref),
            up_blocks: (0..channels.len())
                .map(|index| UpBlock::load(config, index, loader_ref, texts_ref))
                .collect(),
            norm_out: GroupNorm::load(loader_ref, "conv_norm_out", groups, first, config.norm_eps),
            conv_out: Conv2d::load_3x3(loader_ref, "conv_out", first, outputs),
            texts,
            parameters: Vec::new(),
            copies: WeightCopies::default(),
            adapters: None,
            device,
            precision,
            purpose,
            spread_weights: 0,
            checkpointing: false,
        };
        network.spread_weights = loader.spread_weights();
        network.parameters = loader.take_parameters();
        network.copies = loader.take_copies();
        let frozen = loader.take_frozen();
        loader.finish(|_| false)?;
        Ok((network, frozen))
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// How many weights loading has moved because their file stores f16 numbers, each by less than
    /// half a unit of f16. Only networks for training in bf16 and their references do that
    /// (`weights/f16_born.rs`).
    pub fn spread_weights(&self) -> u64 {
        self.spread_weights
    }

    /// The device it is on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The precision it computes in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The trained tensors by their names in the checkpoint: f32 leaves. For a reference, its
    /// weights in its precision; for a network loaded for inference, nothing. With adapters
    /// ([`UNet::load_with_adapters`]) they are these alone, f32 also in a reference.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Turns gradient checkpointing on or off. With it, a forward pass keeps only the inputs of
    /// each residual block and each transformer, and the backward pass recomputes the activations
    /// inside. Gradients are the same.
    #[doc(alias = "enable_gradient_checkpointing")]
    #[doc(alias = "activation checkpointing")]
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// The prediction for noisy latents `latents_BCHW` at `timesteps_B` (any dtype), given the
    /// prompt embeddings `text_BLD` and for SDXL `added`: `[B, C', H, W]` f32. A single timestep or
    /// text serves all rows.
    ///
    /// A network loaded for inference runs in libtorch's inference mode: its result records no
    /// gradients, and code outside of that mode must not change it in place. The result of a
    /// reference records no gradients either, but is an ordinary tensor.
    pub fn forward(
        &self,
        latents_BCHW: &Tensor,
        timesteps_B: &Tensor,
        text_BLD: &Tensor,
        added: Option<&AddedConditions>,
    ) -> Result<Tensor, NetworkError> {
        let batch = self.check_latents(latents_BCHW)?;
        let text = self.project_text(text_BLD, batch)?;
        self.forward_projected(latents_BCHW, timesteps_B, &text, added)
    }

    /// Prepares the prompt embeddings `text_BLD` for any number of passes over `batch` rows; a
    /// single text serves all rows. For inference, this already computes the keys and values of all
    /// cross-attention layers.
    pub fn project_text(
        &self,
        text_BLD: &Tensor,
        batch: i64,
    ) -> Result<ProjectedText, NetworkError> {
        let (text, width) = (text_BLD.size(), self.config.cross_attention_dim);
        let length = match text[..] {
            [rows, length, found]
                if (rows == 1 || rows == batch) && length > 0 && found == width =>
            {
                length
            }
            _ => return unfit(format!("expected text [{batch}, L, {width}], found {text:?}")),
        };
        let tensor = self.in_mode(|| {
            let text_BLD = text_BLD.f_to_device(self.device)?.f_to_kind(self.precision.kind())?;
            let text_BLD = text_BLD.f_expand([batch, length, width], false)?.f_contiguous()?;
            match self.purpose {
                Purpose::Inference => self.texts.forward(&text_BLD),
                Purpose::Training | Purpose::Reference => Ok(text_BLD),
            }
        })?;
        Ok(ProjectedText { tensor, batch })
    }

    /// [`UNet::forward`] for a text that this network has projected.
    pub fn forward_projected(
        &self,
        latents_BCHW: &Tensor,
        timesteps_B: &Tensor,
        text: &ProjectedText,
        added: Option<&AddedConditions>,
    ) -> Result<Tensor, NetworkError> {
        let batch = self.check_latents(latents_BCHW)?;
        if text.batch != batch {
            return unfit(format!("expected a text of {batch} rows, found {}", text.batch));
        }
        self.check_conditions(batch, timesteps_B, added)?;
        self.in_mode(|| self.compute(latents_BCHW, timesteps_B, &text.tensor, added))
    }

    /// Runs `body` as the purpose of the network asks for.
    fn in_mode<T>(&self, body: impl FnOnce() -> T) -> T {
        match self.purpose {
            Purpose::Inference => inference(body),
            Purpose::Training => body(),
            Purpose::Reference => tch::no_grad(body),
        }
    }

    fn compute(
        &self,
        latents_BCHW: &Tensor,
        timesteps_B: &Tensor,
        text: &Tensor,
        added: Option<&AddedConditions>,
    ) -> Result<Tensor, NetworkError> {
        let kind = self.precision.kind();
        let batch = latents_BCHW.size4()?.0;
        let timesteps_B = timesteps_B
            .f_to_device(self.device)?
            .f_to_kind(Kind::Float)?
            .f_expand([batch], false)?;
        let mut embedding_BD = self.time_embedding.forward(&timesteps_B, kind)?;
        if let (Some(layer), Some(added)) = (&self.added_embedding, added) {
            embedding_BD = embedding_BD.f_add(&layer.forward(added, self.device, kind)?)?;
        }
        // Every residual block begins with this activation of the time embedding.
        let embedding_BD = embedding_BD.f_silu()?;
        let text = text.shallow_clone();
        let conditions = Conditions {
            embedding_BD,
            text,
            checkpointing: self.checkpointing,
            leaf: self.recording_leaf()?,
        };

        let latents_BCHW = latents_BCHW.f_to_device(self.device)?.f_to_kind(kind)?;
        // The reference computes in the same layout as the network in training, so that both agree
        // to the last bit.
        let in_nchw =
            self.purpose != Purpose::Inference && trains_in_nchw(self.device, self.precision);
        let latents_BCHW = if in_nchw {
            latents_BCHW.f_contiguous()?
        } else {
            shim::channels_last(&latents_BCHW)?
        };
        let mut x_BCHW = self.conv_in.forward(&latents_BCHW)?;
        let mut skips = vec![x_BCHW.shallow_clone()];
        for block in &self.down_blocks {
            x_BCHW = block.forward(x_BCHW, &conditions, &mut skips)?;
        }
        x_BCHW = self.mid_block.forward(&x_BCHW, &conditions)?;
        for block in &self.up_blocks {
            x_BCHW = block.forward(x_BCHW, &conditions, &mut skips)?;
        }
        let x_BCHW = self.conv_out.forward(&self.norm_out.forward_silu(&x_BCHW)?)?;
        Ok(x_BCHW.f_to_kind(Kind::Float)?.f_contiguous()?)
    }

    /// The rows of the batch.
    fn check_latents(&self, latents_BCHW: &Tensor) -> Result<i64, NetworkError> {
        let (latents, channels) = (latents_BCHW.size(), self.config.in_channels);
        match latents[..] {
            [batch, found, height, width]
                if found == channels && batch > 0 && height > 0 && width > 0 =>
            {
                Ok(batch)
            }
            _ => unfit(format!("expected latents [B, {channels}, H, W], found {latents:?}")),
        }
    }

    fn check_conditions(
        &self,
        batch: i64,
        timesteps_B: &Tensor,
        added: Option<&AddedConditions>,
    ) -> Result<(), NetworkError> {
        let times = timesteps_B.size();
        if !matches!(times[..], [rows] if rows == 1 || rows == batch) {
            return unfit(format!("expected timesteps [{batch}] or [1], found {times:?}"));
        }
        match (&self.added_embedding, added) {
            (None, None) => Ok(()),
            (None, Some(_)) => unfit("expected no added conditions".to_owned()),
            (Some(_), None) => unfit("expected added conditions, as SDXL has them".to_owned()),
            (Some(layer), Some(added)) => layer.check(added, batch),
        }
    }

    /// Writes `config.json` and `diffusion_pytorch_model.safetensors` into `folder`, which must
    /// exist. diffusers' `from_pretrained` loads them, key for key. Weights are f32, or in the
    /// precision of a reference. Of a network with adapters it writes these alone, to
    /// `adapters.safetensors`. Returns a record of the weights file.
    ///
    /// # Errors
    /// If a file cannot be written, or the network was loaded for inference, which keeps its
    /// weights in the layout of the kernels.
    pub fn save(&self, folder: &Path) -> Result<Written, ModelError> {
        self.save_while(folder, &|| Ok(()))
    }

    /// [`UNet::save`] that calls `check` before each tensor. Its error ends the save, and no file
    /// appears.
    pub fn save_while(
        &self,
        folder: &Path,
        check: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<Written, ModelError> {
        if self.parameters.is_empty() {
            return Err(ModelError::Folder {
                folder: folder.to_owned(),
                reason: "a network loaded for inference cannot be saved\n\
                    hint: load it for training, or copy the folder it came from"
                    .to_owned(),
            });
        }
        self.save_tensors(folder, &self.parameters, check)
    }

    /// [`UNet::save_while`] of other tensors of the same names: those of a moving average.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_tensors(
        &self,
        folder: &Path,
        tensors: &[(String, Tensor)],
        check: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<Written, ModelError> {
        let file = folder.join(self.saved_file());
        if let Some(config) = self.lora() {
            return Ok(write_while(&file, tensors, &config.metadata_of_checkpoint(), check)?);
        }
        let written = write_while(&file, tensors, &[], check)?;
        runkit::files::write_json_atomic(folder.join("config.json"), self.config.source())?;
        Ok(written)
    }
}

/// What every block reads beside the feature map.
#[derive(Debug)]
struct Conditions {
    /// The time embedding after its activation, `[B, D]`.
    embedding_BD: Tensor,
    /// The tensor of the [`ProjectedText`].
    text: Tensor,
    /// Whether the backward pass recomputes activations (gradient checkpointing).
    checkpointing: bool,
    /// With adapters and gradient checkpointing, a leaf that records gradients.
    leaf: Option<Tensor>,
}

fn unfit<T>(reason: String) -> Result<T, NetworkError> {
    Err(NetworkError::Input { network: "UNet", reason })
}

#[cfg(test)]
mod tests;
