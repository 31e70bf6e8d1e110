//! The personal key: added to this device, kept, shown, exported, removed.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{KeyText, Progress, Reply, Request},
};
use horizon_wire::token::{Handover, PersonalKey};
use zeroize::Zeroizing;

use super::{
    args::{Export, KeyAdd, KeyPlace, KeyRemove},
    connection::ask,
    note, prompt, say,
};
use crate::keep::{KeepError, Place};

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn failure(error: KeepError) -> Failure {
    let kind = match error {
        KeepError::Locked | KeepError::Passphrase(_) => FailureKind::Refused,
        _ => FailureKind::Failed,
    };
    Failure::new(kind, error.to_string(), error.remedy())
}

/// The place that was chosen; the passphrase of a file is asked for, or read from where the command says.
fn place(chosen: KeyPlace, fresh: bool) -> Result<Place, Failure> {
    let Some(path) = chosen.encrypted_file else { return Ok(Place::Keyring) };
    let unread = |e: io::Error| Failure::failed(format!("the passphrase cannot be read: {e}"), "");
    let passphrase = match chosen.passphrase_file {
        Some(file) => {
            let text = Zeroizing::new(std::fs::read_to_string(&file).map_err(unread)?);
            Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => prompt::passphrase(fresh).map_err(unread)?,
    };
    if passphrase.is_empty() {
        let remedy = "give one, or use the keyring";
        return Err(Failure::new(FailureKind::Usage, "an empty passphrase keeps nothing secret", remedy));
    }
    Ok(Place::File(path, passphrase))
}

pub(super) fn add(socket: &Path, add: KeyAdd) -> Result<(), Failure> {
    if add.on_command_line.is_some() {
        return Err(Failure::new(
            FailureKind::Usage,
            "a key on the command line can be read by every user of this machine",
            "run `horizon key add` and paste it at the prompt, or: horizon key add < FILE. Have a key that was typed on a \
             shared machine replaced.",
        ));
    }
    let text = prompt::secret("Personal key (not shown)")
        .map_err(|e| Failure::failed(format!("the key cannot be read: {e}"), ""))?;
    let key = match Handover::is_meant(&text) {
        true => handed_over(socket, &text)?,
        false => KeyText::new(text.trim().to_owned()),
    };
    let keep = if add.do_not_keep { None } else { Some(place(add.place, true)?) };
    let reply = ask(socket, &Request::AddKey { key: key.clone(), name: add.name }, progress)?;
    let Reply::Enrolled { user, device } = reply else { return Err(unexpected()) };
    say(&format!("this device is now {device} of {user}; see what you may use: horizon servers"));
    let Some(keep) = keep else { return Ok(()) };
    match (keep.set(&key), &keep) {
        (Ok(()), _) => say(&format!("the key is kept in {}", keep.words())),
        // The device works without it; another place is never taken without being chosen.
        (Err(error), Place::Keyring) => warn(&format!(
            "the key is not kept: {error}. This device works all the same. To keep it: {}",
            error.remedy()
        )),
        (Err(error), Place::File(..)) => return Err(failure(error)),
    }
    Ok(())
}

/// Fetches the key of a hand-over. The code is the second word of what was read, or asked for.
fn handed_over(socket: &Path, text: &str) -> Result<KeyText, Failure> {
    let mut words = text.split_whitespace();
    let handover = KeyText::new(words.next().unwrap_or_default().to_owned());
    let code = match words.next() {
        Some(code) => code.to_owned(),
        None => prompt::line("Code that you were told")
            .map_err(|e| Failure::failed(format!("the code cannot be read: {e}"), ""))?,
    };
    match ask(socket, &Request::ClaimKey { handover, code }, progress)? {
        Reply::Key { key: Some(key) } => Ok(key),
        _ => Err(unexpected()),
    }
}

/// The kept key, or why there is none.
fn kept(place: &Place) -> Result<(KeyText, PersonalKey), Failure> {
    let text = place.get().map_err(failure)?.ok_or_else(|| {
        let remedy = "add it: horizon key add; a key that is kept elsewhere needs --encrypted-file PATH";
        Failure::new(FailureKind::Usage, format!("no personal key is kept in {}", place.words()), remedy)
    })?;
    let key = PersonalKey::decode(text.expose()).map_err(|e| {
        Failure::failed(format!("what is kept in {} is no personal key: {e}", place.words()), "")
    })?;
    Ok((text, key))
}

pub(super) fn show(chosen: KeyPlace) -> Result<(), Failure> {
    let place = place(chosen, false)?;
    let (_, key) = kept(&place)?;
    say(&format!("personal key   {}", key.id));
    say(&format!("kept in        {}", place.words()));
    say(&format!("organisation   {}", key.root));
    say(&format!("controllers    {}", key.controllers.join(", ")));
    Ok(())
}

pub(super) fn remove(remove: KeyRemove) -> Result<(), Failure> {
    if !remove.yes
        && !prompt::yes("Remove the kept personal key? This device stays enrolled.").unwrap_or(false)
    {
        return Err(Failure::new(
            FailureKind::Usage,
            "nothing was removed",
            "to remove it without a question: --yes",
        ));
    }
    // To remove a file nobody needs its passphrase.
    let place = match remove.encrypted_file {
        Some(path) => Place::File(path, Zeroizing::new(String::new())),
        None => Place::Keyring,
    };
    let was = place.remove().map_err(failure)?;
    say(&if was {
        format!("the key is gone from {}", place.words())
    } else {
        format!("there was no key in {}", place.words())
    });
    Ok(())
}

/// Hands the key out, for another device of its user.
pub(super) fn export(export: Export) -> Result<(), Failure> {
    let agreed = export.yes
        || prompt::yes(
            "Whoever has this key can add devices in your name. Show it to nobody but your own devices. Export it?",
        )
        .unwrap_or(false);
    if !agreed {
        return Err(Failure::new(
            FailureKind::Usage,
            "the key was not exported",
            "confirm at a terminal, or add --yes",
        ));
    }
    let (text, _) = kept(&place(export.place, false)?)?;
    let Some(path) = export.output else {
        say(text.expose());
        return Ok(());
    };
    let written = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        writeln!(file, "{}", text.expose())?;
        file.sync_all()
    };
    written().map_err(|e| {
        Failure::failed(
            format!("{} cannot be written: {e}", path.display()),
            "name a file that is not there yet",
        )
    })?;
    say(&format!(
        "the key is in {}; delete it once your other device has it: horizon key add < FILE",
        path.display()
    ));
    Ok(())
}

/// Moves a key that the service was given in the place of the kept one into the keyring. It stays with the service where the
/// old one is not kept in the keyring, or that cannot be opened now.
pub(super) fn collect(socket: &Path) {
    let Ok(Reply::Key { key: Some(key) }) = ask(socket, &Request::TakeKey, |_| {}) else { return };
    let Ok(new) = PersonalKey::decode(key.expose()) else { return };
    let kept = match Place::Keyring.get() {
        Ok(Some(kept)) => kept,
        Ok(None) => return,
        Err(KeepError::Locked) => {
            return warn("a new personal key waits for your keyring: unlock it, then run `horizon status`");
        }
        Err(_) => return,
    };
    let same_root = PersonalKey::decode(kept.expose()).is_ok_and(|old| old.root == new.root);
    if same_root && Place::Keyring.set(&key).is_ok() {
        // A service that forgets to forget it hands it over again, which changes nothing.
        let _ = ask(socket, &Request::KeyTaken { id: new.id }, |_| {});
        note("your organisation renewed your personal key; the new one is in your keyring");
    }
}

fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "note: {text}");
}

fn progress(step: &Progress) {
    note(&format!("{}…", step.phase.words()));
}

fn unexpected() -> Failure {
    Failure::failed(
        "the service gave an answer of another kind",
        "update the command and the service together",
    )
}
