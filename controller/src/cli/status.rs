//! `status`: how the controller does.

use std::io::{self, Write};

use super::{args::Output, columns, table::clean, write_indented, write_value};
use crate::api::{client::Client, model::Status};

/// Fetches and tells.
pub(super) async fn status(
    client: &Client,
    output: Output,
    now: jiff::Timestamp,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let status: Status = client.get("/v1/status").await?;
    match output {
        Output::Table | Output::Wide => Ok(tell(&status, now, out)?),
        output => write_value(out, &status, output),
    }
}

fn tell(status: &Status, now: jiff::Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let age = columns::age(&status.started_at.to_string(), now);
    let ready = if status.not_ready.is_empty() { "ready" } else { "not ready" };
    writeln!(out, "Controller {}, {ready}, running for {age}", status.version)?;
    status.not_ready.iter().try_for_each(|part| write_indented(out, part))?;
    writeln!(out, "Listens on      {}, reached at {}", status.listen, status.advertise.join(", "))?;
    writeln!(out, "Organisation    {}", status.root)?;
    writeln!(
        out,
        "Connected       {}, {}, {}",
        count(status.appliances, "appliance"),
        count(status.devices, "device"),
        count(status.sessions, "session")
    )?;
    let counts: Vec<String> = status
        .resources
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let counts = if counts.is_empty() { "none".into() } else { counts.join(", ") };
    writeln!(out, "Resources       {counts}, from {}", clean(&status.resources_directory))?;
    if !status.prune_pending.is_empty() {
        writeln!(
            out,
            "\nVanished from the files, and so many at once that they stay until `confirm-prune`:"
        )?;
        status.prune_pending.iter().try_for_each(|line| write_indented(out, line))?;
    }
    if !status.problems.is_empty() {
        writeln!(out, "\nProblems in the resource files (the last good state is in force):")?;
        status.problems.iter().try_for_each(|line| write_indented(out, line))?;
    }
    Ok(())
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_told() {
        let status = Status {
            version: "0.1.0".into(),
            started_at: "2026-01-02T00:00:00Z".parse().unwrap(),
            resources_directory: "/o/resources".into(),
            listen: "[::]:7440".into(),
            advertise: vec!["192.0.2.1:7440".into()],
            root: "abc".into(),
            resources: [("Server".to_owned(), 2), ("User".to_owned(), 0)].into(),
            appliances: 1,
            devices: 2,
            sessions: 3,
            problems: vec!["a.toml:1: broken".into()],
            prune_pending: vec![],
            not_ready: vec![],
        };
        let mut out = Vec::new();
        tell(&status, "2026-01-03T00:00:00Z".parse().unwrap(), &mut out).unwrap();
        let expected = "\
Controller 0.1.0, ready, running for 24h
Listens on      [::]:7440, reached at 192.0.2.1:7440
Organisation    abc
Connected       1 appliance, 2 devices, 3 sessions
Resources       2 Server, from /o/resources

Problems in the resource files (the last good state is in force):
  a.toml:1: broken
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
