//! Resources: loading what is in force, and committing changes with all they entail.

use std::{collections::HashMap, sync::Arc};

use futures_util::TryStreamExt as _;
use horizon_controller_core::{Origin, Stored};
use horizon_crds::{KindName, Name, Resource, ResourceId};
use horizon_model::{NetworkId, ServerId};
use jiff::Timestamp;
use sqlx::QueryBuilder;
use thiserror::Error;
use uuid::Uuid;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Engine, MAX_BINDS, Row},
    document, effects,
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
    },
    /// The resource is gone. Its history stays.
    Remove(ResourceId),
}

impl Change {
    fn id(&self) -> ResourceId {
        match self {
            Self::Put { resource, .. } => resource.id(),
            Self::Remove(id) => id.clone(),
        }
    }
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
}

/// Why changes were not committed. Nothing was changed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Every number of a virtual network is in use.
    #[error("there are as many virtual networks as there can be ({}): remove one first", u16::MAX)]
    NoNetworkNumber,
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
}

/// One change that was carried out.
pub(super) struct Done {
    pub(super) id: ResourceId,
    pub(super) uid: Uuid,
    /// What is now; `None` for a removal.
    pub(super) resource: Option<Arc<Resource>>,
    /// Whether the resource is new.
    pub(super) created: bool,
}

const RESOURCE_COLUMNS: usize = 12;

impl Store {
    /// Every resource in force.
    pub async fn load_resources(&self) -> Result<Vec<Stored>, StoreError> {
        let _timed = self.timed("load_resources");
        // One row at a time: there may be many, and each is larger than what is made of it.
        let mut rows = sqlx::query("SELECT * FROM resources WHERE deleted_at IS NULL").fetch(self.readers());
        let mut resources = Vec::new();
        while let Some(row) = rows.try_next().await? {
            resources.push(read(&row)?);
        }
        Ok(resources)
    }

    /// Carries out changes in one transaction: resources, what they entail (a new `Server` has a row that waits for its
    /// appliance, a removed `PersonalKey` is deactivated, …) and the audit trail. Returns one entry for each `Put`, in
    /// order. A `Put` of what is already there changes nothing; removing what is not there is no error. Of two changes of
    /// one resource the later holds.
    pub async fn commit_resources(
        &self,
        changes: &[Change],
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Committed, CommitError> {
        let _timed = self.timed("commit_resources");
        let mut tx = self.begin().await?;
        let mut living = living(&mut tx, changes).await?;
        let mut numbers = None;
        let (mut assigned, mut done, mut inserts, mut audit) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // A resource that several changes name takes the last; inserts are written together at the end.
        let last: HashMap<ResourceId, usize> = changes.iter().enumerate().map(|(i, c)| (c.id(), i)).collect();
        for (i, change) in changes.iter().enumerate() {
            let id = change.id();
            if last.get(&id) != Some(&i) {
                continue;
            }
            let old = living.remove(&id);
            let Change::Put { resource, origin } = change else {
                if let Some(old) = old {
                    sqlx::query("UPDATE resources SET deleted_at = $1 WHERE uid = $2")
                        .bind(millis(now))
                        .bind(old.uid.to_string())
                        .execute(&mut *tx)
                        .await?;
                    let mut record = Record::new("delete", id.kind.as_str(), old.uid, name_of(&id));
                    record.previous = Some(old.document);
                    audit.push(record);
                    done.push(Done { id, uid: old.uid, resource: None, created: false });
                }
                continue;
            };
            let digest = horizon_wire::key::sha256(&resource.canonical_spec()).0.to_vec();
            let text = document::write(resource);
            let created = old.is_none();
            let row = match old {
                None => {
                    let number = match id.kind {
                        KindName::VirtualNetwork => Some(next_number(&mut tx, &mut numbers).await?),
                        _ => None,
                    };
                    let uid = Uuid::now_v7();
                    inserts.push((uid, id.clone(), digest, origin.clone(), text.clone(), number));
                    let mut record = Record::new("create", id.kind.as_str(), uid, name_of(&id));
                    record.new = Some(text);
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
                    let respecified = old.spec_digest != digest;
                    let generation = old.generation + i64::from(respecified);
                    let (kind, path) = origin_columns(origin);
                    sqlx::query(
                        "UPDATE resources SET generation = $1, spec_digest = $2, origin = $3, origin_path = $4, \
                         document = $5, updated_at = $6 WHERE uid = $7",
                    )
                    .bind(generation)
                    .bind(digest)
                    .bind(kind)
                    .bind(path)
                    .bind(&text)
                    .bind(millis(now))
                    .bind(old.uid.to_string())
                    .execute(&mut *tx)
                    .await?;
                    if old.document != text {
                        let mut record = Record::new("update", id.kind.as_str(), old.uid, name_of(&id));
                        (record.previous, record.new) = (Some(old.document), Some(text));
                        audit.push(record);
                    }
                    let number = old.number.and_then(network);
                    Assigned { id: id.clone(), uid: old.uid, generation, number, created_at: old.created_at }
                }
            };
            done.push(Done { id, uid: row.uid, resource: Some(resource.clone()), created });
            assigned.push(row);
        }
        insert(&mut tx, &inserts, now).await?;
        audit::write(&mut tx, actor, now, &audit).await?;
        let servers = effects::carry_out(&mut tx, &done, actor, now).await?;
        tx.commit().await?;
        Ok(Committed { assigned, servers })
    }
}

fn name_of(id: &ResourceId) -> String {
    format!("{}/{}", id.namespace, id.name)
}

fn network(number: i64) -> Option<NetworkId> {
    u16::try_from(number).ok().map(NetworkId)
}

fn origin_columns(origin: &Origin) -> (&'static str, Option<String>) {
    match origin {
        Origin::File(path) => ("file", Some(path.to_string())),
        Origin::Api => ("api", None),
    }
}

/// The living resources that changes name: one by one for a few changes, in one pass for many.
async fn living(db: &mut Connection, changes: &[Change]) -> Result<HashMap<ResourceId, Living>, StoreError> {
    const FEW: usize = 64;
    const SELECT: &str = "SELECT uid, kind, namespace, name, generation, spec_digest, number, created_at, document \
         FROM resources WHERE deleted_at IS NULL";
    let mut found = HashMap::new();
    if changes.len() > FEW {
        for row in &sqlx::query(SELECT).fetch_all(&mut *db).await? {
            let (id, living) = read_living(row)?;
            found.insert(id, living);
        }
        return Ok(found);
    }
    for id in changes.iter().map(Change::id) {
        let row = sqlx::query(
            "SELECT uid, kind, namespace, name, generation, spec_digest, number, created_at, document \
             FROM resources WHERE kind = $1 AND namespace = $2 AND name = $3 AND deleted_at IS NULL",
        )
        .bind(id.kind.as_str())
        .bind(id.namespace.as_str())
        .bind(id.name.as_str())
        .fetch_optional(&mut *db)
        .await?;
        if let Some(row) = row {
            let (id, living) = read_living(&row)?;
            found.insert(id, living);
        }
    }
    Ok(found)
}

fn read_living(row: &Row) -> Result<(ResourceId, Living), StoreError> {
    let id = ResourceId {
        kind: row.parsed("kind")?,
        namespace: row.parsed("namespace")?,
        name: row.parsed("name")?,
    };
    let living = Living {
        uid: row.parsed("uid")?,
        generation: row.int("generation")?,
        spec_digest: row.bytes("spec_digest")?,
        number: sqlx::Row::try_get(row, "number")?,
        created_at: row.time("created_at")?,
        document: row.text("document")?,
    };
    Ok((id, living))
}

type Insert = (Uuid, ResourceId, Vec<u8>, Origin, String, Option<i64>);

async fn insert(db: &mut Connection, rows: &[Insert], now: Timestamp) -> Result<(), StoreError> {
    for chunk in rows.chunks(MAX_BINDS / RESOURCE_COLUMNS) {
        let mut insert = QueryBuilder::<Engine>::new(
            "INSERT INTO resources (uid, kind, namespace, name, generation, spec_digest, origin, origin_path, document, \
             number, created_at, updated_at) ",
        );
        insert.push_values(chunk, |mut row, (uid, id, digest, origin, text, number)| {
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
                .push_bind(millis(now));
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

/// A number no living network has; one that was never given, as long as there is one.
async fn next_number(db: &mut Connection, numbers: &mut Option<Numbers>) -> Result<i64, CommitError> {
    if numbers.is_none() {
        let rows =
            sqlx::query("SELECT number, deleted_at FROM resources WHERE number IS NOT NULL ORDER BY number")
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
    let numbers = numbers.get_or_insert(Numbers { used: Vec::new(), highest: 0 });
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
        number: sqlx::Row::try_get::<Option<i64>, _>(row, "number")
            .map_err(StoreError::from)?
            .and_then(network),
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
    let row = sqlx::query(
        "SELECT uid FROM resources WHERE kind = $1 AND namespace = $2 AND name = $3 AND deleted_at IS NULL",
    )
    .bind(kind.as_str())
    .bind(namespace.as_str())
    .bind(name)
    .fetch_optional(&mut *db)
    .await?;
    row.map(|row| row.parsed("uid")).transpose()
}
