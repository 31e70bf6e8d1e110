//! The settings that follow the user.

use std::path::Path;

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{Reply, Request},
    settings::Settings,
};

use super::{args::SettingsCommand, connection::ask, say};

fn told(socket: &Path, request: &Request) -> Result<(Settings, String), Failure> {
    match ask(socket, request, |_| {})? {
        Reply::Settings { settings, note } => Ok((settings, note)),
        _ => Err(Failure::failed(
            "the service gave an answer of another kind",
            "update the command and the service together",
        )),
    }
}

pub(super) fn settings(socket: &Path, command: Option<SettingsCommand>) -> Result<(), Failure> {
    let request = match command {
        None => Request::Settings,
        Some(SettingsCommand::StartOver) => Request::StartSettingsOver,
        Some(SettingsCommand::Set { name, value }) => {
            let (mut settings, _) = told(socket, &Request::Settings)?;
            settings.set(&name, &value).map_err(|e| {
                Failure::new(FailureKind::Usage, e.to_string(), "see: horizon settings set --help")
            })?;
            Request::SetSettings { settings }
        }
    };
    let (settings, note) = told(socket, &request)?;
    say(&settings.text());
    if !note.is_empty() {
        say(&format!("note: {note}"));
    }
    Ok(())
}

/// The server that is meant, and whether another is used when it stays away.
pub(super) fn choice(socket: &Path, word: Option<&str>) -> Result<(String, bool), Failure> {
    let (settings, _) = told(socket, &Request::KeptSettings)?;
    let word = word.map(str::to_owned).or_else(|| settings.preferred_server.clone()).ok_or_else(|| {
        Failure::new(
            FailureKind::Usage,
            "no server is named",
            "horizon connect SERVER, or once: horizon settings set preferred-server SERVER",
        )
    })?;
    Ok((settings.server(&word).to_owned(), settings.failover))
}
