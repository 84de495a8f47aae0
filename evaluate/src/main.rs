//! The `evaluate` program: parses the command line, runs one command, turns its end into an exit
//! code.

use std::process::ExitCode;

use clap::Parser as _;
use evaluate::cli::Cli;
use runkit::exit::ExitStatus;

fn main() -> ExitCode {
    nn::device::reuse_memory();
    let cli = Cli::parse();
    let status = match cli.log.init() {
        Ok(()) => evaluate::commands::run(cli.command),
        Err(error) => Err(error.into()),
    };
    match status {
        Ok(status) => status.into(),
        Err(error) => {
            evaluate::commands::report(&error);
            ExitStatus::Failed.into()
        }
    }
}
