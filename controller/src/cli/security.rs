//! Blocking, flagging, and what is said of events, anomalies and notifications.

use std::{io::Write, path::Path};

use serde_json::{Value, json};

use super::{
    args::Connection,
    columns::find,
    security_args::{AnomaliesCommand, BlockArgs, EventsCommand, FlagArgs, NotificationsCommand},
    table::clean,
};
use crate::{
    api::{client::Client, model::Done},
    config::Config,
};

type Result = anyhow::Result<()>;

fn client(file: Option<&Path>, connection: Connection) -> anyhow::Result<Client> {
    Ok(Client::new(Config::socket(file, connection.socket)?))
}

pub(super) async fn block(file: Option<&Path>, args: BlockArgs, out: &mut dyn Write) -> Result {
    let request = json!({
        "range": args.range, "reason": args.reason, "severity": args.severity, "for": args.span,
    });
    let done: Done = client(file, args.connection)?.post("/v1/blocks", &request).await?;
    Ok(writeln!(out, "{}", done.message)?)
}

pub(super) async fn unblock(
    file: Option<&Path>,
    range: &str,
    connection: Connection,
    out: &mut dyn Write,
) -> Result {
    let done: Done = client(file, connection)?.post("/v1/unblocks", &json!({ "range": range })).await?;
    Ok(writeln!(out, "{}", done.message)?)
}

pub(super) async fn events(file: Option<&Path>, command: EventsCommand, out: &mut dyn Write) -> Result {
    let EventsCommand::Handle { id, note, connection } = command;
    let path = format!("/v1/events/{id}/handling");
    let event: Value = client(file, connection)?.post(&path, &json!({ "note": note })).await?;
    Ok(writeln!(out, "event {id} ({}) was handled", clean(&find(&event, ".type")))?)
}

pub(super) async fn anomalies(file: Option<&Path>, command: AnomaliesCommand, out: &mut dyn Write) -> Result {
    let AnomaliesCommand::Feedback { id, false_positive, note, connection, .. } = command;
    let path = format!("/v1/anomalies/{id}/feedback");
    let request = json!({ "falsePositive": false_positive, "note": note });
    let anomaly: Value = client(file, connection)?.post(&path, &request).await?;
    let (kind, subject) = (clean(&find(&anomaly, ".type")), clean(&find(&anomaly, ".subject")));
    match false_positive {
        true => writeln!(out, "anomaly {id} was none: {kind} like it is not told of '{subject}' again")?,
        false => writeln!(out, "anomaly {id} is confirmed: {kind} like it is told of '{subject}' sooner")?,
    }
    Ok(())
}

pub(super) async fn notifications(
    file: Option<&Path>,
    command: NotificationsCommand,
    out: &mut dyn Write,
) -> Result {
    let (id, action, connection) = match command {
        NotificationsCommand::Read { id, connection } => (id, None, connection),
        NotificationsCommand::Done { id, what, connection } => (id, Some(what), connection),
    };
    let path = format!("/v1/notifications/{id}");
    let found: Value = client(file, connection)?.post(&path, &json!({ "action": action })).await?;
    if action.is_some() {
        return Ok(writeln!(out, "what was done about notification {id} is noted")?);
    }
    writeln!(out, "{}\n", clean(&find(&found, ".subject")))?;
    for line in found["content"].as_str().unwrap_or_default().lines() {
        writeln!(out, "{}", clean(line))?;
    }
    if found["actionRequired"] == true && found["action"].is_null() {
        writeln!(out, "\nSomebody has to do something: horizon-controller notifications done {id} --what …")?;
    }
    Ok(())
}

pub(super) async fn flag(file: Option<&Path>, args: FlagArgs, clear: bool, out: &mut dyn Write) -> Result {
    let request = json!({
        "kind": args.kind, "namespace": args.namespace, "name": args.name, "reason": args.reason,
    });
    let path = if clear { "/v1/flag-clearings" } else { "/v1/flags" };
    let done: Done = client(file, args.connection)?.post(path, &request).await?;
    Ok(writeln!(out, "{}", done.message)?)
}
