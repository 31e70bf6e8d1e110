//! Delivery of secrets: a key that a file declares gets its one string into a file of its own, which its status names and
//! which goes when the key is used or gone. Keys that the CLI asks for are answered there and never come here.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use horizon_controller_core::{Index, Origin, Stored};
use horizon_crds::KindName;
use horizon_model::KeyId;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    api::Strings,
    engine::Engine,
    live::{Hint, Live},
    stop::Stop,
    store::{IssueError, Store, StoreError},
};

/// What delivery works with.
pub struct Delivery {
    /// Where the files go; made when it is needed.
    pub directory: PathBuf,
    /// Puts the strings together.
    pub strings: Strings,
    /// The resources in force.
    pub engine: Engine,
    /// Makes and recognises the secrets.
    pub store: Store,
    /// Says when a key was used.
    pub live: Arc<dyn Live>,
}

/// Delivers until it is to stop.
pub async fn run(delivery: Delivery, mut stop: Stop) {
    let mut indexes = delivery.engine.subscribe();
    let mut hints = delivery.live.subscribe();
    // Keys that were looked at, each with its file while there is one.
    let mut known: HashMap<Uuid, Option<PathBuf>> = HashMap::new();
    loop {
        let index = indexes.borrow_and_update().clone();
        delivery.index(&index, &mut known).await;
        let changed = async {
            loop {
                tokio::select! {
                    changed = indexes.changed() => return changed.is_ok(),
                    hint = hints.recv() => match hint {
                        Ok(Hint::StatusDirty(uid)) => delivery.used(&index, uid, &mut known).await,
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return false,
                    },
                }
            }
        };
        tokio::select! {
            goes_on = changed => if !goes_on { return },
            () = stop.requested() => return,
        }
    }
}

/// Where a key stands.
enum Standing {
    /// Nobody has its string yet.
    Fresh,
    /// Its string lies in a file.
    Delivered(PathBuf),
    /// It was used, or has ended.
    Over,
}

impl Delivery {
    /// Looks at keys that are new, and forgets those that are gone.
    async fn index(&self, index: &Index, known: &mut HashMap<Uuid, Option<PathBuf>>) {
        // First, because a new key of the same name gets a file of the same name.
        let gone: Vec<Uuid> = known.keys().filter(|uid| index.by_uid(**uid).is_none()).copied().collect();
        for uid in gone {
            if let Some(Some(file)) = known.remove(&uid) {
                remove(&file);
            }
        }
        let keys =
            [KindName::RegistrationKey, KindName::PersonalKey].into_iter().flat_map(|kind| index.all(kind));
        for key in keys.filter(|key| matches!(key.origin, Origin::File(_))) {
            if known.contains_key(&key.uid) {
                continue;
            }
            match self.deliver(key).await {
                Ok(file) => {
                    known.insert(key.uid, file);
                }
                // It stays unknown, so the next change tries again.
                Err(error) => {
                    tracing::error!(key = %key.id(), %error, "the key's string could not be delivered")
                }
            }
        }
    }

    async fn standing(&self, key: &Stored) -> Result<Standing, StoreError> {
        let (over, file) = if key.resource.kind() == KindName::RegistrationKey {
            let facts = self.store.registration_key_facts(key.uid).await?;
            (facts.used_at.is_some() || facts.revoked_at.is_some(), facts.secret_file)
        } else {
            let facts = self.store.personal_key_facts(key.uid).await?;
            (facts.activated_at.is_some() || facts.deactivated_at.is_some(), facts.secret_file)
        };
        Ok(match file {
            Some(file) if over => {
                remove(Path::new(&file));
                self.note(key.uid, None).await?;
                Standing::Over
            }
            None if over => Standing::Over,
            Some(file) => Standing::Delivered(file.into()),
            None => Standing::Fresh,
        })
    }

    async fn deliver(&self, key: &Stored) -> Result<Option<PathBuf>, DeliverError> {
        match self.standing(key).await? {
            Standing::Over => return Ok(None),
            Standing::Delivered(file) => return Ok(Some(file)),
            Standing::Fresh => {}
        }
        let now = Timestamp::now();
        let issued = if key.resource.kind() == KindName::RegistrationKey {
            let secret = self.store.issue_registration_secret(key.uid, now).await;
            secret.map(|secret| self.strings.registration_token(key.resource.name(), secret))
        } else {
            let issued = self.store.issue_personal_secret(KeyId(key.uid), now).await;
            issued.map(|issued| self.strings.personal_key(issued.key, issued.secret))
        };
        let text = match issued {
            Ok(text) => Zeroizing::new(format!("{text}\n")),
            Err(IssueError::Ended) => return Ok(None),
            Err(IssueError::AlreadyIssued) => {
                let key = key.id();
                tracing::warn!(%key, "the string of this key was made, but its file is not there: declare another key");
                return Ok(None);
            }
            Err(IssueError::Unknown) => return Err(DeliverError::Unknown),
            Err(IssueError::Store(error)) => return Err(error.into()),
        };
        let id = key.id();
        // Names have hyphens and no dots: no two keys have one file.
        let name = format!("{}.{}.{}", id.kind.as_str().to_lowercase(), id.namespace, id.name);
        let file = self.directory.join(name);
        write(&file, text.as_bytes())?;
        self.note(key.uid, Some(&file)).await?;
        tracing::info!(key = %id, file = %file.display(), "the key's string lies in its file");
        Ok(Some(file))
    }

    /// Removes the file of a key that was used.
    async fn used(&self, index: &Index, uid: Uuid, known: &mut HashMap<Uuid, Option<PathBuf>>) {
        let Some(file) = known.get_mut(&uid).filter(|file| file.is_some()) else { return };
        let Some(key) = index.by_uid(uid) else { return };
        match self.standing(key).await {
            Ok(Standing::Over) => *file = None,
            Ok(_) => {}
            Err(error) => tracing::warn!(key = %key.id(), %error, "cannot tell whether the key was used"),
        }
    }

    async fn note(&self, uid: Uuid, file: Option<&Path>) -> Result<(), StoreError> {
        let file = file.map(|file| file.to_string_lossy());
        self.store.note_secret_file(uid, file.as_deref()).await?;
        self.live.publish(Hint::StatusDirty(uid));
        Ok(())
    }
}

/// Why a string was not delivered.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its file cannot be written: {0}")]
    File(#[from] io::Error),
    #[error("the database does not know the key")]
    Unknown,
}

/// Writes a file that only its owner may read, in the place of one that an earlier key of the name may have left.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    remove(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "a delivered string could not be removed: remove it by hand");
        }
        _ => {}
    }
}
