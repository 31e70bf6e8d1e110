//! What people read on the terminal.

use std::io::{self, Write};

use horizon_model::EntryProblem;
use horizon_wire::{Message as _, audit, proto};
use jiff::{SignedDuration, Timestamp, Unit};
use serde::Serialize;

use crate::status::{SessionStatus, Status};

/// Writes text to the standard output. A reader that closed it has read enough.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Writes a value as JSON to the standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), serde_json::Error> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// A checkpoint of the audit trail that was witnessed, for people and for `audit verify`.
pub(crate) fn witness(checkpoint: &proto::Envelope) -> String {
    let said = proto::AuditCheckpoint::decode(&checkpoint.payload[..]).unwrap_or_default();
    let time = Timestamp::from_millisecond(said.time).unwrap_or_default();
    format!("link {} of {time:.0}, {} rows: {}", said.link, said.rows, audit::to_line(checkpoint))
}

/// Columns under headings, as wide as their widest cell.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([headings[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head: Vec<_> = headings.iter().map(|h| (*h).to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|r| line(r))).collect()
}

/// A status as text.
pub(crate) fn status(status: &Status, now: Timestamp) -> String {
    let controller = &status.controller;
    let address = controller.address.map(|a| a.to_string()).unwrap_or_default();
    let since = controller.since.map(|t| format!(" for {}", ago(t, now))).unwrap_or_default();
    let mut lines = vec![
        ("Server", format!("{} ({})", status.server_name, status.server_id)),
        ("Key", status.key.to_string()),
        ("Version", format!("{}, running for {}", status.version, ago(status.started, now))),
        (
            "Controller",
            match (controller.connected, &controller.reason) {
                (true, _) => format!("connected to {address}{since}"),
                (false, Some(reason)) => format!("away{since}: {reason}"),
                (false, None) => "not reached yet".to_owned(),
            },
        ),
    ];
    if let Some(next) = controller.next_attempt.filter(|_| !controller.connected) {
        lines.push(("", format!("next attempt in {}", ago(now, next.max(now)))));
    }
    let beat = controller.last_heartbeat.map(|t| format!("acknowledged {} ago", ago(t, now)));
    lines.push(("Heartbeat", beat.unwrap_or_else(|| "none acknowledged yet".to_owned())));
    if let Some(refused) = &controller.refused {
        lines.push(("Refused", refused.clone()));
    }
    let state = &status.state;
    lines.push((
        "State",
        match state.generation {
            0 => "none received yet".to_owned(),
            g => format!(
                "generation {g} of epoch {}, {} of its entries not in force",
                state.epoch,
                state.problems.len()
            ),
        },
    ));
    lines.extend(state.problems.iter().map(|p| ("", problem(p))));
    if let Some(last) = &state.last_repair {
        lines.push(("Repairs", format!("{}, last: {last}", state.repairs)));
    }
    match &status.tunnel {
        None => lines.push(("Tunnel", "none asked for".to_owned())),
        Some(tunnel) => {
            let device = if tunnel.device_attached { "" } else { " (missing)" };
            lines.push((
                "Tunnel",
                format!("UDP port {}, {}{device}, MTU {}", tunnel.port, tunnel.device, tunnel.mtu),
            ));
            lines.push(("", format!("overlay {}", join(&tunnel.addresses))));
            lines.push(("", format!("reached at {}", join(&tunnel.reached_at))));
            lines.push(("", tunnel.reachability_words.clone()));
        }
    }
    lines.push(("Memory", format!("{:.1} MB", status.memory_bytes as f64 / 1e6)));
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    let connected = status.sessions.iter().filter(|s| s.connected).count();
    text.push_str(&format!(
        "{:<11} {connected} connected of {} admitted\n",
        "Sessions",
        status.sessions.len()
    ));
    if !status.sessions.is_empty() {
        let rows: Vec<_> = status.sessions.iter().map(session).collect();
        let headings = ["SESSION", "CONNECTED", "ADDRESSES", "SENT", "RECEIVED", "RTT"];
        text.push('\n');
        text.push_str(&table(&headings, &rows));
    }
    text
}

fn problem(problem: &EntryProblem) -> String {
    format!("{}: {}", problem.entry, problem.message)
}

fn session(session: &SessionStatus) -> Vec<String> {
    let rtt = match session.rtt_micros {
        0 => "-".to_owned(),
        micros => format!("{:.1} ms", micros as f64 / 1e3),
    };
    vec![
        session.id.to_string(),
        if session.connected { "yes" } else { "no" }.to_owned(),
        join(&session.addresses),
        bytes(session.bytes_sent),
        bytes(session.bytes_received),
        rtt,
    ]
}

fn join<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    let span = now.duration_since(then).max(SignedDuration::ZERO);
    let span = span.round(Unit::Second).unwrap_or(span);
    format!("{span:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long one".to_owned(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X         Y\na         b\nlong one\n");
        assert_eq!(
            (bytes(999), bytes(1500), bytes(2_000_000)),
            ("999 B".into(), "1.5 kB".into(), "2.0 MB".into())
        );
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(ago(Timestamp::from_second(37).unwrap(), now), "1m 3s");
    }
}
