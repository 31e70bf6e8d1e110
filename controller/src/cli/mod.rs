//! The commands.

mod admin;
mod args;
mod audit;
mod backup;
mod columns;
mod describe;
mod device;
mod diff;
mod envelope;
mod get;
mod prompt;
mod records;
mod rotate;
mod run;
mod security;
mod security_args;
mod status;
mod table;
mod validate;

pub use args::{Cli, Command, Output, What};
pub use run::{execute, main};

use std::io::{self, Write};

use serde::Serialize;

/// Writes a value as JSON or YAML.
fn write_value(out: &mut dyn Write, value: &impl Serialize, output: Output) -> anyhow::Result<()> {
    // As a whole, so that a reader that goes away is met in one place.
    let text = match output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        _ => serde_saphyr::to_string(value)?,
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Writes a text with each of its lines indented.
fn write_indented(out: &mut dyn Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "  {}", table::clean(line)))
}
