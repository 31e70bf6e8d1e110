//! `get` for what is no resource: sessions, devices, events, the audit trail.

use std::io::Write;

use serde_json::{Value, json};

use super::{args::Output, columns, get::Question, table::Table, write_value};
use crate::api::{client::Client, model::List};

/// A kind of record: where it is fetched and what its columns are.
pub(super) struct Records {
    path: &'static str,
    none: &'static str,
    /// Whether all of them are fetched, however many.
    whole: bool,
    columns: &'static [Column],
}

struct Column {
    heading: &'static str,
    path: &'static str,
    shown: Shown,
}

#[derive(Clone, Copy, PartialEq)]
enum Shown {
    Always,
    Wide,
    Age,
    Bytes,
}

const fn column(heading: &'static str, path: &'static str, shown: Shown) -> Column {
    Column { heading, path, shown }
}

pub(super) const SESSIONS: Records = Records {
    path: "sessions",
    none: "There are no sessions.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Always),
        column("user", ".user", Shown::Always),
        column("device", ".device", Shown::Always),
        column("server", ".server", Shown::Always),
        column("status", ".status", Shown::Always),
        column("connected", ".connected", Shown::Always),
        column("sent", ".bytesSent", Shown::Bytes),
        column("received", ".bytesReceived", Shown::Bytes),
        column("addresses", ".addresses", Shown::Wide),
        column("type", ".type", Shown::Wide),
        column("ended because", ".reason", Shown::Wide),
        column("age", ".startedAt", Shown::Age),
    ],
};

pub(super) const DEVICES: Records = Records {
    path: "devices",
    none: "No device is enrolled.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Always),
        column("user", ".user", Shown::Always),
        column("name", ".name", Shown::Always),
        column("platform", ".platform", Shown::Always),
        column("status", ".status", Shown::Always),
        column("version", ".appVersion", Shown::Wide),
        column("key", ".key", Shown::Wide),
        column("blocked because", ".blockedReason", Shown::Wide),
        column("suspicious because", ".suspiciousReason", Shown::Wide),
        column("seen", ".lastSeen", Shown::Age),
        column("age", ".enrolledAt", Shown::Age),
    ],
};

pub(super) const EVENTS: Records = Records {
    path: "events",
    none: "No security event was recorded.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Wide),
        column("age", ".time", Shown::Age),
        column("severity", ".severity", Shown::Always),
        column("event", ".type", Shown::Always),
        column("about", ".component", Shown::Always),
        column("handled by", ".handledBy", Shown::Wide),
        column("notes", ".notes", Shown::Wide),
        column("from", ".sourceIp", Shown::Wide),
        column("what", ".description", Shown::Always),
    ],
};

pub(super) const AUDIT: Records = Records {
    path: "audit",
    none: "Nothing was changed yet.",
    whole: false,
    columns: &[
        column("age", ".time", Shown::Age),
        column("actor", ".actorType", Shown::Always),
        column("who", ".actor", Shown::Always),
        column("action", ".action", Shown::Always),
        column("kind", ".targetType", Shown::Always),
        column("name", ".target", Shown::Always),
        column("notes", ".notes", Shown::Always),
    ],
};

pub(super) const ANOMALIES: Records = Records {
    path: "anomalies",
    none: "Nothing out of the ordinary was found.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Always),
        column("age", ".time", Shown::Age),
        column("anomaly", ".type", Shown::Always),
        column("confidence", ".confidence", Shown::Always),
        column("about", ".subject", Shown::Always),
        column("verdict", ".verdict", Shown::Always),
        column("by", ".addressedBy", Shown::Wide),
        column("feature", ".feature", Shown::Wide),
        column("what", ".description", Shown::Always),
    ],
};

pub(super) const BLOCKS: Records = Records {
    path: "blocks",
    none: "No address is blocked.",
    whole: false,
    columns: &[
        column("range", ".range", Shown::Always),
        column("severity", ".severity", Shown::Always),
        column("source", ".source", Shown::Always),
        column("until", ".until", Shown::Always),
        column("by", ".by", Shown::Always),
        column("refused", ".hits", Shown::Always),
        column("lifted", ".liftedAt", Shown::Always),
        column("lifted by", ".liftedBy", Shown::Wide),
        column("age", ".since", Shown::Age),
        column("reason", ".reason", Shown::Always),
    ],
};

pub(super) const FLAGS: Records = Records {
    path: "flags",
    none: "Nothing is flagged.",
    whole: false,
    columns: &[
        column("kind", ".subjectType", Shown::Always),
        column("name", ".subject", Shown::Always),
        column("by", ".by", Shown::Always),
        column("age", ".since", Shown::Age),
        column("cleared", ".clearedAt", Shown::Always),
        column("cleared by", ".clearedBy", Shown::Wide),
        column("notes", ".notes", Shown::Wide),
        column("reason", ".reason", Shown::Always),
    ],
};

pub(super) const NOTIFICATIONS: Records = Records {
    path: "notifications",
    none: "There are no notifications.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Always),
        column("age", ".time", Shown::Age),
        column("urgency", ".urgency", Shown::Always),
        column("times", ".occurrences", Shown::Always),
        column("act", ".actionRequired", Shown::Always),
        column("read by", ".readBy", Shown::Always),
        column("done", ".action", Shown::Wide),
        column("done by", ".actionBy", Shown::Wide),
        column("subject", ".subject", Shown::Always),
    ],
};

pub(super) const TASKS: Records = Records {
    path: "tasks",
    none: "No task was written down yet.",
    whole: true,
    columns: &[
        column("name", ".name", Shown::Always),
        column("type", ".type", Shown::Wide),
        column("every", ".schedule.every", Shown::Always),
        column("next", ".nextRun", Shown::Always),
        column("last", ".lastRun", Shown::Always),
        column("outcome", ".lastStatus", Shown::Always),
        column("retries", ".retries", Shown::Always),
        column("said", ".lastOutput", Shown::Always),
        column("does", ".description", Shown::Wide),
    ],
};

pub(super) const SERVICES: Records = Records {
    path: "services",
    none: "Nobody looked at the parts yet.",
    whole: true,
    columns: &[
        column("name", ".name", Shown::Always),
        column("state", ".state", Shown::Always),
        column("since", ".since", Shown::Age),
        column("checked", ".checked", Shown::Age),
        column("detail", ".detail", Shown::Always),
    ],
};

pub(super) const REPORTS: Records = Records {
    path: "reports",
    none: "No report was made yet.",
    whole: false,
    columns: &[
        column("id", ".id", Shown::Always),
        column("name", ".name", Shown::Always),
        column("age", ".time", Shown::Age),
        column("content", ".content", Shown::Wide),
    ],
};

/// Fetches and shows records. A name shows only those records of which a column is that text.
pub(super) async fn get(
    client: &Client,
    records: &Records,
    question: &Question<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let limit = if records.whole { String::new() } else { format!("?limit={}", question.limit) };
    let mut list: List<Value> = client.get(&format!("/v1/{}{limit}", records.path)).await?;
    if let Some(name) = question.name {
        list.items.retain(|item| records.columns.iter().any(|c| columns::find(item, c.path) == name));
    }
    if let Some(namespace) = question.namespace {
        list.items.retain(|item| item.get("namespace").is_none_or(|n| n == namespace.as_str()));
    }
    match question.output {
        Output::Json | Output::Yaml => write_value(out, &json!({ "items": list.items }), question.output),
        Output::Table | Output::Wide if list.items.is_empty() => Ok(writeln!(out, "{}", records.none)?),
        Output::Table | Output::Wide => Ok(records.table(&list.items, question).write(out)?),
    }
}

impl Records {
    fn table(&self, items: &[Value], question: &Question<'_>) -> Table {
        let wide = question.output == Output::Wide;
        let shown: Vec<_> = self.columns.iter().filter(|c| wide || c.shown != Shown::Wide).collect();
        let mut table = Table::new(shown.iter().map(|c| c.heading));
        for item in items {
            table.row(shown.iter().map(|column| {
                let cell = columns::find(item, column.path);
                match column.shown {
                    Shown::Age => columns::age(&cell, question.now),
                    Shown::Bytes => cell.parse().map(bytes).unwrap_or(cell),
                    Shown::Always | Shown::Wide => cell,
                }
            }));
        }
        table
    }
}

/// A number of bytes in the unit that leaves at most four digits.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count, 0);
    while value >= 10_000 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::What;

    #[test]
    fn events_in_columns() {
        let items = [json!({
            "time": "2026-01-02T00:00:00Z", "severity": "high", "type": "wrong_hmac", "component": "server", "description": "home …",
        })];
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let question = Question {
            what: What::Events,
            name: None,
            namespace: None,
            output: Output::Table,
            limit: 1,
            now,
        };
        let mut out = Vec::new();
        EVENTS.table(&items, &question).write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "AGE   SEVERITY   EVENT        ABOUT    WHAT\n24h   high       wrong_hmac   server   home …\n"
        );
    }

    #[test]
    fn bytes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (9_999, "9999 B"),
            (10_000, "9 KiB"),
            (50 << 30, "50 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
