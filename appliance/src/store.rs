//! What an appliance keeps on disk: its key, whom it belongs to, the organisation's keys, the verification secret, the
//! last good state, and what it changed on the host. Every file is replaced whole and readable by its owner only.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use horizon_appliance_core::Secrets;
use horizon_model::{RootId, Secret, ServerId};
use horizon_wire::{
    Message, audit,
    key::SigningKey,
    keyset::{self, KeySet},
    proto,
    state::{self, Numbered},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use zeroize::Zeroizing;

const KEY: &str = "identity.key";
const ENROLMENT: &str = "enrolment.json";
const KEYSET: &str = "keyset";
const SECRETS: &str = "verification.secret";
const STATE: &str = "state";
const HOST: &str = "host.json";
const WITNESSES: &str = "audit-witnesses";
/// The most checkpoints of the audit trail that are kept, the newest.
const MAX_WITNESSES: usize = 16;
const LOCK: &str = "lock";
const SECRET_BYTES: usize = 32;
/// Larger than the largest state a controller can send.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Why the disk could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {path}: {cause}{}", remedy(cause))]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is not what this program writes.
    #[error("{path} is damaged: {what}; restore it from a backup, or remove {} and enrol again", path.parent().unwrap_or(path).display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Others could put files of theirs into the directory.
    #[error("{0} can be changed by others; run: chmod 700 {0}")]
    Exposed(PathBuf),
    /// It is another user's.
    #[error("{path} belongs to the user with id {owner}; run this as that user, or: chown -R {user} {path}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this process.
        user: u32,
    },
    /// Another process works with the directory.
    #[error(
        "another horizon-appliance works in {0}; stop it first (systemctl stop horizon-appliance), or use another --state-dir"
    )]
    Busy(PathBuf),
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run it as the user that owns it (usually root), or choose another --state-dir"
        }
        io::ErrorKind::StorageFull => "; free some space",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a --state-dir that can be written",
        _ => "",
    }
}

/// Whom the appliance belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enrolment {
    /// The server it is.
    pub server_id: ServerId,
    /// The server's name.
    pub server_name: String,
    /// Controllers as `host:port`, best first.
    pub controllers: Vec<String>,
    /// The organisation's root.
    pub root: RootId,
    /// The registration key it was enrolled with.
    pub key_name: String,
}

/// Kernel settings as they were before the appliance changed them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Originals {
    /// The start of the system they belong to; another start has set them anew.
    pub(crate) boot_id: String,
    /// Their values by name.
    pub(crate) settings: BTreeMap<String, String>,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// Held while a process works with the directory. The system releases it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    /// Opens the directory, and creates it (mode 0700) where there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed("create", dir, e))?;
        Self::existing(dir)
    }

    /// Opens the directory if it is there, and looks only.
    pub(crate) fn existing(dir: &Path) -> Result<Self, StoreError> {
        let metadata = fs::metadata(dir).map_err(|e| failed("open", dir, e))?;
        if metadata.mode() & 0o022 != 0 {
            return Err(StoreError::Exposed(dir.to_owned()));
        }
        let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != user {
            return Err(StoreError::Foreign { path: dir.to_owned(), owner, user });
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The path of the directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps other processes out.
    pub(crate) fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.dir.join(LOCK);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(|e| failed("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Busy(self.dir.clone())),
            Err(fs::TryLockError::Error(e)) => Err(failed("lock", &path, e)),
        }
    }

    /// The appliance's key, `None` before its first start.
    pub(crate) fn key(&self) -> Result<Option<SigningKey>, StoreError> {
        Ok(self.secret(KEY)?.map(SigningKey::from_seed))
    }

    /// The appliance's key, made from `seed` at the first start.
    pub(crate) fn key_or(&self, seed: Secret) -> Result<SigningKey, StoreError> {
        if let Some(key) = self.key()? {
            return Ok(key);
        }
        self.write(KEY, seed.expose())?;
        Ok(SigningKey::from_seed(seed))
    }

    /// Whom the appliance belongs to, `None` before it is enrolled.
    pub(crate) fn enrolment(&self) -> Result<Option<Enrolment>, StoreError> {
        self.json(ENROLMENT)
    }

    /// Keeps an enrolment.
    pub(crate) fn set_enrolment(&self, enrolment: &Enrolment) -> Result<(), StoreError> {
        self.set_json(ENROLMENT, enrolment)
    }

    /// The newest KeySet that was seen.
    pub(crate) fn keyset(&self) -> Result<Option<KeySet>, StoreError> {
        let Some(bytes) = self.read(KEYSET)? else { return Ok(None) };
        let signed = proto::SignedKeySet::decode(&bytes[..]).map_err(|e| self.damaged(KEYSET, &e))?;
        keyset::read(&signed).map(Some).map_err(|e| self.damaged(KEYSET, &e))
    }

    /// Keeps a KeySet.
    pub(crate) fn set_keyset(&self, signed: &proto::SignedKeySet) -> Result<(), StoreError> {
        self.write(KEYSET, &signed.encode_to_vec())
    }

    /// The newest checkpoints of the organisation's audit trail, the oldest first.
    pub(crate) fn witnesses(&self) -> Result<Vec<proto::Envelope>, StoreError> {
        let Some(bytes) = self.read(WITNESSES)? else { return Ok(Vec::new()) };
        // What cannot be read witnesses nothing, and is no reason to stop.
        Ok(String::from_utf8_lossy(&bytes).lines().filter_map(audit::from_line).collect())
    }

    /// Keeps a checkpoint, whose signature was verified.
    pub(crate) fn add_witness(&self, checkpoint: proto::Envelope) -> Result<(), StoreError> {
        let mut kept = self.witnesses()?;
        kept.push(checkpoint);
        let over = kept.len().saturating_sub(MAX_WITNESSES);
        let lines: String = kept[over..].iter().map(|kept| audit::to_line(kept) + "\n").collect();
        self.write(WITNESSES, lines.as_bytes())
    }

    /// The verification secrets.
    pub(crate) fn secrets(&self) -> Result<Option<Secrets>, StoreError> {
        let Some(bytes) = self.read(SECRETS)? else { return Ok(None) };
        let (current, previous) = bytes.split_at_checked(SECRET_BYTES).unwrap_or_default();
        let current = Secret::from_slice(current);
        let previous = (!previous.is_empty()).then(|| Secret::from_slice(previous));
        match (current, previous) {
            (Some(current), None) => Ok(Some(Secrets { current, previous: None })),
            (Some(current), Some(Some(previous))) => Ok(Some(Secrets { current, previous: Some(previous) })),
            _ => Err(self.damaged(SECRETS, &"it has another length than two secrets")),
        }
    }

    /// Keeps the verification secrets.
    pub(crate) fn set_secrets(&self, secrets: &Secrets) -> Result<(), StoreError> {
        let mut bytes = Zeroizing::new(secrets.current.expose().to_vec());
        if let Some(previous) = &secrets.previous {
            bytes.extend_from_slice(previous.expose());
        }
        self.write(SECRETS, &bytes)
    }

    /// The last good state of this server; the empty one before the first.
    pub(crate) fn state(&self, server: ServerId) -> Result<Numbered, StoreError> {
        let Some(bytes) = self.read(STATE)? else { return Ok(Numbered::default()) };
        state::apply(&Numbered::default(), server, &bytes).map_err(|e| self.damaged(STATE, &e))
    }

    /// Keeps a state.
    pub(crate) fn set_state(&self, server: ServerId, state: &Numbered) -> Result<(), StoreError> {
        // A snapshot carries the digest, which the next start checks.
        let snapshot = state::compose(server, &Numbered::default(), state);
        self.write(STATE, &Zeroizing::new(snapshot.encode_to_vec()))
    }

    /// Puts a damaged state aside, so that the controller sends a new one.
    pub(crate) fn set_state_aside(&self) -> Result<(), StoreError> {
        let path = self.dir.join(STATE);
        fs::rename(&path, self.dir.join("state.damaged")).map_err(|e| failed("rename", &path, e))
    }

    /// Forgets secret, state and KeySet of a former enrolment. The key stays.
    pub(crate) fn forget_enrolment(&self) -> Result<(), StoreError> {
        for name in [ENROLMENT, STATE, SECRETS, KEYSET, WITNESSES] {
            self.remove(name)?;
        }
        Ok(())
    }

    /// Kernel settings to be put back.
    pub(crate) fn originals(&self) -> Result<Option<Originals>, StoreError> {
        self.json(HOST)
    }

    /// Remembers kernel settings before they are changed.
    pub(crate) fn set_originals(&self, originals: &Originals) -> Result<(), StoreError> {
        if originals.settings.is_empty() { self.remove(HOST) } else { self.set_json(HOST, originals) }
    }

    fn secret(&self, name: &str) -> Result<Option<Secret>, StoreError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged = || self.damaged(name, &"it does not have 32 bytes");
        Secret::from_slice(&bytes).map(Some).ok_or_else(damaged)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.damaged(name, &e))
    }

    fn set_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| self.damaged(name, &e))?;
        self.write(name, &text)
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", &path, e)),
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|e| failed("read", &path, e))?;
        Ok(Some(bytes))
    }

    /// Replaces a file so that after a crash at any point it is the old one or the new one, whole.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let written = || -> io::Result<()> {
            // What a crash or somebody else left there may have another mode, or be a link.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        written().map_err(|e| failed("write", &path, e))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, e)),
            _ => Ok(()),
        }
    }

    fn damaged(&self, name: &str, what: &dyn std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.dir.join(name), what: what.to_string() }
    }
}

fn failed(action: &'static str, path: &Path, cause: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), cause }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
