//! `relabel convert`: pairs in, pairs in our Parquet out.

use anyhow::{Context as _, Result, ensure};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::program::{self, usage_unless};

use super::refuse_address;
use crate::cli::ConvertArguments;
use crate::convert::{self, Config};

/// Runs the command.
pub(super) fn run(arguments: &ConvertArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let config = config(arguments).map_err(usage_unless(DeviceError::is_absent))?;
    let stop = runkit::signals::install().context("installing signal handlers")?;
    let summary = convert::run(&config, &stop)?;
    arguments.json.say(|| summary.to_string(), &summary)?;
    let list = format!(
        "list them in DuckDB: SELECT ranking_id FROM '{}/**/*.parquet' WHERE jpg_0 IS NULL OR \
         jpg_1 IS NULL",
        config.out.display()
    );
    Ok(program::status_of_failed(summary.without_images, arguments.max_failed, "rows", &list))
}

fn config(arguments: &ConvertArguments) -> Result<Config> {
    refuse_address("--out", Some(&arguments.out))?;
    ensure!(arguments.limit != Some(0), "--limit 0 takes no pair; hint: leave it out to take all");
    Ok(Config {
        pairs: arguments.pairs.clone(),
        splits: arguments.split.clone(),
        layout: arguments.layout,
        limit: arguments.limit,
        out: arguments.out.clone(),
        file_mib: arguments.file_mib,
        fresh: arguments.fresh,
        dry_run: arguments.dry_run,
    })
}
