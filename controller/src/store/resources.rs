//! Resources: loading what is in force, and committing changes with all they entail.

use std::{collections::HashMap, sync::Arc};

use futures_util::TryStreamExt as _;
use horizon_controller_core::{Origin, Stored};
use horizon_crds::{KindName, Name, Resource, ResourceId};
use horizon_model::{NetworkId, ServerId};
use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use super::{
    Actor, LeaderEpoch, Revision, Store, StoreError, adoption,
    audit::{self, Record},
    dialect::{Builder, Connection, MAX_BINDS, Row, query},
    document, effects, leadership,
    row::{Columns as _, millis},
};

/// A change of the resources in force.
#[derive(Clone, Debug)]
pub enum Change {
    /// The resource exists from now on, or replaces the one of its name.
    Put {
        /// The resource.
        resource: Arc<Resource>,
        /// Where it comes from.
        origin: Origin,
        /// Who changed it, where it is not the actor of the commit.
        actor: Option<Actor>,
    },
    /// The resource is gone. Its history stays.
    Remove {
        /// Which.
        id: ResourceId,
        /// Who removed it, where it is not the actor of the commit.
        actor: Option<Actor>,
    },
}

impl Change {
    fn id(&self) -> ResourceId {
        match self {
            Self::Put { resource, .. } => resource.id(),
            Self::Remove { id, .. } => id.clone(),
        }
    }

    fn actor(&self) -> Option<Actor> {
        match self {
            Self::Put { actor, .. } | Self::Remove { actor, .. } => actor.clone(),
        }
    }
}

/// What must hold for a commit to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The version of the resources that the changes were planned on.
    pub expected: Option<Revision>,
    /// The leadership under which they were planned.
    pub leader: Option<LeaderEpoch>,
}

impl Guard {
    /// Nothing: for whoever is alone.
    pub const NONE: Self = Self { expected: None, leader: None };
}

/// What changed since a version of the resources. Apply `removed` first: a name may have been removed and made anew.
#[derive(Clone, Debug, Default)]
pub struct ResourceNews {
    /// Resources that are new or others, as they are now.
    pub put: Vec<Stored>,
    /// Resources that are gone; those that were made and removed in between too.
    pub removed: Vec<(ResourceId, Uuid)>,
    /// The version with these.
    pub revision: Revision,
}

/// What the store gave a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Which resource.
    pub id: ResourceId,
    /// Its identity. A resource recreated under the same name has another.
    pub uid: Uuid,
    /// 1 at first, one more with every change of the spec.
    pub generation: i64,
    /// The number of a virtual network in datagram headers.
    pub number: Option<NetworkId>,
    /// When it came into being.
    pub created_at: Timestamp,
}

/// What a commit did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// One entry for each `Put`, in the order of the changes.
    pub assigned: Vec<Assigned>,
    /// Servers that carry sessions whose right to go on may have ended by what was revoked, deactivated or removed.
    pub servers: Vec<ServerId>,
    /// The version of the resources with these changes; the one before if they changed nothing.
    pub revision: Revision,
}

/// Why changes were not committed. Nothing was changed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Every number of a virtual network is in use.
    #[error("there are as many virtual networks as there can be ({}): remove one first", u16::MAX)]
    NoNetworkNumber,
    /// Somebody else committed since the changes were planned: catch up, and plan again.
    #[error(
        "the resources are at version {revision} since: what was planned on an earlier one is not committed"
    )]
    Behind {
        /// The version in force.
        revision: Revision,
    },
    /// Another replica leads since.
    #[error("another replica leads since: this one changes nothing any more")]
    Fenced,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CommitError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

/// A resource as it was before a change.
pub(super) struct Living {
    pub(super) uid: Uuid,
    generation: i64,
    spec_digest: Vec<u8>,
    number: Option<i64>,
    created_at: Timestamp,
    document: String,
    origin: (String, Option<String>),
}

/// One change that was carried out.
pub(super) struct Done {
    pub(super) id: ResourceId,
    pub(super) uid: Uuid,
    /// What is now; `None` for a removal.
    pub(super) resource: Option<Arc<Resource>>,
    /// Whether the resource is new.
    pub(super) created: bool,
    /// The document as it was when the resource was removed that comes back with this.
    pub(super) back: Option<String>,
    /// Who, where it is not the actor of the commit.
    pub(super) actor: Option<Actor>,
}

const RESOURCE_COLUMNS: usize = 13;

impl Store {
    /// Every resource in force, and the version they are.
    pub async fn load_resources(&self) -> Result<(Vec<Stored>, Revision), StoreError> {
        let _timed = self.timed("load_resources");
        let mut tx = self.readers().snapshot().await?;
        let revision = revision(&mut tx).await?;
        // One row at a time: there may be many, and each is larger than what is made of it.
        let mut rows = query("SELECT * FROM resources WHERE deleted_at IS NULL").fetch(&mut *tx);
        let mut resources = Vec::new();
        while let Some(row) = rows.try_next().await? {
            resources.push(read(&row)?);
        }
        Ok((resources, revision))
    }

    /// What changed since a version, seen at one moment. A version that is older than that one says that the database went
    /// back, as by a restored backup: then nothing is known of what changed.
    pub async fn resources_since(&self, from: Revision) -> Result<ResourceNews, StoreError> {
        let _timed = self.timed("resources_since");
        let mut tx = self.readers().snapshot().await?;
        let mut news = ResourceNews { revision: revision(&mut tx).await?, ..ResourceNews::default() };
        if news.revision <= from {
            return Ok(news);
        }
        let mut rows = query("SELECT * FROM resources WHERE revision > $1 ORDER BY revision, uid")
            .bind(from.0)
            .fetch(&mut *tx);
        while let Some(row) = rows.try_next().await? {
            if row.maybe_time("deleted_at")?.is_some() {
                news.removed.push((read_id(&row)?, row.parsed("uid")?));
            } else {
                news.put.push(read(&row)?);
            }
        }
        Ok(news)
    }

    /// Carries out changes in one transaction: resources, what they entail (a new `Server` has a row that waits for its
    /// appliance, a removed `PersonalKey` is deactivated, …) and the audit trail. Returns one entry for each `Put`, in
    /// order. A `Put` of what is already there changes nothing; removing what is not there is no error. Of two changes of
    /// one resource the later holds. Commits come one after the other, whoever makes them.
    pub async fn commit_resources(
        &self,
        changes: &[Change],
        actor: &Actor,
        now: Timestamp,
        guard: Guard,
    ) -> Result<Committed, CommitError> {
        let _timed = self.timed("commit_resources");
        // As it will be read: the database keeps milliseconds.
        let now = Timestamp::from_millisecond(millis(now)).unwrap_or(now);
        self.retried("commit_resources", || self.commit_once(changes, actor, now, guard)).await
    }

    async fn commit_once(
        &self,
        changes: &[Change],
        actor: &Actor,
        now: Timestamp,
        guard: Guard,
    ) -> Result<Committed, CommitError> {
        let mut tx = self.begin().await?;
        if let Some(epoch) = guard.leader
            && !leadership::leads(&mut tx, epoch).await?
        {
            return Err(CommitError::Fenced);
        }
        // From here on until its end this is the only commit.
        let row =
            query("SELECT value FROM counters WHERE name = 'resources' {lock}").fetch_one(&mut *tx).await?;
        let before = Revision(row.int("value")?);
        if guard.expected.is_some_and(|expected| expected != before) {
            return Err(CommitError::Behind { revision: before });
        }
        let revision = Revision(before.0 + 1);
        let mut living = living(&mut tx, changes).await?;
        let mut claimed = adoption::claimed(&mut tx, changes, &living).await?;
        let mut numbers = None;
        let (mut assigned, mut done, mut inserts, mut audit) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut changed = false;
        // A resource that several changes name takes the last; inserts are written together at the end.
        let last: HashMap<ResourceId, usize> = changes.iter().enumerate().map(|(i, c)| (c.id(), i)).collect();
        for (i, change) in changes.iter().enumerate() {
            let id = change.id();
            if last.get(&id) != Some(&i) {
                continue;
            }
            let old = living.remove(&id);
            let Change::Put { resource, origin, .. } = change else {
                if let Some(old) = old {
                    changed = true;
                    remove(&mut tx, &old, revision, now).await?;
                    let mut record = Record::new("delete", id.kind.as_str(), old.uid, name_of(&id));
                    (record.previous, record.actor) = (Some(old.document), change.actor());
                    audit.push(record);
                    done.push(Done {
                        id,
                        uid: old.uid,
                        resource: None,
                        created: false,
                        back: None,
                        actor: change.actor(),
                    });
                }
                continue;
            };
            let digest = horizon_wire::key::sha256(&resource.canonical_spec()).0.to_vec();
            let text = document::write(resource);
            let mut removed = if old.is_none() { claimed.remove(&id) } else { None };
            let back = removed.as_ref().map(|removed| removed.document.clone());
            if let Some(removed) = &mut removed {
                changed = true;
                if let Some(number) = removed.number {
                    removed.number = Some(same_number(&mut tx, &mut numbers, number).await?);
                }
                adoption::bring_back(&mut tx, removed.uid, removed.number, revision).await?;
            }
            let old = old.or(removed);
            let created = old.is_none();
            let row = match old {
                None => {
                    changed = true;
                    let number = match id.kind {
                        KindName::VirtualNetwork => Some(next_number(&mut tx, &mut numbers).await?),
                        _ => None,
                    };
                    let uid = Uuid::now_v7();
                    inserts.push((uid, id.clone(), digest, origin.clone(), text.clone(), number));
                    let mut record = Record::new("create", id.kind.as_str(), uid, name_of(&id));
                    (record.new, record.actor) = (Some(text), change.actor());
                    audit.push(record);
                    Assigned {
                        id: id.clone(),
                        uid,
                        generation: 1,
                        number: number.and_then(network),
                        created_at: now,
                    }
                }
                Some(old) => {
                    let generation = old.generation + i64::from(old.spec_digest != digest);
                    let same = (&old.document, &old.spec_digest) == (&text, &digest)
                        && old.origin == origin_columns(origin);
                    if !same {
                        changed = true;
                        let new = Update { generation, digest, origin, text: &text, revision };
                        update(&mut tx, &old, new, now).await?;
                    }
                    if old.document != text || back.is_some() {
                        let action = if back.is_some() { "adopt" } else { "update" };
                        let mut record = Record::new(action, id.kind.as_str(), old.uid, name_of(&id));
                        (record.previous, record.new) = (Some(old.document), Some(text));
                        record.actor = change.actor();
                        audit.push(record);
                    }
                    let number = old.number.and_then(network);
                    Assigned { id: id.clone(), uid: old.uid, generation, number, created_at: old.created_at }
                }
            };
            let (uid, resource) = (row.uid, Some(resource.clone()));
            done.push(Done { id, uid, resource, created, back, actor: change.actor() });
            assigned.push(row);
        }
        insert(&mut tx, &inserts, revision, now).await?;
        audit::write(&mut tx, actor, now, &audit).await?;
        let servers = effects::carry_out(&mut tx, &done, actor, now).await?;
        if changed {
            query("UPDATE counters SET value = $1 WHERE name = 'resources'")
                .bind(revision.0)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(Committed { assigned, servers, revision: if changed { revision } else { before } })
    }
}

async fn revision(db: &mut Connection) -> Result<Revision, StoreError> {
    let row = query("SELECT value FROM counters WHERE name = 'resources'").fetch_one(&mut *db).await?;
    Ok(Revision(row.int("value")?))
}

async fn remove(
    db: &mut Connection,
    old: &Living,
    revision: Revision,
    now: Timestamp,
) -> Result<(), StoreError> {
    query("UPDATE resources SET deleted_at = $1, revision = $2 WHERE uid = $3")
        .bind(millis(now))
        .bind(revision.0)
        .bind(old.uid.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// What an update writes beside the times.
struct Update<'a> {
    generation: i64,
    digest: Vec<u8>,
    origin: &'a Origin,
    text: &'a str,
    revision: Revision,
}

async fn update(
    db: &mut Connection,
    old: &Living,
    new: Update<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (kind, path) = origin_columns(new.origin);
    query(
        "UPDATE resources SET generation = $1, spec_digest = $2, origin = $3, origin_path = $4, \
         document = $5, updated_at = $6, revision = $7 WHERE uid = $8",
    )
    .bind(new.generation)
    .bind(new.digest)
    .bind(kind)
    .bind(path)
    .bind(new.text)
    .bind(millis(now))
    .bind(new.revision.0)
    .bind(old.uid.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

fn name_of(id: &ResourceId) -> String {
    format!("{}/{}", id.namespace, id.name)
}

fn network(number: i64) -> Option<NetworkId> {
    u16::try_from(number).ok().map(NetworkId)
}

fn origin_columns(origin: &Origin) -> (String, Option<String>) {
    match origin {
        Origin::File(path) => ("file".to_owned(), Some(path.to_string())),
        Origin::Api => ("api".to_owned(), None),
    }
}

/// The living resources that changes name: one by one for a few changes, in one pass for many.
async fn living(db: &mut Connection, changes: &[Change]) -> Result<HashMap<ResourceId, Living>, StoreError> {
    const FEW: usize = 64;
    let select = || {
        let mut select = Builder::new("SELECT ");
        select.push(LIVING_COLUMNS).push(" FROM resources WHERE deleted_at IS NULL");
        select
    };
    let mut found = HashMap::new();
    if changes.len() > FEW {
        for row in &select().build().fetch_all(&mut *db).await? {
            let (id, living) = read_living(row)?;
            found.insert(id, living);
        }
        return Ok(found);
    }
    for id in changes.iter().map(Change::id) {
        let mut one = select();
        one.push(" AND kind = ").push_bind(id.kind.as_str());
        one.push(" AND namespace = ").push_bind(id.namespace.as_str());
        one.push(" AND name = ").push_bind(id.name.as_str());
        if let Some(row) = one.build().fetch_optional(&mut *db).await? {
            let (id, living) = read_living(&row)?;
            found.insert(id, living);
        }
    }
    Ok(found)
}

/// What [`read_living`] reads.
pub(super) const LIVING_COLUMNS: &str =
    "uid, kind, namespace, name, generation, spec_digest, number, created_at, document, origin, origin_path";

pub(super) fn read_living(row: &Row) -> Result<(ResourceId, Living), StoreError> {
    let id = read_id(row)?;
    let living = Living {
        uid: row.parsed("uid")?,
        generation: row.int("generation")?,
        spec_digest: row.bytes("spec_digest")?,
        number: row.maybe_int("number")?,
        created_at: row.time("created_at")?,
        document: row.text("document")?,
        origin: (row.text("origin")?, row.maybe_text("origin_path")?),
    };
    Ok((id, living))
}

pub(super) fn read_id(row: &Row) -> Result<ResourceId, StoreError> {
    Ok(ResourceId {
        kind: row.parsed("kind")?,
        namespace: row.parsed("namespace")?,
        name: row.parsed("name")?,
    })
}

type Insert = (Uuid, ResourceId, Vec<u8>, Origin, String, Option<i64>);

async fn insert(
    db: &mut Connection,
    rows: &[Insert],
    revision: Revision,
    now: Timestamp,
) -> Result<(), StoreError> {
    for chunk in rows.chunks(MAX_BINDS / RESOURCE_COLUMNS) {
        let mut insert = Builder::new(
            "INSERT INTO resources (uid, kind, namespace, name, generation, spec_digest, origin, origin_path, document, \
             number, created_at, updated_at, revision) ",
        );
        insert.push_values(chunk, |row, (uid, id, digest, origin, text, number)| {
            let (kind, path) = origin_columns(origin);
            row.push_bind(uid.to_string())
                .push_bind(id.kind.as_str())
                .push_bind(id.namespace.to_string())
                .push_bind(id.name.to_string())
                .push_bind(1_i64)
                .push_bind(digest.clone())
                .push_bind(kind)
                .push_bind(path)
                .push_bind(text.clone())
                .push_bind(*number)
                .push_bind(millis(now))
                .push_bind(millis(now))
                .push_bind(revision.0);
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

/// The numbers of living networks, and the highest that was ever given.
struct Numbers {
    used: Vec<i64>,
    highest: i64,
}

/// The number that a network had, if no other has it by now.
async fn same_number(
    db: &mut Connection,
    numbers: &mut Option<Numbers>,
    number: i64,
) -> Result<i64, CommitError> {
    let known = known_numbers(db, numbers).await?;
    match known.used.binary_search(&number) {
        Ok(_) => next_number(db, numbers).await,
        Err(at) => {
            known.used.insert(at, number);
            Ok(number)
        }
    }
}

async fn known_numbers<'a>(
    db: &mut Connection,
    numbers: &'a mut Option<Numbers>,
) -> Result<&'a mut Numbers, CommitError> {
    if numbers.is_none() {
        let rows = query("SELECT number, deleted_at FROM resources WHERE number IS NOT NULL ORDER BY number")
            .fetch_all(&mut *db)
            .await?;
        let mut read = Numbers { used: Vec::new(), highest: 0 };
        for row in &rows {
            let number = row.int("number")?;
            read.highest = number;
            if row.maybe_time("deleted_at")?.is_none() {
                read.used.push(number);
            }
        }
        *numbers = Some(read);
    }
    Ok(numbers.get_or_insert(Numbers { used: Vec::new(), highest: 0 }))
}

/// A number no living network has; one that was never given, as long as there is one.
async fn next_number(db: &mut Connection, numbers: &mut Option<Numbers>) -> Result<i64, CommitError> {
    let numbers = known_numbers(db, numbers).await?;
    let next = if numbers.highest < i64::from(u16::MAX) {
        numbers.highest += 1;
        numbers.highest
    } else {
        (1..=i64::from(u16::MAX))
            .find(|n| numbers.used.binary_search(n).is_err())
            .ok_or(CommitError::NoNetworkNumber)?
    };
    if let Err(at) = numbers.used.binary_search(&next) {
        numbers.used.insert(at, next);
    }
    Ok(next)
}

fn read(row: &Row) -> Result<Stored, StoreError> {
    let origin = match row.text("origin")?.as_str() {
        "file" => Origin::File(row.maybe_text("origin_path")?.unwrap_or_default().into()),
        _ => Origin::Api,
    };
    Ok(Stored {
        resource: Arc::new(document::read(&row.text("document")?)?),
        uid: row.parsed("uid")?,
        generation: row.int("generation")?,
        origin,
        number: row.maybe_int("number")?.and_then(network),
        created_at: row.time("created_at")?,
    })
}

/// The uid of a living resource.
pub(super) async fn uid_of(
    db: &mut Connection,
    kind: KindName,
    namespace: &Name,
    name: &str,
) -> Result<Option<Uuid>, StoreError> {
    let row = query(
        "SELECT uid FROM resources WHERE kind = $1 AND namespace = $2 AND name = $3 AND deleted_at IS NULL",
    )
    .bind(kind.as_str())
    .bind(namespace.as_str())
    .bind(name)
    .fetch_optional(&mut *db)
    .await?;
    row.map(|row| row.parsed("uid")).transpose()
}
