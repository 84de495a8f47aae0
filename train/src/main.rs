//! The `train` program: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use runkit::exit::ExitStatus;

fn main() -> ExitCode {
    ExitStatus::Done.into()
}
