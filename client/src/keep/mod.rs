//! Where the user's personal key is kept: in the keyring of their session, or, where they chose that, in an encrypted file.
//! Both are the user's own business: this runs in the command, never in the privileged service.

mod file;
mod keyring;

use std::path::PathBuf;

use horizon_client_core::ipc::KeyText;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why a kept key cannot be used.
#[derive(Debug, Error)]
pub(crate) enum KeepError {
    /// Nobody provides a keyring here.
    #[error("there is no keyring in this session: {0}")]
    NoKeyring(String),
    /// The keyring is there, and what is in it cannot be seen.
    #[error("the keyring is locked")]
    Locked,
    /// The keyring failed.
    #[error("the keyring failed: {0}")]
    Keyring(String),
    /// The file cannot be used.
    #[error("the key file {path} cannot be {action}: {cause}", path = .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why it failed.
        cause: String,
    },
    /// The passphrase is another, or the file was changed.
    #[error("the passphrase is wrong, or the key file {path} was changed", path = .0.display())]
    Passphrase(PathBuf),
}

impl KeepError {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Locked => {
                "unlock your keyring (log in to the desktop, or open its password manager), then try again"
            }
            Self::NoKeyring(_) => {
                "keep the key in a file under a passphrase instead: add --encrypted-file PATH to the command"
            }
            Self::Keyring(_) => "look at the log of the keyring, or use --encrypted-file PATH",
            Self::File { .. } => "check the path and its permissions",
            Self::Passphrase(_) => "try again; without the passphrase the key in the file is lost",
        }
    }
}

/// A place for the personal key.
pub(crate) enum Place {
    /// The keyring of the user's session.
    Keyring,
    /// A file under a passphrase.
    File(PathBuf, Zeroizing<String>),
}

impl Place {
    /// Where it is, for people.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Keyring => "the keyring of your session".to_owned(),
            Self::File(path, _) => format!("the encrypted file {}", path.display()),
        }
    }

    /// The key that is kept there, if any.
    pub(crate) fn get(&self) -> Result<Option<KeyText>, KeepError> {
        match self {
            Self::Keyring => keyring::get(),
            Self::File(path, passphrase) => file::get(path, passphrase),
        }
    }

    /// Keeps a key there, in the place of another.
    pub(crate) fn set(&self, key: &KeyText) -> Result<(), KeepError> {
        match self {
            Self::Keyring => keyring::set(key),
            Self::File(path, passphrase) => file::set(path, passphrase, key),
        }
    }

    /// Removes the key. Whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, KeepError> {
        match self {
            Self::Keyring => keyring::remove(),
            Self::File(path, _) => file::remove(path),
        }
    }
}
