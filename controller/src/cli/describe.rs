//! `describe`: everything about one resource, for people.

use std::io::{self, Write};

use horizon_crds::KindName;
use serde_json::Value;

use super::{
    columns,
    table::{Table, clean},
    write_indented,
};
use crate::api::{
    client::{Client, escape},
    model::{Detail, DeviceDetail, ORIGIN, SessionDetail},
};

/// Fetches and tells.
pub(super) async fn describe(
    client: &Client,
    kind: KindName,
    namespace: &str,
    name: &str,
    now: jiff::Timestamp,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let path = format!("/v1/{}/{}?namespace={}", kind.plural(), escape(name), escape(namespace));
    let detail: Detail = client.get(&path).await?;
    Ok(tell(&detail, now, out)?)
}

/// Fetches and tells about a session.
pub(super) async fn session(
    client: &Client,
    id: &str,
    now: jiff::Timestamp,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let detail: SessionDetail = client.get(&format!("/v1/sessions/{}", escape(id))).await?;
    writeln!(out, "Session {id}")?;
    write_yaml(out, &detail.session)?;
    let fields = ["age:.minute", "to client:.bytesSent", "from client:.bytesReceived", "rtt us:.rttMicros"];
    Ok(records(out, "Bytes by the minute", &detail.minutes, &fields, now)?)
}

/// Fetches and tells about a device.
pub(super) async fn device(
    client: &Client,
    id: &str,
    now: jiff::Timestamp,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let detail: DeviceDetail = client.get(&format!("/v1/devices/{}", escape(id))).await?;
    writeln!(out, "Device {id}, {}", if detail.online { "online" } else { "offline" })?;
    write_yaml(out, &detail.device)?;
    let sessions = [
        "age:.startedAt",
        "server:.server",
        "status:.status",
        "address:.clientAddress",
        "ended because:.reason",
    ];
    records(out, "Connections", &detail.sessions, &sessions, now)?;
    let events = ["age:.time", "severity:.severity", "event:.type", "what:.description"];
    records(out, "Security events", &detail.events, &events, now)?;
    let changes = ["age:.time", "who:.actor", "action:.action", "notes:.notes"];
    Ok(records(out, "Changes", &detail.changes, &changes, now)?)
}

fn tell(detail: &Detail, now: jiff::Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let object = &detail.object;
    let meta = &object.metadata;
    writeln!(out, "{} {}/{}", object.kind, meta.namespace, meta.name)?;
    let origin = meta.annotations.get(ORIGIN).map_or("the controller's own records", String::as_str);
    writeln!(
        out,
        "Declared in {}, generation {}, {} old, uid {}",
        clean(origin),
        meta.generation,
        columns::age(&meta.creation_timestamp.to_string(), now),
        meta.uid
    )?;

    section(out, "Problems (the last good state is in force)", &detail.problems)?;
    writeln!(out, "\nSpec")?;
    write_yaml(out, &object.spec)?;

    let mut status = object.status.clone();
    let conditions = status.as_object_mut().and_then(|map| {
        map.remove("observedGeneration");
        map.remove("conditions")
    });
    if status.as_object().is_some_and(|map| !map.is_empty()) {
        writeln!(out, "\nStatus")?;
        write_yaml(out, &status)?;
    }
    if let Some(Value::Array(conditions)) = conditions.filter(|c| c.as_array().is_some_and(|c| !c.is_empty()))
    {
        writeln!(out, "\nConditions")?;
        for condition in &conditions {
            let text = |path| clean(&columns::find(condition, path));
            let since = columns::age(&text(".lastTransitionTime"), now);
            writeln!(
                out,
                "  {:<15} {:<8} for {:<5} {}: {}",
                text(".type"),
                text(".status"),
                since,
                text(".reason"),
                text(".message")
            )?;
        }
    }
    section(out, "Appliance", &detail.appliance)?;
    section(out, "What it amounts to", &detail.reasons)?;
    let beats =
        ["age:.received", "sessions:.activeSessions", "state:.generation", "load:.metrics.loadPercent"];
    records(out, "Heartbeats", &detail.heartbeats, &beats, now)?;
    let factors = [
        "age:.firstSeen",
        "factor:.name",
        "value:.value",
        "sure %:.confidence",
        "now:.current",
        "approved:.approved",
    ];
    records(out, "Identity", &detail.factors, &factors, now)?;
    let challenges = ["age:.asked", "challenge:.type", "right:.right", "what:.detail"];
    records(out, "Challenges", &detail.challenges, &challenges, now)?;
    let rotations = ["age:.time", "kind:.type", "who:.by", "why:.reason", "unconfirmed:.unconfirmed"];
    records(out, "Rotations", &detail.rotations, &rotations, now)?;
    records(
        out,
        "Security events",
        &detail.events,
        &["age:.time", "severity:.severity", "event:.type", "what:.description"],
        now,
    )?;
    records(
        out,
        "Changes",
        &detail.changes,
        &["age:.time", "who:.actor", "action:.action", "notes:.notes"],
        now,
    )
}

fn section(out: &mut dyn Write, title: &str, lines: &[String]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    lines.iter().try_for_each(|line| write_indented(out, line))
}

fn records(
    out: &mut dyn Write,
    title: &str,
    items: &[Value],
    fields: &[&str],
    now: jiff::Timestamp,
) -> io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let fields: Vec<(&str, &str)> = fields.iter().filter_map(|field| field.split_once(':')).collect();
    let mut table = Table::new(fields.iter().map(|(heading, _)| heading));
    for item in items {
        table.row(fields.iter().map(|(heading, path)| {
            let cell = columns::find(item, path);
            if *heading == "age" { columns::age(&cell, now) } else { cell }
        }));
    }
    let mut text = Vec::new();
    table.write(&mut text)?;
    writeln!(out, "\n{title}")?;
    write_indented(out, &String::from_utf8_lossy(&text))
}

fn write_yaml(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
    write_indented(out, &text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_is_told() {
        let detail: Detail = serde_json::from_value(json!({
            "object": {
                "apiVersion": "horizon.dev/v1alpha1", "kind": "User",
                "metadata": {
                    "name": "ann", "namespace": "default", "uid": "u-1", "generation": 2,
                    "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": { "horizon.dev/origin": "ann.toml:3" },
                },
                "spec": { "groups": ["family"] },
                "status": {
                    "observedGeneration": 2, "deviceCount": 1,
                    "conditions": [{
                        "type": "Ready", "status": "True", "reason": "Granted", "message": "may use 1 server",
                        "lastTransitionTime": "2026-01-02T00:00:00Z",
                    }],
                },
            },
            "reasons": ["may use server home"], "problems": [], "events": [],
            "changes": [{ "time": "2026-01-02T00:00:00Z", "actor": "ann.toml", "action": "update" }],
        }))
        .unwrap();
        let mut out = Vec::new();
        tell(&detail, "2026-01-03T00:00:00Z".parse().unwrap(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "\
User default/ann
Declared in ann.toml:3, generation 2, 2d old, uid u-1

Spec
  groups:
  - family

Status
  deviceCount: 1

Conditions
  Ready           True     for 24h   Granted: may use 1 server

What it amounts to
  may use server home

Changes
  AGE   WHO        ACTION   NOTES
  24h   ann.toml   update   -
";
        assert_eq!(text, expected);
    }
}
