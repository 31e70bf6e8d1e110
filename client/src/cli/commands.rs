//! The commands that speak to the service.

use std::path::Path;

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{Progress, Reply, Request},
    ssh,
    status::{self, Status},
};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    args::{Connect, Output},
    connection::ask,
    note, prompt, say, settings,
};

pub(super) fn servers(socket: &Path, output: Output) -> Result<(), Failure> {
    let Reply::Servers { servers } = ask(socket, &Request::Servers, progress)? else {
        return Err(unexpected());
    };
    match output {
        Output::Json => print_json(&servers),
        Output::Text if servers.is_empty() => {
            say("no policy of your organisation gives you a server yet; ask its admin for an AccessPolicy");
            Ok(())
        }
        Output::Text => {
            say(status::servers(&servers).trim_end());
            Ok(())
        }
    }
}

pub(super) fn connect(socket: &Path, connect: &Connect) -> Result<(), Failure> {
    let ssh_peer = std::env::var("SSH_CONNECTION").ok().and_then(|text| ssh::peer(&text));
    let (server, failover) = settings::choice(socket, connect.server.as_deref())?;
    let request = |take_over| Request::Connect {
        server: server.clone(),
        take_over,
        ssh_peer,
        confirmed: connect.yes,
        failover: connect.failover,
        failover_liked: failover,
    };
    let reply = match ask(socket, &request(None), progress) {
        Err(failure) if failure.kind == FailureKind::Conflict => {
            let Some(conflict) = &failure.conflict else { return Err(failure) };
            let described = status::conflict(conflict, Timestamp::now());
            let agreed = connect.take_over
                || prompt::yes(&format!("{described} End that connection and use this device instead?"))
                    .unwrap_or(false);
            if !agreed {
                return Err(Failure { message: described, ..failure });
            }
            ask(socket, &request(Some(conflict.session)), progress)?
        }
        other => other?,
    };
    let status = status_of(reply)?;
    if connect.output == Output::Json {
        return print_json(&status);
    }
    say(&connected(&status));
    if let Some(seconds) = status.session.as_ref().and_then(|s| s.confirm_seconds) {
        say(&format!(
            "You are logged in over SSH: this is reverted in {seconds} s unless you run `horizon confirm`."
        ));
    }
    Ok(())
}

pub(super) fn confirm(socket: &Path) -> Result<(), Failure> {
    let status = status_of(ask(socket, &Request::Confirm, progress)?)?;
    say(&format!("the connection to {} stays", status.server.as_deref().unwrap_or("the server")));
    Ok(())
}

pub(super) fn status(socket: &Path, output: Output) -> Result<(), Failure> {
    let status = status_of(ask(socket, &Request::Status, progress)?)?;
    match output {
        Output::Json => print_json(&status),
        Output::Text => {
            say(status.text().trim_end());
            Ok(())
        }
    }
}

pub(super) fn disconnect(socket: &Path) -> Result<(), Failure> {
    status_of(ask(socket, &Request::Disconnect, progress)?)?;
    say("disconnected; the host is as it was");
    Ok(())
}

fn connected(status: &Status) -> String {
    let server = status.server.as_deref().unwrap_or("the server");
    let Some(session) = &status.session else { return format!("connected to {server}") };
    let at = session.remote.map(|r| format!(" at {r}")).unwrap_or_default();
    let addresses: Vec<_> = session.addresses.iter().map(|a| a.addr().to_string()).collect();
    format!("connected to {server}{at}; your address there: {}", addresses.join(", "))
}

fn progress(step: &Progress) {
    note(&format!("{}…", step.phase.words()));
}

fn status_of(reply: Reply) -> Result<Status, Failure> {
    match reply {
        Reply::Status(status) => Ok(*status),
        _ => Err(unexpected()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::failed(e.to_string(), ""))?;
    say(&text);
    Ok(())
}

fn unexpected() -> Failure {
    Failure::failed(
        "the service gave an answer of another kind",
        "update the command and the service together",
    )
}
