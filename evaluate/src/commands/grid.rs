//! `evaluate grid`: scores and images in, a contact sheet out.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use runkit::exit::ExitStatus;
use runkit::program::UsageError;
use schemas::scores::ScoresFile;

use crate::cli::grid::GridArguments;
use crate::owned;
use crate::present::grid::{self, GridConfig};

/// Sides of an image that make sense, in pixels.
const SIDES: std::ops::RangeInclusive<u32> = 16..=2048;

/// Runs the command.
pub(super) fn run(arguments: &GridArguments) -> Result<ExitStatus> {
    if let Some(side) = arguments.size {
        let (least, most) = (SIDES.start(), SIDES.end());
        ensure!(
            SIDES.contains(&side),
            UsageError::new(format!("--size must be {least} to {most} pixels, found {side}"))
        );
    }
    ensure!(
        arguments.count != Some(0),
        UsageError::new("--count must be at least 1, found 0; hint: leave it out")
    );
    let folder = arguments.scores.parent().unwrap_or(Path::new(""));
    let out = arguments.out.clone().unwrap_or_else(|| folder.join("grid.png"));
    let parent = out.parent().unwrap_or(Path::new(""));
    ensure!(
        out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")),
        UsageError::new(format!(
            "--out {}: expected the name of a .png file; hint: --out {}",
            out.display(),
            out.with_extension("png").display()
        ))
    );
    crate::output::check_writable(parent)?;
    let rows = ScoresFile::open(&arguments.scores)?.read()?;
    let mut inputs = owned::images(folder, &rows);
    inputs.push(arguments.scores.clone());
    owned::check_sheet(&out, &inputs)?;
    let config = GridConfig {
        layout: arguments.layout,
        prompts: arguments.prompts.clone(),
        models: arguments.models.clone(),
        choose: arguments.choose.clone(),
        count: arguments.count,
        sort: arguments.sort.clone(),
        side: arguments.size,
    };
    let sheet = grid::render(&rows, folder, &config)
        .with_context(|| format!("making a sheet of {}", arguments.scores.display()))?;
    let png = sheet.png().with_context(|| format!("encoding {}", out.display()))?;
    runkit::files::create_folder(parent)?;
    runkit::files::write_atomic(&out, |file| file.write_all(&png))?;
    let value = serde_json::json!({ "sheet": out });
    arguments.json.say(|| format!("sheet: {}\n", out.display()), &value)?;
    Ok(ExitStatus::Done)
}
