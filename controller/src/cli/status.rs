//! `status`: how the controller does.

use std::io::{self, Write};

use super::{args::Output, columns, table::clean, write_indented, write_value};
use crate::api::{
    client::Client,
    model::{Replication, Status},
};

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
    writeln!(out, "Keys            {}", keys(status))?;
    if !status.envelope.is_empty() {
        writeln!(out, "Envelope        {}", clean(&status.envelope))?;
    }
    status.rotations.iter().try_for_each(|line| write_indented(out, line))?;
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
    writeln!(out, "Database        {}", clean(&status.database))?;
    if let Some(replication) = &status.replication {
        tell_replication(replication, status.revision, out)?;
    }
    if !status.troubles.is_empty() {
        writeln!(out, "\nParts that do not do as they should:")?;
        status.troubles.iter().try_for_each(|line| write_indented(out, line))?;
    }
    if !status.prune_pending.is_empty() {
        writeln!(out, "\nNot declared any more, and so many at once that they stay until `confirm-prune`:")?;
        status.prune_pending.iter().try_for_each(|line| write_indented(out, line))?;
    }
    if !status.problems.is_empty() {
        writeln!(out, "\nProblems in what is declared (the last good state is in force):")?;
        status.problems.iter().try_for_each(|line| write_indented(out, line))?;
    }
    Ok(())
}

/// Which KeySet is in force, and who holds it.
fn keys(status: &Status) -> String {
    let newest = status.keyset;
    let held = |role: &str| -> String {
        let of = |newer: bool| -> u64 {
            let rows =
                status.keyset_holders.iter().filter(|h| h.role == role && (h.version >= newest) == newer);
            rows.map(|h| h.peers).sum()
        };
        match (of(true), of(false)) {
            (all, 0) => count(all, role),
            (some, older) => format!("{some} of {}", count(some + older, role)),
        }
    };
    format!("KeySet {newest}, held by {} and {}", held("appliance"), held("device"))
}

fn tell_replication(replication: &Replication, revision: i64, out: &mut dyn Write) -> io::Result<()> {
    let leader = match (&replication.leader, replication.epoch) {
        (_, Some(epoch)) => format!("leads (epoch {epoch})"),
        (Some(leader), None) => format!("follows {leader}"),
        (None, None) => "follows, and knows no leader".to_owned(),
    };
    writeln!(
        out,
        "Replica         {}, {}, at revision {revision}",
        clean(&replication.replica),
        clean(&leader)
    )?;
    if let Some(bus) = &replication.bus {
        writeln!(out, "Hints           {}", clean(bus))?;
    }
    writeln!(out, "\nReplicas:")?;
    for replica in &replication.replicas {
        let state = match (replica.alive, replica.draining) {
            (false, _) => format!("silent for {} s", replica.seen_seconds),
            (true, true) => "about to end".to_owned(),
            (true, false) => "lives".to_owned(),
        };
        let leads = replication.leader.as_ref() == Some(&replica.name) && replica.alive;
        let line = format!(
            "{}{}, {state}, version {}, at {}",
            replica.name,
            if leads { " (leader)" } else { "" },
            replica.version,
            replica.addresses.join(", ")
        );
        write_indented(out, &line)?;
    }
    Ok(())
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::model::ReplicaStatus, store::KeySetHolders};

    fn status() -> Status {
        Status {
            keyset: 3,
            keyset_holders: vec![
                KeySetHolders { role: "appliance".into(), version: 2, peers: 1 },
                KeySetHolders { role: "appliance".into(), version: 3, peers: 4 },
            ],
            envelope: "data key 5 since 2026-01-02T00:00:00Z, under file/0011223344556677".into(),
            rotations: vec!["tls key: published, not used yet; scheduled, every year".into()],
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
            revision: 7,
            database: "answers".into(),
            troubles: vec![],
            replication: None,
        }
    }

    fn told(status: &Status) -> String {
        let mut out = Vec::new();
        tell(status, "2026-01-03T00:00:00Z".parse().unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_controller_is_told() {
        let expected = "\
Controller 0.1.0, ready, running for 24h
Listens on      [::]:7440, reached at 192.0.2.1:7440
Organisation    abc
Keys            KeySet 3, held by 4 of 5 appliances and 0 devices
Envelope        data key 5 since 2026-01-02T00:00:00Z, under file/0011223344556677
  tls key: published, not used yet; scheduled, every year
Connected       1 appliance, 2 devices, 3 sessions
Resources       2 Server, from /o/resources
Database        answers

Problems in what is declared (the last good state is in force):
  a.toml:1: broken
";
        assert_eq!(told(&status()), expected);
    }

    #[test]
    fn replicas_are_told() {
        let replica = |name: &str, alive, draining| ReplicaStatus {
            name: name.into(),
            addresses: vec![format!("{name}.example.org:7440")],
            version: "0.1.0".into(),
            draining,
            alive,
            seen_seconds: 8,
        };
        let replication = Replication {
            replica: "b".into(),
            leader: Some("a".into()),
            epoch: None,
            replicas: vec![replica("a", true, false), replica("b", true, true), replica("c", false, false)],
            bus: Some("Redis answers".into()),
        };
        let text = told(&Status { replication: Some(replication), problems: vec![], ..status() });
        let expected = "\
Database        answers
Replica         b, follows a, at revision 7
Hints           Redis answers

Replicas:
  a (leader), lives, version 0.1.0, at a.example.org:7440
  b, about to end, version 0.1.0, at b.example.org:7440
  c, silent for 8 s, version 0.1.0, at c.example.org:7440
";
        assert!(text.ends_with(expected), "{text}");
    }
}
