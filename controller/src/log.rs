//! Log lines, on standard error.

use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogFormat;

/// The setting `log_level` cannot be understood.
#[derive(Debug, Error)]
#[error(
    "log_level is '{given}': {why}; write error, warn, info, debug, trace, or directives like info,horizon_channel=debug"
)]
pub struct InvalidLevel {
    given: String,
    why: String,
}

/// Starts to write log lines. Does nothing where that was done before, as in tests.
pub fn start(format: LogFormat, level: &str) -> Result<(), InvalidLevel> {
    let wrong =
        |error: &dyn std::fmt::Display| InvalidLevel { given: level.to_owned(), why: error.to_string() };
    let filter = EnvFilter::try_new(level).map_err(|error| wrong(&error))?;
    let lines = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "log lines are already being written");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_level_is_explained() {
        let error = start(LogFormat::Text, "info,horizon=loud").unwrap_err().to_string();
        assert!(error.contains("write error, warn"), "{error}");
    }
}
