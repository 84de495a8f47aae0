//! The `relabel` program: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use relabel::cli::Cli;
use runkit::exit::ExitStatus;

fn main() -> ExitCode {
    runkit::memory::keep_freed();
    let cli = Cli::parse();
    let verbosity =
        i8::try_from(cli.verbose).unwrap_or(i8::MAX) - i8::try_from(cli.quiet).unwrap_or(i8::MAX);
    let status = match runkit::logging::init(verbosity, cli.log_format) {
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
