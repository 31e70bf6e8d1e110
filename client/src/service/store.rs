//! What the service keeps: the device key, the enrolment, the session in use and the journal, each a file of mode 0600
//! in the state directory, replaced as a whole.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::rand;
use data_encoding::BASE64;
use horizon_client_core::{
    ipc::KeyText,
    journal::{self, Journal},
};
use horizon_model::{DeviceId, Secret};
use horizon_wire::{
    key::SigningKey,
    keyset::{self, Anchor},
    proto,
};
use prost::Message;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::settings::{Kept, SettingsKey};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// The mode bits that let the group or all others write.
const OTHERS_WRITE: u32 = 0o022;

/// Pause between two looks at a lock that somebody holds.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A file of the state directory that cannot be used.
#[derive(Debug, Error)]
#[error("cannot {action} {path}: {cause}", path = .path.display())]
pub(super) struct StoreError {
    action: &'static str,
    path: PathBuf,
    cause: String,
}

/// Which organisation this device belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Enrolment {
    /// Controllers as `host:port`, best first.
    pub(super) controllers: Vec<String>,
    /// The newest KeySet, as signed bytes in base64.
    keyset: String,
    /// The device's identifier.
    pub(super) device: DeviceId,
    /// The device's name.
    pub(super) name: String,
    /// The user it belongs to.
    pub(super) user: String,
}

impl Enrolment {
    /// An enrolment under a KeySet that was verified.
    pub(super) fn new(
        controllers: Vec<String>,
        keyset: &proto::SignedKeySet,
        device: DeviceId,
        name: String,
        user: String,
    ) -> Self {
        Self { controllers, keyset: encode(keyset), device, name, user }
    }

    /// Where trust starts; `None` when the file was tampered with.
    pub(super) fn anchor(&self) -> Option<Anchor> {
        let signed: proto::SignedKeySet = decode(&self.keyset)?;
        keyset::read(&signed).ok().map(Anchor::KeySet)
    }

    /// Takes a newer KeySet; whether anything changed.
    pub(super) fn renew(&mut self, keyset: &proto::SignedKeySet) -> bool {
        let encoded = encode(keyset);
        let changed = encoded != self.keyset;
        self.keyset = encoded;
        changed
    }
}

/// The session in use, as the controller signed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredSession {
    ticket: String,
    /// The run of the machine it belongs to: whoever restarts the machine starts without a session.
    boot: String,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory, and makes it (mode 0700) where it is missing. One that others can put files into is refused.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |action, cause: String| StoreError { action, path: dir.into(), cause };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| failed("make", e.to_string()))?;
        let found = fs::metadata(dir).map_err(|e| failed("open", e.to_string()))?;
        let (owner, user) = (found.uid(), rustix::process::geteuid().as_raw());
        if owner != user {
            let cause =
                format!("it belongs to the user with id {owner}; run: chown -R {user} {}", dir.display());
            return Err(failed("use", cause));
        }
        if found.mode() & OTHERS_WRITE != 0 {
            return Err(failed("use", format!("others can change it; run: chmod 700 {}", dir.display())));
        }
        Ok(Self { dir: dir.into() })
    }

    /// Keeps other processes from using the directory until the file that is returned is closed. Waits for one that is on
    /// its way out, and for no more than `patience`.
    pub(super) async fn lock(&self, patience: Duration) -> Result<fs::File, StoreError> {
        const NAME: &str = "lock";
        let mut options = fs::OpenOptions::new();
        let opened = options.create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(NAME));
        let file = opened.map_err(|e| self.error("open", NAME, e))?;
        // The system's own waiting cannot be given up, so it is asked again and again.
        let end = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => sleep(LOCK_PAUSE).await,
                Err(Errno::WOULDBLOCK) => {
                    return Err(self.error(
                        "lock",
                        NAME,
                        "a service that runs uses this folder; stop it first",
                    ));
                }
                Err(e) => return Err(self.error("lock", NAME, e)),
            }
        }
    }

    /// The device key; made at the first call.
    pub(super) fn device_key(&self) -> Result<SigningKey, StoreError> {
        const NAME: &str = "device.key";
        if let Some(bytes) = self.read(NAME)? {
            let seed = Secret::from_slice(&bytes)
                .ok_or_else(|| self.error("use", NAME, "it does not hold a key of 32 bytes"))?;
            return Ok(SigningKey::from_seed(seed));
        }
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(&mut *seed).map_err(|_| self.error("make", NAME, "the system has no randomness"))?;
        self.write(NAME, &*seed)?;
        Ok(SigningKey::from_seed(Secret::new(*seed)))
    }

    /// The enrolment, if any.
    pub(super) fn enrolment(&self) -> Result<Option<Enrolment>, StoreError> {
        self.read_json("enrolment.json")
    }

    /// Keeps an enrolment.
    pub(super) fn set_enrolment(&self, enrolment: &Enrolment) -> Result<(), StoreError> {
        self.write_json("enrolment.json", enrolment)
    }

    /// The settings that follow the user.
    pub(super) fn settings(&self) -> Result<Kept, StoreError> {
        Ok(self.read_json("settings.json")?.unwrap_or_default())
    }

    /// Keeps the settings that follow the user.
    pub(super) fn set_settings(&self, settings: &Kept) -> Result<(), StoreError> {
        self.write_json("settings.json", settings)
    }

    /// The key that the shared settings are sealed under, if this device has it.
    pub(super) fn settings_key(&self) -> Result<Option<SettingsKey>, StoreError> {
        self.read_json("settings-key.json")
    }

    /// Keeps that key.
    pub(super) fn set_settings_key(&self, key: &SettingsKey) -> Result<(), StoreError> {
        self.write_json("settings-key.json", key)
    }

    /// The personal key that the organisation sent and that its user has not taken yet.
    pub(super) fn delivered(&self) -> Result<Option<KeyText>, StoreError> {
        self.read_json("delivered.json")
    }

    /// Keeps a personal key that the organisation sent until its user takes it.
    pub(super) fn set_delivered(&self, key: &KeyText) -> Result<(), StoreError> {
        self.write_json("delivered.json", key)
    }

    /// Forgets the personal key that its user has taken.
    pub(super) fn clear_delivered(&self) -> Result<(), StoreError> {
        self.remove("delivered.json")
    }

    /// The ticket of the session in use, if any since the machine was started. Its signature has to be verified again.
    pub(super) fn ticket(&self) -> Result<Option<proto::Envelope>, StoreError> {
        let stored: Option<StoredSession> = self.read_json("session.json")?;
        Ok(stored.filter(|s| s.boot == boot()).and_then(|s| decode(&s.ticket)))
    }

    /// Keeps the ticket of the session in use, or forgets it.
    pub(super) fn set_ticket(&self, ticket: Option<&proto::Envelope>) -> Result<(), StoreError> {
        match ticket {
            Some(ticket) => {
                self.write_json("session.json", &StoredSession { ticket: encode(ticket), boot: boot() })
            }
            None => self.remove("session.json"),
        }
    }

    /// The journal of a run that did not put the host back, if any.
    pub(super) fn journal(&self) -> Result<Option<Journal>, StoreError> {
        const NAME: &str = "journal.json";
        let Some(bytes) = self.read(NAME)? else { return Ok(None) };
        Journal::decode(&bytes).map(Some).map_err(|e| self.error("use", NAME, e))
    }

    /// Keeps the journal, or forgets it.
    pub(super) fn set_journal(&self, journal: Option<&Journal>) -> Result<(), StoreError> {
        const NAME: &str = "journal.json";
        let Some(journal) = journal else { return self.remove(NAME) };
        let bytes = journal.encode().map_err(|e| self.error("write", NAME, e))?;
        if bytes.len() > journal::MAX_BYTES {
            return Err(self.error("write", NAME, "it would be too large"));
        }
        self.write(NAME, &bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.dir.join(name);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.error("read", name, e)),
            Ok(m) if m.len() > MAX_FILE => return Err(self.error("read", name, "it is too large")),
            Ok(_) => {}
        }
        fs::read(&path).map(|b| Some(Zeroizing::new(b))).map_err(|e| self.error("read", name, e))
    }

    fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.error("use", name, e))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| self.error("write", name, e))?;
        self.write(name, &Zeroizing::new(bytes))
    }

    /// Replaces a file so that after a crash at any point, of the machine too, it is the old one or the new one, whole.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let new = self.dir.join(format!(".{name}.new"));
        let written = || -> io::Result<()> {
            // What a crash left there may have another mode.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_all()?;
            fs::rename(&new, self.dir.join(name))?;
            fs::File::open(&self.dir)?.sync_all()
        };
        written().map_err(|e| self.error("write", name, e))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("remove", name, e)),
            _ => Ok(()),
        }
    }

    fn error(&self, action: &'static str, name: &str, cause: impl fmt::Display) -> StoreError {
        StoreError { action, path: self.dir.join(name), cause: cause.to_string() }
    }
}

/// Names the run of the machine (random(4)).
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn encode(message: &impl Message) -> String {
    BASE64.encode(&Zeroizing::new(message.encode_to_vec()))
}

fn decode<M: Message + Default>(text: &str) -> Option<M> {
    let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).ok()?);
    M::decode(&bytes[..]).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_device_key_is_made_once_and_belongs_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        let key = store.device_key().unwrap().public();
        assert_eq!(Store::open(&dir.path().join("state")).unwrap().device_key().unwrap().public(), key);
        let file = fs::metadata(dir.path().join("state/device.key")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("state")).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(dir.path().join("state/device.key"), b"short").unwrap();
        let error = store.device_key().unwrap_err().to_string();
        assert!(error.contains("device.key") && error.contains("32 bytes"), "{error}");
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, usable) in [(0o700, true), (0o755, true), (0o775, false), (0o707, false)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let opened = Store::open(dir.path()).map_err(|e| e.to_string());
            assert_eq!(opened.is_ok(), usable, "{mode:o}: {opened:?}");
            assert!(opened.err().is_none_or(|e| e.contains("chmod 700")), "{mode:o}");
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let left = dir.path().join(".journal.json.new");
        fs::write(&left, b"half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        store.set_journal(Some(&Journal::new(Vec::new(), None))).unwrap();
        assert!(store.journal().unwrap().is_some() && !left.exists());
        let kept = fs::metadata(dir.path().join("journal.json")).unwrap();
        assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn tickets_and_journals_return_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.ticket().unwrap().is_none());
        let envelope = proto::Envelope { key: vec![1; 32], payload: vec![2; 9], signature: vec![3; 64] };
        store.set_ticket(Some(&envelope)).unwrap();
        assert_eq!(store.ticket().unwrap(), Some(envelope));
        store.set_ticket(None).unwrap();
        store.set_ticket(None).unwrap();
        assert!(store.ticket().unwrap().is_none());
        let journal = Journal::new(Vec::new(), None);
        store.set_journal(Some(&journal)).unwrap();
        assert_eq!(store.journal().unwrap(), Some(journal));
        fs::write(dir.path().join("journal.json"), b"{").unwrap();
        assert!(store.journal().unwrap_err().to_string().contains("journal.json"));
    }
}
