//! The new captions of one part: those that occur in no earlier part.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use nn::pipeline::Encoders;
use schemas::latents::{
    CaptionRow, CaptionsLayout, CaptionsWriter, KEY_FINGERPRINT, KEY_MANIFEST, KEY_PART, Manifest,
    PartRecord,
};
use schemas::pairs::{EmptyCaption, caption_problem};
use tch::Tensor;

use super::Part;
use super::manifest::stored;
use super::networks::row;

/// Captions per forward pass. The groups never change: the last bits of an embedding depend on the
/// other captions of the group.
const GROUP: usize = 32;

impl Part<'_> {
    /// The key-value metadata of both files.
    pub(super) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let manifest = Manifest { input: self.file.record(), ..self.manifest.clone() };
        let record = PartRecord {
            row_groups: self.file.row_groups.clone(),
            first_row: self.planned.first_row,
            first_caption: self.planned.first_caption,
        };
        Ok(BTreeMap::from([
            (KEY_FINGERPRINT.to_owned(), self.fingerprint.to_owned()),
            (KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(&manifest)?),
            (KEY_PART.to_owned(), runkit::manifest::canonical_json(&record)?),
        ]))
    }
}

/// Encodes and writes the new captions.
pub(super) fn write(part: &Part<'_>, encoders: &Encoders) -> Result<()> {
    let planned = part.planned;
    let mut next = planned.first_caption;
    let mut group: Vec<String> = Vec::with_capacity(GROUP);
    if next == 0 {
        group.push(String::new());
        next += 1;
    }
    let layout = layout(part, encoders)?;
    let mut writer = CaptionsWriter::create(part.captions_path(), layout, &part.metadata()?)?;
    let mut written = planned.first_caption;
    let mut flush = |group: &mut Vec<String>, writer: &mut CaptionsWriter| -> Result<()> {
        runkit::signals::check_at("captions")?;
        let tokens = part.base.tokens(group)?;
        let texts = encoders.encode_prompt(&tokens)?;
        for (index, caption) in (0..).zip(group.drain(..)) {
            writer.write(CaptionRow {
                caption_index: written,
                caption,
                prompt_embeds: row(&texts.embeds_BLD, index)?,
                pooled_prompt_embeds: texts
                    .pooled_BD
                    .as_ref()
                    .map(|pooled| row(pooled, index))
                    .transpose()?,
            })?;
            written += 1;
        }
        Ok(())
    };
    for batch in part.file.open()?.plan_rows_in(planned.file_rows())? {
        for row in batch? {
            let Some(caption) = row.caption else { continue };
            // Numbers follow the first occurrence, so a caption is new if its number is the next.
            if caption_problem(Some(&caption), EmptyCaption::Allowed).is_some()
                || part.plan.caption(&caption) != Some(next)
            {
                continue;
            }
            next += 1;
            group.push(caption);
            if group.len() == GROUP {
                flush(&mut group, &mut writer)?;
            }
        }
    }
    if !group.is_empty() {
        flush(&mut group, &mut writer)?;
    }
    let (expected, found) = (planned.captions, written - planned.first_caption);
    ensure!(
        expected == found,
        "{}: expected {expected} new captions, found {found}; hint: the file was changed",
        part.file.input.path.display()
    );
    Ok(writer.finish()?)
}

/// The shape of prompt embeddings, from those of the empty caption.
fn layout(part: &Part<'_>, encoders: &Encoders) -> Result<CaptionsLayout> {
    let empty = encoders.encode_prompt(&part.base.tokens(&[""])?)?;
    let (_, tokens, features) = empty.embeds_BLD.size3()?;
    let pooled = empty.pooled_BD.as_ref().map(Tensor::size2).transpose()?;
    Ok(CaptionsLayout {
        stored: stored(part.config.precision),
        shape: [tokens, features],
        pooled: pooled.map(|(_, length)| length),
    })
}
