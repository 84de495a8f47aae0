//! The `relabel` program: parses the command line, runs one command, turns its end into an exit
//! code.

use std::process::ExitCode;

use relabel::cli::Cli;

fn main() -> ExitCode {
    nn::device::reuse_memory();
    runkit::program::main(
        runkit::build!(nn::doctor::version),
        |cli: &Cli| cli.log,
        |cli| {
            let status = relabel::commands::run(cli.command);
            locations::log_traffic();
            status
        },
    )
}
