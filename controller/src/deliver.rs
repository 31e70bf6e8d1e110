//! Delivery of secrets: a key that the source declares gets its one string into a place of its own, which its status names
//! and which goes when the key is used or gone. Keys that the CLI asks for are answered there and never come here. Only the
//! leader delivers.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use horizon_controller_core::{Index, Origin, Stored};
use horizon_crds::{KindName, ResourceId, RevocationTarget, TargetKind};
use horizon_model::KeyId;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    api::Strings,
    engine::Engine,
    live::{Hint, Live},
    replica::Leadership,
    stop::Stop,
    store::{IssueError, LeaderEpoch, Store, StoreError},
};

/// Where the strings of keys go.
pub trait SecretSink: Send + Sync + 'static {
    /// Puts the one string of a key where its admin finds it, in the place of what an earlier key of the name may have
    /// left. Returns the place, as the status names it.
    fn deliver<'a>(
        &'a self,
        key: &'a Stored,
        text: &'a Zeroizing<String>,
    ) -> BoxFuture<'a, io::Result<String>>;

    /// Takes away what was put at a place, because the key was used or has ended. That it is not there is no error.
    fn withdraw<'a>(&'a self, key: &'a ResourceId, place: &'a str) -> BoxFuture<'a, io::Result<()>>;
}

/// What delivery works with.
pub struct Delivery {
    /// Where the strings go.
    pub sink: Arc<dyn SecretSink>,
    /// Puts the strings together.
    pub strings: Strings,
    /// The resources in force.
    pub engine: Engine,
    /// Makes and recognises the secrets.
    pub store: Store,
    /// Says when a key was used.
    pub live: Arc<dyn Live>,
    /// Whether this replica leads.
    pub leadership: Leadership,
}

/// When what could not be delivered is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of keys.
#[derive(Default)]
struct Keys {
    /// Those that were looked at.
    known: HashMap<Uuid, Known>,
    /// Strings that were made, and could not be delivered yet. Whoever leads next makes others in their place.
    waiting: HashMap<Uuid, Zeroizing<String>>,
    /// Whether something is to be tried again.
    again: bool,
}

/// A key that was looked at: which, and where its string is while it is somewhere.
struct Known {
    id: ResourceId,
    place: Option<String>,
    /// What was looked at: its generation, and whether something revokes it.
    looked_at: (i64, bool),
}

/// Delivers, while this replica leads, until it is to stop.
pub async fn run(delivery: Delivery, stop: Stop) {
    delivery.leadership.while_leading(stop, || delivery.lead()).await;
}

/// Where a key stands.
enum Standing {
    /// Nobody has its string yet.
    Fresh,
    /// Its string lies in a place.
    Delivered(String),
    /// It was used, or has ended.
    Over,
}

impl Delivery {
    async fn lead(&self) {
        let mut in_force = self.engine.subscribe();
        let mut hints = self.live.subscribe();
        let mut keys = Keys::default();
        loop {
            let index = in_force.borrow_and_update().index.clone();
            self.index(&index, &mut keys).await;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(RETRY), if keys.again => break,
                    changed = in_force.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    hint = hints.recv() => match hint {
                        Ok(Hint::StatusDirty(uid)) => if self.used(&index, uid, &mut keys.known).await { break },
                        Ok(Hint::Everything) | Err(RecvError::Lagged(_)) => {
                            let all: Vec<Uuid> = keys.known.keys().copied().collect();
                            let mut again = false;
                            for uid in all {
                                again |= self.used(&index, uid, &mut keys.known).await;
                            }
                            if again {
                                break;
                            }
                        }
                        Ok(_) => {}
                        Err(RecvError::Closed) => return,
                    },
                }
            }
        }
    }

    /// Looks at keys that are new, and forgets those that are gone.
    async fn index(&self, index: &Index, keys: &mut Keys) {
        let Keys { known, waiting, again } = keys;
        *again = false;
        waiting.retain(|uid, _| index.by_uid(*uid).is_some());
        // First, because a new key of the same name gets a place of the same name.
        let gone: Vec<Uuid> = known.keys().filter(|uid| index.by_uid(**uid).is_none()).copied().collect();
        for uid in gone {
            if let Some(Known { id, place: Some(place), .. }) = known.remove(&uid) {
                self.withdraw(&id, &place).await;
            }
        }
        let all =
            [KindName::RegistrationKey, KindName::PersonalKey].into_iter().flat_map(|kind| index.all(kind));
        for key in all.filter(|key| matches!(key.origin, Origin::File(_))) {
            let Some(epoch) = self.leadership.leads() else { return };
            let looks = (key.generation, is_revoked(index, key));
            if let Some(before) = known.get_mut(&key.uid) {
                if before.looked_at != looks {
                    before.looked_at = looks;
                    self.used(index, key.uid, known).await;
                }
                continue;
            }
            match self.deliver(key, epoch, waiting).await {
                Ok(place) => {
                    known.insert(key.uid, Known { id: key.id(), place, looked_at: looks });
                }
                Err(DeliverError::Store(StoreError::Fenced)) => {
                    tracing::warn!(%epoch, "another replica leads by now: this one steps down");
                    return self.leadership.fenced(epoch);
                }
                Err(error) => {
                    *again = true;
                    let key = key.id();
                    tracing::error!(%key, %error, "the key's string could not be delivered; trying again");
                }
            }
        }
    }

    async fn standing(&self, key: &Stored) -> Result<Standing, StoreError> {
        let (over, place) = if key.resource.kind() == KindName::RegistrationKey {
            let facts = self.store.registration_key_facts(key.uid).await?;
            (facts.used_at.is_some() || facts.revoked_at.is_some(), facts.secret_file)
        } else {
            let facts = self.store.personal_key_facts(key.uid).await?;
            let in_use = facts.activated_at.is_some() && !facts.manual_rotation_required;
            (in_use || facts.deactivated_at.is_some(), facts.secret_file)
        };
        Ok(match place {
            Some(place) if over => {
                self.withdraw(&key.id(), &place).await;
                self.note(key.uid, None).await?;
                Standing::Over
            }
            None if over => Standing::Over,
            Some(place) => Standing::Delivered(place),
            None => Standing::Fresh,
        })
    }

    async fn deliver(
        &self,
        key: &Stored,
        epoch: LeaderEpoch,
        waiting: &mut HashMap<Uuid, Zeroizing<String>>,
    ) -> Result<Option<String>, DeliverError> {
        match self.standing(key).await? {
            Standing::Over => return Ok(None),
            Standing::Delivered(place) => return Ok(Some(place)),
            Standing::Fresh => {}
        }
        let text = match waiting.remove(&key.uid) {
            Some(text) => text,
            None => match self.issue(key, epoch).await? {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        let delivered = async {
            // Whoever leads now makes another string, which this is not to overwrite.
            if self.leadership.leads() != Some(epoch) {
                return Err(StoreError::Fenced.into());
            }
            let place = self.sink.deliver(key, &text).await?;
            self.note(key.uid, Some(&place)).await?;
            Ok::<_, DeliverError>(place)
        };
        match delivered.await {
            Ok(place) => {
                tracing::info!(key = %key.id(), place, "the key's string was delivered");
                Ok(Some(place))
            }
            Err(error) => {
                waiting.insert(key.uid, text);
                Err(error)
            }
        }
    }

    /// Makes the string of a key; `None` when there is none to be had any more.
    async fn issue(
        &self,
        key: &Stored,
        epoch: LeaderEpoch,
    ) -> Result<Option<Zeroizing<String>>, DeliverError> {
        let now = Timestamp::now();
        let issued = if key.resource.kind() == KindName::RegistrationKey {
            let secret = self.store.registration_secret_to_deliver(key.uid, epoch, now).await;
            secret.map(|secret| self.strings.registration_token(key.resource.name(), secret))
        } else {
            let issued = self.store.personal_secret_to_deliver(KeyId(key.uid), epoch, now).await;
            issued.map(|issued| self.strings.personal_key(issued.key, issued.secret))
        };
        match issued {
            Ok(text) => Ok(Some(Zeroizing::new(format!("{text}\n")))),
            Err(IssueError::Ended) => Ok(None),
            Err(IssueError::AlreadyIssued) => {
                let key = key.id();
                tracing::warn!(%key, "somebody else was given the string of this key: declare another key to have one delivered");
                Ok(None)
            }
            Err(IssueError::Unknown) => Err(DeliverError::Unknown),
            Err(IssueError::Store(error)) => Err(error.into()),
        }
    }

    /// Takes away the string of a key that was used, or revoked. Returns whether the key was replaced by one whose string is to be
    /// delivered.
    async fn used(&self, index: &Index, uid: Uuid, known: &mut HashMap<Uuid, Known>) -> bool {
        let Some(entry) = known.get_mut(&uid) else { return false };
        let Some(key) = index.by_uid(uid) else { return false };
        match self.standing(key).await {
            Ok(Standing::Over) => entry.place = None,
            Ok(Standing::Delivered(_)) => {}
            Ok(Standing::Fresh) => {
                // Somebody else was given its string, unless it is a new one.
                let replaced = key.resource.kind() == KindName::PersonalKey && self.is_replaced(key).await;
                if replaced {
                    known.remove(&uid);
                }
                return replaced;
            }
            Err(error) => tracing::warn!(key = %key.id(), %error, "cannot tell whether the key was used"),
        }
        false
    }

    async fn is_replaced(&self, key: &Stored) -> bool {
        match self.store.personal_key_facts(key.uid).await {
            Ok(facts) => facts.manual_rotation_required,
            Err(_) => false,
        }
    }

    async fn withdraw(&self, key: &ResourceId, place: &str) {
        if let Err(error) = self.sink.withdraw(key, place).await {
            tracing::warn!(%key, place, %error, "a delivered string could not be removed: remove it by hand");
        }
    }

    async fn note(&self, uid: Uuid, place: Option<&str>) -> Result<(), StoreError> {
        let epoch = self.leadership.leads().ok_or(StoreError::Fenced)?;
        self.store.note_secret_file(uid, place, Some(epoch)).await?;
        self.live.publish(Hint::StatusDirty(uid));
        Ok(())
    }
}

/// Whether a `Revocation` names the key.
fn is_revoked(index: &Index, key: &Stored) -> bool {
    let kind = match key.resource.kind() {
        KindName::RegistrationKey => TargetKind::RegistrationKey,
        _ => TargetKind::PersonalKey,
    };
    let target = RevocationTarget { kind, name: key.resource.name().clone() };
    !index.revocations_of(key.resource.namespace(), &target).is_empty()
}

/// Why a string was not delivered.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it cannot be written to its place: {0}")]
    Place(#[from] io::Error),
    #[error("the database does not know the key")]
    Unknown,
}

/// A directory of files that only the controller's user may read, one for each string; made when it is needed.
#[derive(Clone, Debug)]
pub struct SecretFiles(pub PathBuf);

impl SecretSink for SecretFiles {
    fn deliver<'a>(
        &'a self,
        key: &'a Stored,
        text: &'a Zeroizing<String>,
    ) -> BoxFuture<'a, io::Result<String>> {
        let id = key.id();
        // Names have hyphens and no dots: no two keys have one file.
        let name = format!("{}.{}.{}", id.kind.as_str().to_lowercase(), id.namespace, id.name);
        let file = self.0.join(name);
        Box::pin(async move {
            write(&file, text.as_bytes())?;
            Ok(file.to_string_lossy().into_owned())
        })
    }

    fn withdraw<'a>(&'a self, _key: &'a ResourceId, place: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { remove(Path::new(place)) })
    }
}

/// Writes a file that only its owner may read, in the place of one that an earlier key of the name may have left.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
