//! The keyring of the user's session: the Secret Service of the session's D-Bus.
//!
//! With it a locked item reads as if there were none, so whether the collection is locked is asked first.

use std::sync::Arc;

use horizon_client_core::ipc::KeyText;
use keyring_core::{Entry, Error};
use secret_service::{EncryptionType, blocking::SecretService};
use zbus_secret_service_keyring_store::Store;
use zeroize::{Zeroize, Zeroizing};

use super::KeepError;

/// Under which names the key is kept.
const SERVICE: &str = "horizon";
const USER: &str = "personal-key";

/// Whether the keyring is there and open.
fn check() -> Result<(), KeepError> {
    let absent = |e: secret_service::Error| KeepError::NoKeyring(e.to_string());
    let service = SecretService::connect(EncryptionType::Dh).map_err(absent)?;
    let collection = service.get_default_collection().map_err(absent)?;
    match collection.is_locked() {
        Ok(false) => Ok(()),
        Ok(true) => Err(KeepError::Locked),
        Err(error) => Err(KeepError::Keyring(error.to_string())),
    }
}

fn entry() -> Result<Entry, KeepError> {
    check()?;
    let store: Arc<Store> = Store::new().map_err(failed)?;
    keyring_core::set_default_store(store);
    Entry::new(SERVICE, USER).map_err(failed)
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn failed(error: Error) -> KeepError {
    match error {
        Error::NoStorageAccess(_) => KeepError::Locked,
        // Such an error holds the bytes it is about, which are secret.
        Error::BadEncoding(mut bytes) | Error::BadDataFormat(mut bytes, _) => {
            bytes.zeroize();
            KeepError::Keyring("what it holds under the name horizon is no personal key".into())
        }
        other => KeepError::Keyring(other.to_string()),
    }
}

pub(super) fn get() -> Result<Option<KeyText>, KeepError> {
    match entry()?.get_password() {
        Ok(text) => Ok(Some(KeyText::new(text))),
        Err(Error::NoEntry) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn set(key: &KeyText) -> Result<(), KeepError> {
    let text = Zeroizing::new(key.expose().to_owned());
    entry()?.set_password(&text).map_err(failed)
}

pub(super) fn remove() -> Result<bool, KeepError> {
    match entry()?.delete_credential() {
        Ok(()) => Ok(true),
        Err(Error::NoEntry) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}
