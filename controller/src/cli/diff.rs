//! `diff`: what would change, before it does.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::Value;

use super::{args::Output, table::clean, validate::read_files, write_indented, write_value};
use crate::api::{
    client::Client,
    model::{Action, Diff, DiffRequest, Effect},
};

/// The most sentences about users and sessions.
const MAX_SAID: usize = 200;

/// Asks and tells. The exit status is 1 if the files have problems.
pub(super) async fn diff(
    client: &Client,
    directory: &Path,
    output: Output,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let request = DiffRequest { files: read_files(directory)? };
    let answer: Diff = client.post("/v1/diff", &request).await?;
    match output {
        Output::Table | Output::Wide => tell(&answer, out)?,
        output => write_value(out, &answer, output)?,
    }
    Ok(if answer.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(diff: &Diff, out: &mut dyn Write) -> io::Result<()> {
    for change in &diff.resources {
        let sign = match change.action {
            Action::Create => '+',
            Action::Update => '~',
            Action::Remove => '-',
        };
        writeln!(out, "{sign} {} {}/{}", change.kind, change.namespace, change.name)?;
        for field in &change.fields {
            let side =
                |value: &Option<Value>| value.as_ref().map_or("nothing".into(), |v| clean(&v.to_string()));
            writeln!(out, "    {}: {} -> {}", field.field, side(&field.from), side(&field.to))?;
        }
    }
    if let Some(held) = &diff.held {
        writeln!(out, "\nWaits: {}", clean(held))?;
    }
    let affected = affected(diff);
    if !affected.is_empty() {
        writeln!(out, "\nWhom it affects")?;
        affected.iter().try_for_each(|line| write_indented(out, line))?;
    }
    if !diff.problems.is_empty() {
        writeln!(out, "\nProblems, where the last good state stays in force")?;
        diff.problems.iter().try_for_each(|line| write_indented(out, line))?;
    }
    if *diff == Diff::default() {
        writeln!(out, "Nothing would change.")?;
    }
    Ok(())
}

fn affected(diff: &Diff) -> Vec<String> {
    let mut said = Vec::new();
    for session in &diff.sessions {
        let (user, server) = (&session.user, &session.server);
        let what = if session.ends { "ends" } else { "goes on with less" };
        said.push(format!("the live session of {user} on {server} {what}"));
    }
    for access in &diff.access {
        let (user, server) = (&access.user, &access.server);
        said.push(match access.effect {
            Effect::Gained => format!("{user} may use {server} from then on"),
            Effect::Lost => format!("{user} may no longer use {server}"),
            Effect::Narrowed => format!("{user} may do less on {server}"),
            Effect::Changed => format!("{user} may do other things on {server}"),
        });
    }
    if said.len() > MAX_SAID {
        let more = said.len() - MAX_SAID;
        said.truncate(MAX_SAID);
        said.push(format!("and {more} more; -o json shows all"));
    }
    if diff.partial {
        said.push("there are more users and servers than are compared".into());
    }
    if !diff.servers.is_empty() {
        said.push(format!("appliances that are told: {}", diff.servers.join(", ")));
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_told() {
        let answer: Diff = serde_json::from_value(json!({
            "problems": [],
            "resources": [
                { "kind": "User", "namespace": "default", "name": "ann", "action": "remove", "fields": [] },
                { "kind": "Server", "namespace": "default", "name": "home", "action": "update", "fields": [
                    { "field": "spec.tunnel.port", "from": 7443, "to": 99 }, { "field": "spec.location", "to": "x" },
                ] },
            ],
            "servers": ["default/home"],
            "access": [{ "namespace": "default", "user": "ann", "server": "home", "effect": "lost" }],
            "sessions": [{ "session": uuid::Uuid::nil(), "user": "ann", "server": "home", "ends": true }],
            "partial": false,
        }))
        .unwrap();
        let mut out = Vec::new();
        tell(&answer, &mut out).unwrap();
        let expected = "\
- User default/ann
~ Server default/home
    spec.tunnel.port: 7443 -> 99
    spec.location: nothing -> \"x\"

Whom it affects
  the live session of ann on home ends
  ann may no longer use home
  appliances that are told: default/home
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        tell(&Diff::default(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "Nothing would change.\n");
    }
}
