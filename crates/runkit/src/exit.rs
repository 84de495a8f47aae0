//! The exit codes that scripts, `make` and job schedulers may rely on.

use std::process::ExitCode;

/// How a program ended. `make` stops on everything but [`ExitStatus::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The work is done and the output is complete.
    Done = 0,
    /// The work failed: configuration, input, output, model. No half-made file is under a final
    /// name.
    Failed = 1,
    /// The command line was not understood (the code clap uses too).
    Usage = 2,
    /// The output is complete, but more rows failed than the user allows.
    TooManyFailedRows = 3,
    /// Stopped by SIGINT (Ctrl-C) after a clean save; the same command resumes.
    Interrupted = 130,
    /// Stopped by SIGTERM after a clean save; the same command resumes.
    Terminated = 143,
}

impl ExitStatus {
    /// The number the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::ExitStatus;

    #[test]
    fn codes_are_the_documented_ones() {
        let all = [
            (ExitStatus::Done, 0),
            (ExitStatus::Failed, 1),
            (ExitStatus::Usage, 2),
            (ExitStatus::TooManyFailedRows, 3),
            (ExitStatus::Interrupted, 130),
            (ExitStatus::Terminated, 143),
        ];
        for (status, code) in all {
            assert_eq!(status.code(), code);
        }
    }
}
