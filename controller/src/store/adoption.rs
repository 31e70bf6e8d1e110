//! Resources that were merely removed and come back. A document that carries the annotation `horizon.dev/id` with the
//! identity of a removed resource of its kind, namespace and name is that resource again: identity, generation, facts and
//! all. Whoever may write the document states it; the audit trail keeps it. What the removal did is undone. What was
//! decided (revoked, declared decommissioned, compromised, used) is a fact and stays. A name without the annotation is
//! something new and inherits nothing.

use std::collections::HashMap;

use horizon_controller_core::ID_ANNOTATION;
use horizon_crds::{LifecycleState, Resource, ResourceId};
use horizon_model::{PublicKey, ServerId};
use uuid::Uuid;

use super::{
    Change, Revision, Store, StoreError,
    dialect::{Builder, Connection, MAX_BINDS, query},
    document,
    effects::{REMOVED, SERVER_REMOVED, USER_REMOVED},
    resources::{LIVING_COLUMNS, Living, read_id, read_living},
    row::Columns as _,
};

impl Store {
    /// Which resources identities stand for, whether they are in force or were removed.
    pub async fn identities(&self, uids: &[Uuid]) -> Result<HashMap<Uuid, ResourceId>, StoreError> {
        let mut found = HashMap::new();
        for chunk in uids.chunks(MAX_BINDS) {
            let mut select = Builder::new("SELECT uid, kind, namespace, name FROM resources WHERE uid IN ");
            select.push_list(chunk.iter().map(Uuid::to_string));
            for row in &select.build().fetch_all(self.readers()).await? {
                found.insert(row.parsed("uid")?, read_id(row)?);
            }
        }
        Ok(found)
    }
}

impl Store {
    /// The keys of all appliances.
    pub async fn public_keys(&self) -> Result<HashMap<ServerId, PublicKey>, StoreError> {
        let rows = query("SELECT server_id, public_key FROM servers WHERE public_key IS NOT NULL")
            .fetch_all(self.readers())
            .await?;
        let mut keys = HashMap::with_capacity(rows.len());
        for row in &rows {
            if let Some(key) = row.maybe_bytes32("public_key")? {
                keys.insert(row.parsed("server_id")?, PublicKey(key));
            }
        }
        Ok(keys)
    }
}

/// The removed resources that changes bring back.
pub(super) async fn claimed(
    db: &mut Connection,
    changes: &[Change],
    living: &HashMap<ResourceId, Living>,
) -> Result<HashMap<ResourceId, Living>, StoreError> {
    let claims = changes.iter().filter_map(|change| match change {
        Change::Put { resource, .. } if !living.contains_key(&resource.id()) => {
            let uid: Uuid = resource.metadata().annotations.get(ID_ANNOTATION)?.parse().ok()?;
            Some((uid, resource.id()))
        }
        _ => None,
    });
    let claims: HashMap<Uuid, ResourceId> = claims.collect();
    let uids: Vec<_> = claims.keys().collect();
    let mut found = HashMap::new();
    for chunk in uids.chunks(MAX_BINDS) {
        let mut select = Builder::new("SELECT ");
        select.push(LIVING_COLUMNS).push(" FROM resources WHERE deleted_at IS NOT NULL AND uid IN ");
        select.push_list(chunk.iter().map(ToString::to_string));
        for row in &select.build().fetch_all(&mut *db).await? {
            let (id, removed) = read_living(row)?;
            // That of another name is not taken; planning says so.
            if claims.get(&removed.uid) == Some(&id) {
                found.insert(id, removed);
            }
        }
    }
    Ok(found)
}

/// Brings a removed resource back into force.
pub(super) async fn bring_back(
    db: &mut Connection,
    uid: Uuid,
    number: Option<i64>,
    revision: Revision,
) -> Result<(), StoreError> {
    query("UPDATE resources SET deleted_at = NULL, number = $1, revision = $2 WHERE uid = $3")
        .bind(number)
        .bind(revision.0)
        .bind(uid.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// Undoes what the removal of a resource did, where nothing else would have done the same.
pub(super) async fn undo_removal(db: &mut Connection, uid: Uuid, before: &str) -> Result<(), StoreError> {
    let id = uid.to_string();
    match document::read(before)? {
        // One that was declared to have ended before it was removed has ended.
        Resource::Server(server) if server.spec.lifecycle.state != LifecycleState::Decommissioned => {
            query(
                "UPDATE servers SET decommission_date = NULL, decommission_reason = NULL \
                 WHERE server_id = $1 AND decommission_reason = $2 AND revoked_date IS NULL AND NOT compromised",
            )
            .bind(&id)
            .bind(REMOVED)
            .execute(&mut *db)
            .await?;
        }
        Resource::RegistrationKey(key) if key.spec.revocation.is_none() => {
            query(
                "UPDATE registration_keys SET revoked_date = NULL, revocation_reason = NULL \
                 WHERE key_uid = $1 AND revocation_reason = $2 \
                 AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.target_id = registration_keys.key_uid)",
            )
            .bind(&id)
            .bind(REMOVED)
            .execute(&mut *db)
            .await?;
        }
        Resource::PersonalKey(key) if key.spec.revocation.is_none() => {
            query(
                "UPDATE personal_keys SET deactivation_date = NULL, deactivation_reason = NULL, \
                 status = CASE WHEN activation_date IS NULL THEN 'pending' ELSE 'active' END \
                 WHERE key_id = $1 AND status = 'deactivated' AND deactivation_reason = $2 \
                 AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.target_id = personal_keys.key_id)",
            )
            .bind(&id)
            .bind(REMOVED)
            .execute(&mut *db)
            .await?;
        }
        _ => {}
    }
    Ok(())
}

/// Undoes what removals did to keys because of what these are for: they are good again once both are back. A server or user
/// that was made anew under the name is not what they were for.
pub(super) async fn undo_consequences(db: &mut Connection) -> Result<(), StoreError> {
    query(
        "UPDATE registration_keys SET revoked_date = NULL, revocation_reason = NULL WHERE revocation_reason = $1 \
         AND key_uid IN (SELECT uid FROM resources WHERE kind = 'RegistrationKey' AND deleted_at IS NULL) \
         AND EXISTS (SELECT 1 FROM resources r WHERE r.kind = 'Server' AND r.deleted_at IS NULL \
         AND r.namespace = registration_keys.namespace AND r.name = registration_keys.server_name \
         AND r.created_at < registration_keys.revoked_date) \
         AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.target_id = registration_keys.key_uid)",
    )
    .bind(SERVER_REMOVED)
    .execute(&mut *db)
    .await?;
    query(
        "UPDATE personal_keys SET deactivation_date = NULL, deactivation_reason = NULL, \
         status = CASE WHEN activation_date IS NULL THEN 'pending' ELSE 'active' END \
         WHERE status = 'deactivated' AND deactivation_reason = $1 \
         AND key_id IN (SELECT uid FROM resources WHERE kind = 'PersonalKey' AND deleted_at IS NULL) \
         AND user_uid IN (SELECT uid FROM resources WHERE kind = 'User' AND deleted_at IS NULL) \
         AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.target_id = personal_keys.key_id)",
    )
    .bind(USER_REMOVED)
    .execute(&mut *db)
    .await?;
    Ok(())
}
