//! `train export`: a model as a single file for A1111 and ComfyUI.

use std::path::Path;

use anyhow::{Result, ensure};
use nn::device::Precision;
use nn::pipeline::PipelineSource;

/// Writes the networks of `model` to the file `out`, and returns its length. A file that this
/// command wrote is replaced.
///
/// # Errors
/// If the model is not a pipeline, another file is there, the file cannot be written, or a signal
/// stops it.
pub fn write(model: &Path, out: &Path, precision: Option<Precision>) -> Result<u64> {
    ensure!(
        out.extension().is_some_and(|extension| extension == "safetensors"),
        "--out {}: expected the name of a .safetensors file; hint: {}",
        out.display(),
        out.with_extension("safetensors").display()
    );
    ensure!(
        !out.exists() || nn::single_file::is_packed(out),
        "--out {}: a file that train export did not write is there; hint: another name",
        out.display()
    );
    let source = PipelineSource { model: model.to_owned(), unet: None };
    source.check_local()?;
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        runkit::files::create_folder(folder)?;
        runkit::files::remove_stale_temporaries(folder)?;
    }
    let files = source.fetch()?.files;
    let check = || Ok(runkit::signals::check_at("export")?);
    let kind = precision.map(Precision::kind);
    Ok(nn::single_file::pack(&files, out, kind, &check)?.bytes)
}
