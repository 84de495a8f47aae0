//! The `train` program: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use runkit::exit::ExitStatus;
use train::cli::Cli;

fn main() -> ExitCode {
    nn::device::reuse_memory();
    let cli = Cli::parse();
    let status = match cli.log.init() {
        Ok(()) => train::commands::run(cli.command),
        Err(error) => Err(error.into()),
    };
    match status {
        Ok(status) => status.into(),
        Err(error) => {
            train::commands::report(&error);
            ExitStatus::Failed.into()
        }
    }
}
