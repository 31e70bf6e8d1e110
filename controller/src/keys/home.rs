//! Where a replica's keys lie when it does not run: a directory of its own, or the Secret that all replicas share.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{CHAIN, ENVELOPE_FILE, Keys, KeysError, MAX_CHAIN_BYTES, files};
use crate::{
    config::SecretName,
    kubernetes::{self, Cluster},
    store::EnvelopeKey,
};

/// Where the keys lie.
#[derive(Clone)]
pub enum Home {
    /// Files in a directory.
    Directory(PathBuf),
    /// A Secret.
    Secret(Box<Cluster>, SecretName),
}

impl Home {
    /// Loads the keys, and makes those of a Secret that is not there.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together.
    pub async fn open(&self, now: Timestamp) -> Result<Keys, KeysError> {
        match self {
            Self::Directory(directory) => Keys::open(directory, now),
            Self::Secret(cluster, name) => {
                let files = kubernetes::keys_secret(cluster, name, || Keys::fresh(now)).await?;
                Keys::read(&files, Path::new(&format!("Secret {name}")), now)
            }
        }
    }

    /// Keeps another envelope key in the place of the one before.
    ///
    /// # Errors
    /// When it cannot be written: then the one before is as it was.
    pub async fn keep_envelope(&self, key: &EnvelopeKey) -> Result<(), KeysError> {
        let content = files::encode(&key.0);
        match self {
            Self::Directory(directory) => files::write(&directory.join(ENVELOPE_FILE), &content),
            Self::Secret(cluster, name) => {
                let with = |found: &super::KeyFiles| {
                    (found.get(ENVELOPE_FILE) != Some(&content)).then(|| {
                        let mut files = found.clone();
                        files.insert(ENVELOPE_FILE.to_owned(), content.clone());
                        files
                    })
                };
                Ok(kubernetes::replace_keys_secret(cluster, name, with).await?)
            }
        }
    }

    /// Keeps newer keys. Where newer ones are already, nothing changes.
    ///
    /// # Errors
    /// When they cannot be written; they are as before then, or partly newer, which is read as before.
    pub async fn keep(&self, keys: &Keys, now: Timestamp) -> Result<(), KeysError> {
        match self {
            Self::Directory(directory) => keep_files(directory, keys),
            Self::Secret(cluster, name) => {
                let newer = |found: &super::KeyFiles| {
                    let place = format!("Secret {name}");
                    let there = Keys::read(found, Path::new(&place), now);
                    let is_newer = there.is_ok_and(|there| there.keyset.version >= keys.keyset.version);
                    (!is_newer).then(|| merged(found, keys))
                };
                Ok(kubernetes::replace_keys_secret(cluster, name, newer).await?)
            }
        }
    }
}

/// What others put there stays; the keys of KeySets are these.
fn merged(found: &super::KeyFiles, keys: &Keys) -> super::KeyFiles {
    let mut files = found.clone();
    files.retain(|name, _| !is_keyset_key(name));
    let ours = keys.files.iter().filter(|(name, _)| is_keyset_key(name) || name.as_str() == CHAIN);
    files.extend(ours.map(|(name, content)| (name.clone(), content.clone())));
    files
}

fn is_keyset_key(name: &str) -> bool {
    ["root", "tls", "state", "ticket"].iter().any(|class| files::is_of(name, class))
}

/// New keys come first and the chain last, so that what is there is whole at every moment; old keys go after it.
fn keep_files(directory: &Path, keys: &Keys) -> Result<(), KeysError> {
    let chain = directory.join(CHAIN);
    let found = files::read_keys(directory)?;
    let held = files::read(&chain, MAX_CHAIN_BYTES)?;
    let ours = keys.files.get(CHAIN).map_or(&[][..], |chain| &chain[..]);
    if held.len() > ours.len() {
        return Ok(());
    }
    for (name, content) in keys.files.iter().filter(|(name, _)| is_keyset_key(name)) {
        if found.get(name) != Some(content) {
            files::write(&directory.join(name), content)?;
        }
    }
    if held[..] != *ours {
        files::write(&chain, ours)?;
    }
    for name in found.keys().filter(|name| is_keyset_key(name) && !keys.files.contains_key(*name)) {
        files::remove(&directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use horizon_wire::{
        Message as _,
        key::SigningKey,
        rotation::{self, KeyClass, Step},
    };

    use super::*;
    use crate::{keys::fresh, store::StoredKeySet};

    /// The keys after one step, as they come from the database.
    fn after(keys: &Keys, class: KeyClass, step: Step, now: Timestamp) -> Keys {
        let key = step.brings_key().then(|| SigningKey::from_seed(fresh()));
        let public = key.as_ref().map(SigningKey::public);
        let next = rotation::take(&keys.keyset, class, step, public, now.as_millisecond()).unwrap();
        let root = key.as_ref().filter(|_| class == KeyClass::Root).unwrap_or(&keys.root);
        let row = StoredKeySet {
            version: next.version,
            signed: next.sign(root, Some(&keys.root)).encode_to_vec(),
            key: key.as_ref().map(|key| (format!("{}-{}", class.as_str(), next.version), key.seed().clone())),
        };
        keys.advanced(&[row], now).unwrap()
    }

    #[tokio::test]
    async fn newer_keys_are_kept_and_what_is_over_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (home, now) = (Home::Directory(dir.path().to_owned()), Timestamp::now());
        let first = Keys::create(dir.path(), now).unwrap();
        let files = || {
            let mut names: Vec<_> = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("tls-") || name.starts_with("root-"))
                .collect();
            names.sort();
            names
        };
        let published = after(&first, KeyClass::Tls, Step::Publish, now);
        // The process ends after the key was written and before the chain was: what is there is whole.
        let (name, content) = published.files.iter().find(|(name, _)| name.as_str() == "tls-2.key").unwrap();
        files::write(&dir.path().join(name), content).unwrap();
        assert_eq!(home.open(now).await.unwrap().keyset, first.keyset);
        home.keep(&published, now).await.unwrap();
        let read = home.open(now).await.unwrap();
        assert_eq!((read.keyset.version, read.tls.public()), (2, first.tls.public()), "published, not used");
        let used = after(&published, KeyClass::Tls, Step::Use, now);
        home.keep(&used, now).await.unwrap();
        let read = home.open(now).await.unwrap();
        assert_ne!(read.tls.public(), first.tls.public());
        assert_eq!(files(), ["root-1.key", "tls-2.key"], "the old private key is gone");
        let root = after(&used, KeyClass::Root, Step::Publish, now);
        home.keep(&root, now).await.unwrap();
        // A replica that is behind overwrites nothing.
        home.keep(&published, now).await.unwrap();
        let read = home.open(now).await.unwrap();
        assert_eq!(
            (read.keyset.version, files()),
            (4, vec!["root-4.key".to_owned(), "tls-2.key".to_owned()])
        );
        assert_eq!(read.root_id(), root.root_id());
        // Rows that do not follow are refused.
        let gap = StoredKeySet { version: 9, signed: Vec::new(), key: None };
        assert!(matches!(read.advanced(&[gap], now), Err(KeysError::NotNext { held: 4, found: 9 })));
    }
}
