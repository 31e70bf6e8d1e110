//! Keys on their way to a backup and from it.

use std::path::Path;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{CHAIN, ENVELOPE_FILE, Home, KeyFiles, Keys, KeysError, MAX_CHAIN_BYTES, files};
use crate::kubernetes;

/// What became of keys that were to be put where keys lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// There were none, and now there are these.
    Made,
    /// The same organisation's keys were there, with this KeySet, which is not older: they stay.
    Kept(u64),
}

impl Home {
    /// The files as they are; `None` when there are no keys yet.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn files(&self) -> Result<Option<KeyFiles>, KeysError> {
        match self {
            Self::Directory(directory) => {
                let chain = directory.join(CHAIN);
                if !chain.exists() {
                    return Ok(None);
                }
                let mut found = files::read_keys(directory)?;
                found.insert(CHAIN.to_owned(), files::read(&chain, MAX_CHAIN_BYTES)?);
                Ok(Some(found))
            }
            Self::Secret(cluster, name) => Ok(kubernetes::find_keys_secret(cluster, name).await?),
        }
    }

    /// Puts keys where there are none. Those of the same organisation stay if they are not older, but for the envelope key,
    /// which belongs to the database; others are refused.
    ///
    /// # Errors
    /// When others are there, or they cannot be written.
    pub async fn place(&self, wanted: &KeyFiles, now: Timestamp) -> Result<Placed, KeysError> {
        let place = self.to_string();
        let place = Path::new(&place);
        let new = Keys::read(wanted, place, now)?;
        if let Some(found) = self.files().await? {
            let old = Keys::read(&found, place, now)?;
            // The first KeySet stays the first, whatever the newest is.
            let same = old.chain.first() == new.chain.first();
            if !same || old.keyset.version < new.keyset.version {
                return Err(KeysError::Exists(place.to_owned()));
            }
            if let Some(envelope) =
                wanted.get(ENVELOPE_FILE).filter(|key| found.get(ENVELOPE_FILE) != Some(key))
            {
                self.replace_envelope(envelope).await?;
            }
            return Ok(Placed::Kept(old.keyset.version));
        }
        match self {
            Self::Directory(directory) => {
                files::make_directory(directory)?;
                // The chain comes last: without it there are no keys.
                let (chain, keys): (Vec<_>, Vec<_>) =
                    wanted.iter().partition(|(name, _)| name.as_str() == CHAIN);
                for (name, content) in keys.into_iter().chain(chain) {
                    files::write(&directory.join(name), content)?;
                }
            }
            Self::Secret(cluster, name) => {
                let there = kubernetes::keys_secret(cluster, name, || wanted.clone()).await?;
                if there != *wanted {
                    return Err(KeysError::Exists(place.to_owned()));
                }
            }
        }
        Ok(Placed::Made)
    }
}

impl Home {
    /// Puts the envelope key of a backup in the place of a newer one, which opens nothing in the database of the backup.
    async fn replace_envelope(&self, envelope: &Zeroizing<Vec<u8>>) -> Result<(), KeysError> {
        match self {
            Self::Directory(directory) => files::write(&directory.join(ENVELOPE_FILE), envelope),
            Self::Secret(cluster, name) => {
                let with = |found: &KeyFiles| {
                    let mut files = found.clone();
                    files.insert(ENVELOPE_FILE.to_owned(), envelope.clone());
                    (files != *found).then_some(files)
                };
                Ok(kubernetes::replace_keys_secret(cluster, name, with).await?)
            }
        }
    }
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.display()),
            Self::Secret(_, name) => write!(f, "the Secret {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_placed_where_there_are_none_and_others_are_never_overwritten() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        let home = Home::Directory(dir.path().join("keys"));
        assert!(home.files().await.unwrap().is_none());
        let keys = Keys::fresh(now);
        assert_eq!(home.place(&keys, now).await.unwrap(), Placed::Made);
        assert_eq!(home.files().await.unwrap().unwrap(), keys);
        assert_eq!(home.place(&keys, now).await.unwrap(), Placed::Kept(1));
        // The envelope key was rotated since: what comes back is sealed under the one of then.
        let mut rotated = keys.clone();
        rotated.insert(ENVELOPE_FILE.into(), Keys::fresh(now)[ENVELOPE_FILE].clone());
        files::write(&dir.path().join("keys").join(ENVELOPE_FILE), &rotated[ENVELOPE_FILE]).unwrap();
        assert_eq!(home.files().await.unwrap().unwrap(), rotated);
        assert_eq!(home.place(&keys, now).await.unwrap(), Placed::Kept(1));
        assert_eq!(home.files().await.unwrap().unwrap(), keys);
        let refused = home.place(&Keys::fresh(now), now).await.unwrap_err().to_string();
        assert!(refused.contains("already holds an organisation's keys"), "{refused}");
        assert_eq!(home.files().await.unwrap().unwrap(), keys);
    }
}
