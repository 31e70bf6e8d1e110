//! What changes of resources entail: rows for new servers and keys, and facts that hold from then on. A fact that is set
//! stays set, whatever the resources say later.

use std::collections::BTreeSet;

use horizon_crds::{KindName, LifecycleState, Resource};
use horizon_model::ServerId;
use jiff::Timestamp;

use super::{
    Actor, StoreError, adoption, approval, changed, device_decision,
    dialect::{Builder, Connection, MAX_BINDS, query},
    resources::Done,
    revocation, rotation_runs,
    row::{Columns as _, millis},
};

/// Carries out what the changes entail, in their transaction. Returns the servers with sessions that may have to end.
pub(super) async fn carry_out(
    db: &mut Connection,
    done: &[Done],
    actor: &Actor,
    now: Timestamp,
) -> Result<Vec<ServerId>, StoreError> {
    insert_servers(db, done).await?;
    insert_registration_keys(db, done, now).await?;
    insert_personal_keys(db, done, now).await?;
    let bind_users =
        done.iter().any(|d| d.created && matches!(d.id.kind, KindName::User | KindName::PersonalKey));
    if bind_users {
        bind_keys_to_users(db).await?;
    }
    for change in done {
        if let Some(before) = &change.back {
            adoption::undo_removal(db, change.uid, before).await?;
        }
    }
    if done.iter().any(|change| change.back.is_some()) {
        adoption::undo_consequences(db).await?;
    }
    let returned = done.iter().filter(|d| d.back.is_some() && d.id.kind == KindName::Server);
    let mut servers: BTreeSet<_> = returned.map(|change| ServerId(change.uid)).collect();
    for change in done {
        match &change.resource {
            None => remove(db, change, now, &mut servers).await?,
            Some(resource) => put(db, change, resource, now).await?,
        }
    }
    let new: Vec<_> = done
        .iter()
        .filter(|d| d.created || d.back.is_some())
        .filter_map(|d| Some((revocation::target_kind(d.id.kind)?, &d.id, d.uid)))
        .collect();
    if !new.is_empty() {
        revocation::catch_up(db, &new, now).await?;
    }
    // Decisions come last: what they speak of may be new in the same commit.
    for change in done {
        match change.resource.as_deref() {
            Some(Resource::Approval(document)) if change.created => {
                let actor = change.actor.as_ref().unwrap_or(actor);
                approval::record(db, change.uid, document, actor, now).await?;
            }
            Some(Resource::Revocation(document)) if change.created => {
                let actor = change.actor.as_ref().unwrap_or(actor);
                servers.extend(revocation::record(db, change.uid, document, actor, now).await?);
            }
            Some(Resource::KeyRotation(document)) if change.created => {
                let actor = change.actor.as_ref().unwrap_or(actor);
                servers.extend(rotation_runs::record(db, change.uid, document, actor, now).await?);
            }
            Some(Resource::DeviceDecision(document)) if change.created => {
                let actor = change.actor.as_ref().unwrap_or(actor);
                servers.extend(device_decision::record(db, change.uid, document, actor, now).await?);
            }
            _ => {}
        }
    }
    for server in &servers {
        changed::touch(db, &server.to_string()).await?;
    }
    Ok(servers.into_iter().collect())
}

async fn insert_servers(db: &mut Connection, done: &[Done]) -> Result<(), StoreError> {
    let new: Vec<_> = created(done, KindName::Server).collect();
    for chunk in new.chunks(MAX_BINDS / 3) {
        let mut insert = Builder::new("INSERT INTO servers (server_id, namespace, name) ");
        insert.push_values(chunk, |row, change| {
            row.push_bind(change.uid.to_string())
                .push_bind(change.id.namespace.to_string())
                .push_bind(change.id.name.to_string());
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

async fn insert_registration_keys(
    db: &mut Connection,
    done: &[Done],
    now: Timestamp,
) -> Result<(), StoreError> {
    let new: Vec<_> = created(done, KindName::RegistrationKey)
        .filter_map(|change| match change.resource.as_deref() {
            Some(Resource::RegistrationKey(document)) => Some((change, &document.spec)),
            _ => None,
        })
        .collect();
    for chunk in new.chunks(MAX_BINDS / 6) {
        let mut insert = Builder::new(
            "INSERT INTO registration_keys (key_uid, namespace, name, server_name, creation_date, expiration_date) ",
        );
        insert.push_values(chunk, |row, (change, spec)| {
            row.push_bind(change.uid.to_string())
                .push_bind(change.id.namespace.to_string())
                .push_bind(change.id.name.to_string())
                .push_bind(spec.server_ref.to_string())
                .push_bind(millis(now))
                .push_bind(expiry(now, spec.lifetime.as_millis()));
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

async fn insert_personal_keys(db: &mut Connection, done: &[Done], now: Timestamp) -> Result<(), StoreError> {
    let new: Vec<_> = created(done, KindName::PersonalKey)
        .filter_map(|change| match change.resource.as_deref() {
            Some(Resource::PersonalKey(document)) => Some((change, &document.spec)),
            _ => None,
        })
        .collect();
    for chunk in new.chunks(MAX_BINDS / 6) {
        let mut insert = Builder::new(
            "INSERT INTO personal_keys (key_id, namespace, name, user_name, creation_date, expiration_date) ",
        );
        insert.push_values(chunk, |row, (change, spec)| {
            let until = spec.expires_at.map(|at| millis(at.get()));
            row.push_bind(change.uid.to_string())
                .push_bind(change.id.namespace.to_string())
                .push_bind(change.id.name.to_string())
                .push_bind(spec.user_ref.to_string())
                .push_bind(millis(now))
                .push_bind(until.or_else(|| spec.lifetime.map(|span| expiry(now, span.as_millis()))));
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

fn created(done: &[Done], kind: KindName) -> impl Iterator<Item = &Done> {
    done.iter().filter(move |d| d.created && d.id.kind == kind)
}

fn expiry(from: Timestamp, span: u64) -> i64 {
    millis(from).saturating_add(i64::try_from(span).unwrap_or(i64::MAX)).min(millis(Timestamp::MAX))
}

/// A key belongs to the living user of the name it gives, from the moment there is one and for good.
async fn bind_keys_to_users(db: &mut Connection) -> Result<(), StoreError> {
    query(
        "UPDATE personal_keys SET user_uid = (SELECT r.uid FROM resources r WHERE r.kind = 'User' \
         AND r.namespace = personal_keys.namespace AND r.name = personal_keys.user_name AND r.deleted_at IS NULL) \
         WHERE user_uid IS NULL AND deactivation_date IS NULL",
    )
    .execute(&mut *db)
    .await?;
    Ok(())
}

async fn put(
    db: &mut Connection,
    change: &Done,
    resource: &Resource,
    now: Timestamp,
) -> Result<(), StoreError> {
    let uid = change.uid.to_string();
    match resource {
        Resource::Server(document) => {
            let lifecycle = &document.spec.lifecycle;
            // A new row already says what most servers are: nothing special.
            if change.created && lifecycle.state == LifecycleState::Active {
                return Ok(());
            }
            query("UPDATE servers SET maintenance_mode = $1 WHERE server_id = $2")
                .bind(lifecycle.state == LifecycleState::Maintenance)
                .bind(&uid)
                .execute(&mut *db)
                .await?;
            if lifecycle.state == LifecycleState::Decommissioned {
                decommission(db, &uid, &decided(lifecycle.reason.as_str()), now).await?;
            }
            refresh_server(db, &uid).await
        }
        Resource::RegistrationKey(document) => match &document.spec.revocation {
            Some(revoked) => revocation::registration_key(db, &uid, revoked.reason.as_str(), now).await,
            None => Ok(()),
        },
        Resource::PersonalKey(document) => {
            let spec = &document.spec;
            if let Some(revoked) = &spec.revocation {
                revocation::personal_key(db, &uid, revoked.reason.as_str(), revoked.compromised, now).await?;
            }
            if !change.created && (spec.expires_at.is_some() || spec.lifetime.is_some()) {
                let row = query(
                    "SELECT COALESCE(last_rotation_date, creation_date) AS made FROM personal_keys WHERE key_id = $1",
                )
                .bind(&uid)
                .fetch_one(&mut *db)
                .await?;
                // A lifetime is that of the newest version: a rotation renews it.
                let made = row.time("made")?;
                let until = spec.expires_at.map(|at| millis(at.get()));
                let until = until.or_else(|| spec.lifetime.map(|span| expiry(made, span.as_millis())));
                query("UPDATE personal_keys SET expiration_date = $1 WHERE key_id = $2")
                    .bind(until)
                    .bind(&uid)
                    .execute(&mut *db)
                    .await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Why what belonged to a resource ended with it.
pub(super) const REMOVED: &str = "its resource was removed";
/// Why unused registration keys ended with their server.
pub(super) const SERVER_REMOVED: &str = "its server was removed";
/// Why personal keys ended with their user.
pub(super) const USER_REMOVED: &str = "its user was removed";

/// The reason of a decision, which never reads as that of a consequence: what was decided is not undone.
pub(super) fn decided(reason: &str) -> String {
    let end = if [REMOVED, SERVER_REMOVED, USER_REMOVED].contains(&reason) { "." } else { "" };
    format!("{reason}{end}")
}

async fn remove(
    db: &mut Connection,
    change: &Done,
    now: Timestamp,
    servers: &mut BTreeSet<ServerId>,
) -> Result<(), StoreError> {
    let uid = change.uid.to_string();
    match change.id.kind {
        KindName::Server => {
            decommission(db, &uid, REMOVED, now).await?;
            refresh_server(db, &uid).await?;
            // Keys for the name were for this server: whoever takes the name next inherits none.
            query(
                "UPDATE registration_keys SET revoked_date = $1, revocation_reason = $2 \
                 WHERE namespace = $3 AND server_name = $4 AND revoked_date IS NULL AND used_date IS NULL",
            )
            .bind(millis(now))
            .bind(SERVER_REMOVED)
            .bind(change.id.namespace.as_str())
            .bind(change.id.name.as_str())
            .execute(&mut *db)
            .await?;
            servers.insert(ServerId(change.uid));
            Ok(())
        }
        KindName::RegistrationKey => {
            query(
                "UPDATE registration_keys SET revoked_date = $1, revocation_reason = $2 \
                 WHERE key_uid = $3 AND revoked_date IS NULL",
            )
            .bind(millis(now))
            .bind(REMOVED)
            .bind(&uid)
            .execute(&mut *db)
            .await?;
            Ok(())
        }
        KindName::PersonalKey => {
            end_keys(db, "key_id", &uid, REMOVED, now).await?;
            servers.extend(revocation::servers_of_key(db, &uid).await?);
            Ok(())
        }
        KindName::User => {
            end_keys(db, "user_uid", &uid, USER_REMOVED, now).await?;
            servers.extend(revocation::servers_of_user(db, &uid).await?);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The personal keys of which a column is `uid` have ended. The first reason stays.
async fn end_keys(
    db: &mut Connection,
    column: &'static str,
    uid: &str,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut update = Builder::new("UPDATE personal_keys SET status = 'deactivated', deactivation_date = ");
    update.push_bind(millis(now)).push(", deactivation_reason = ").push_bind(reason.to_owned());
    update.push(" WHERE deactivation_date IS NULL AND ").push(column).push(" = ").push_bind(uid.to_owned());
    update.build().execute(&mut *db).await?;
    Ok(())
}

/// The server has ended. The first reason stays.
pub(super) async fn decommission(
    db: &mut Connection,
    server: &str,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE servers SET decommission_date = $1, decommission_reason = $2 \
         WHERE server_id = $3 AND decommission_date IS NULL",
    )
    .bind(millis(now))
    .bind(reason)
    .bind(server)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Derives a server's status from its facts.
pub(super) async fn refresh_server(db: &mut Connection, server: &str) -> Result<(), StoreError> {
    query(
        "UPDATE servers SET status = CASE WHEN compromised THEN 'compromised' \
         WHEN decommission_date IS NOT NULL OR revoked_date IS NOT NULL THEN 'decommissioned' \
         WHEN registration_date IS NULL THEN 'pending' \
         WHEN maintenance_mode THEN 'maintenance' \
         WHEN requires_verification THEN 'unavailable' \
         ELSE 'active' END WHERE server_id = $1",
    )
    .bind(server)
    .execute(&mut *db)
    .await?;
    Ok(())
}
