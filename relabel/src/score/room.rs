//! The disk space that a run needs.

use std::path::Path;

use anyhow::{Result, ensure};
use indicatif::HumanBytes;

use super::captions::{Groups, feature_bytes};
use super::plan::Plan;

/// Bytes of a row of labels besides its scores, generously: measured files have 100 to 200 in all.
const LABEL_BYTES: u64 = 360;
/// Bytes of a score and of its part of a vote, in the labels and in a part, where they hardly
/// compress.
const SCORE_BYTES: u64 = 5;
/// Bytes of a row in the plan, besides the text of its caption.
const PLAN_BYTES: u64 = 36;
/// Bytes of a row of a part besides its scores: mostly the digest of an image.
const PART_BYTES: u64 = 24;

/// Bytes a run takes on the disk, by where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The labels file, in the output's folder; in the work folder if it is uploaded.
    pub labels: u64,
    /// The parts, in the work folder, until the labels are written.
    pub parts: u64,
    /// The plan and the features of all captions, in the work folder until the labels are written.
    pub shared: u64,
    /// The text of the captions, and that of tars that lie elsewhere, in the scratch folder of a
    /// process that makes the plan.
    pub captions: u64,
    /// Features of the captions that this process needs, in the scratch folder.
    pub features: u64,
}

impl Room {
    /// For a process that scores `units` of the plan with so many scorers. `widths` are the numbers
    /// that each text tower gives for a caption. Labels and parts are estimates for all units,
    /// captions and features are exact.
    pub(super) fn of(
        plan: &Plan,
        units: impl Iterator<Item = usize>,
        widths: &[usize],
        scorers: usize,
    ) -> Self {
        let captions = units
            .flat_map(|unit| plan.units[unit].slots())
            .filter(|&slot| plan.owner(slot).map(u64::from) == Some(slot))
            .filter_map(|slot| plan.owner(slot))
            .flat_map(|owner| plan.image_captions_of(owner))
            .filter_map(|index| Some(plan.image_caption(index)?.caption));
        let groups = Groups::of(plan);
        let (rows, scores) = (plan.pairs(), scorers as u64 * SCORE_BYTES);
        let all = 0..u32::try_from(plan.captions.len()).unwrap_or(u32::MAX);
        Self {
            shared: rows * PLAN_BYTES
                + plan.captions.bytes()
                + plan.kept_bytes()
                + feature_bytes(all, &groups, widths),
            labels: rows * (LABEL_BYTES + 2 * scores),
            // A row for each place of an image and one for each of its scores.
            parts: 2 * rows * (2 * PART_BYTES + scores),
            captions: plan.captions.bytes() + plan.kept_bytes(),
            features: feature_bytes(captions, &groups, widths),
        }
    }

    /// The most that the work folder holds, without the labels.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.parts + self.shared
    }

    /// The most that the scratch folder holds.
    #[must_use]
    pub fn scratch(&self) -> u64 {
        self.captions + self.features
    }

    /// Refuses a scratch folder without room for the features. The captions are there already.
    pub(super) fn refuse_full_scratch(&self, scratch: &Path) -> Result<()> {
        let free = runkit::files::free_space(scratch)?;
        ensure!(
            self.features <= free,
            "{}: no space left for the features of the captions: they take {}, only {} are free; \
             hint: --scratch FOLDER on another disk",
            scratch.display(),
            HumanBytes(self.features),
            HumanBytes(free)
        );
        Ok(())
    }
}
