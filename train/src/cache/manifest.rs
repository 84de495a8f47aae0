//! What a cache depends on, as its [`Manifest`] records it, and what a restart may change.

use anyhow::Result;
use nn::device::{Precision, dtype_name};
use nn::vae::VaeConfig;
use runkit::files::FileHashes;
use schemas::latents::{Manifest, SCHEMA_VERSION, StoredFloat, encoders};
use schemas::pairs::InputRecord;

use super::Config;
use crate::model::BaseModel;

/// Fields that change latents by rounding alone. A restart may change them; each part keeps its
/// own.
pub(super) const NUMERICS: [&str; 3] = ["crate_version", "device", "batch_size"];
/// How images become pixels.
const TRANSFORM: &str = "resize-bilinear-center-crop";

/// Fields that grow with a cache.
pub(super) const GROWING: [&str; 2] = ["input", "parts"];

/// Describes a cache but for its pairs; hashes the files of the encoders.
pub(super) fn describe(
    config: &Config,
    base: &BaseModel,
    hashes: &mut FileHashes,
) -> Result<Manifest> {
    let vae = VaeConfig::read(&base.files.vae.config)?;
    let side = u32::try_from(base.resolution)?;
    Ok(Manifest {
        crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        schema_version: SCHEMA_VERSION,
        pipeline: base.files.family.class_name().to_owned(),
        encoders: encoders(&base.parts(hashes)?),
        transform: TRANSFORM.to_owned(),
        resolution: [side, side],
        hflip: config.hflip,
        dtype: dtype_name(config.precision, config.device),
        stored: stored(config.precision).name().to_owned(),
        device: device(config).to_owned(),
        batch_size: config.batch_size,
        latent_shape: base.latent_size,
        scaling_factor: vae.scaling_factor,
        shift_factor: vae.shift_factor,
        input: InputRecord::new(0, None, Vec::new()),
    })
}

/// The same with the numerics of this start.
pub(super) fn with_numerics_of(config: &Config, manifest: Manifest) -> Manifest {
    Manifest {
        crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        device: device(config).to_owned(),
        batch_size: config.batch_size,
        ..manifest
    }
}

fn device(config: &Config) -> &'static str {
    if config.device.is_cuda() { "cuda" } else { "cpu" }
}

/// A checksum of the identity, which all parts of a cache have in common. It does not depend on the
/// pairs.
pub(super) fn fingerprint(manifest: &Manifest) -> Result<String> {
    let mut identity = serde_json::to_value(manifest)?;
    if let Some(fields) = identity.as_object_mut() {
        fields.retain(|name, _| {
            !NUMERICS.contains(&name.as_str()) && !GROWING.contains(&name.as_str())
        });
    }
    Ok(runkit::manifest::fingerprint(&identity)?)
}

/// The dtype that stores numbers computed in `precision`. Half precision has three bits more than
/// bf16, and latents lie far within its range.
pub(super) fn stored(precision: Precision) -> StoredFloat {
    match precision {
        Precision::F32 => StoredFloat::Float32,
        Precision::Bf16 | Precision::F16 => StoredFloat::Float16,
    }
}
