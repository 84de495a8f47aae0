//! The `train` program: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use train::cli::Cli;

fn main() -> ExitCode {
    nn::device::reuse_memory();
    runkit::program::main(
        runkit::build!(nn::doctor::version),
        |cli: &Cli| cli.log,
        |cli| {
            let status = train::commands::run(cli.command, &version());
            locations::log_traffic();
            status
        },
    )
}

/// The version and the commit, if the build knew it: all ranks of a run have the same.
fn version() -> String {
    let commit = option_env!("BALANCEDDPO_COMMIT").filter(|commit| !commit.is_empty());
    [env!("CARGO_PKG_VERSION"), commit.unwrap_or("unknown")].join(", commit ")
}
