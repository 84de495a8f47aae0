//! The `relabel` program: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use relabel::cli::Cli;
use runkit::exit::ExitStatus;

fn main() -> ExitCode {
    nn::device::reuse_memory();
    let cli = Cli::parse();
    let status = match cli.log.init() {
        Ok(()) => relabel::commands::run(cli.command),
        Err(error) => Err(error.into()),
    };
    match status {
        Ok(status) => status.into(),
        Err(error) => {
            relabel::commands::report(&error);
            ExitStatus::Failed.into()
        }
    }
}
