//! Rotation of verification secrets beyond the ratchet: servers are marked, a part at a time, and each appliance gets a secret
//! that follows from none before it. The mark stays until the appliance proved the new secret; until then the one before it
//! counts as well.

use horizon_crds::{Name, RotationTarget, RotationType};
use horizon_model::ServerId;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    LeaderEpoch, Store, StoreError, changed,
    dialect::query,
    registration::fence,
    rotation_history::{self, Rotated},
    row::{Columns as _, millis},
};

/// A rotation of verification secrets.
#[derive(Clone, Debug)]
pub struct SecretRotation<'a> {
    /// The `KeyRotation`, or the `RotationPolicy` with a number for each time.
    pub id: String,
    /// The namespace of the servers.
    pub namespace: &'a Name,
    /// Their names; none means all.
    pub names: &'a [Name],
    /// Those whose secret was rotated before this time.
    pub before: Timestamp,
    /// How.
    pub kind: RotationType,
    /// Why.
    pub reason: &'a str,
    /// Who asked for it.
    pub by: &'a str,
    /// The `KeyRotation`.
    pub run: Option<Uuid>,
    /// The `RotationPolicy`.
    pub policy: Option<Uuid>,
    /// For how long appliances are waited for.
    pub overlap: SignedDuration,
}

/// How far a rotation of verification secrets is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecretsRotated {
    /// The servers that it means.
    pub total: u32,
    /// Those whose appliances proved a new secret.
    pub done: u32,
    /// Those that were not marked yet.
    pub unmarked: u32,
}

impl Store {
    /// Marks up to `limit` more servers of a rotation. Returns them.
    pub async fn reissue_secrets(
        &self,
        rotation: &SecretRotation<'_>,
        limit: u32,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Vec<ServerId>, StoreError> {
        self.retried("reissue_secrets", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            let rows = query(
                "SELECT server_id, name, secret_rotation FROM servers WHERE namespace = $1 AND registration_date IS NOT NULL \
                 AND decommission_date IS NULL AND revoked_date IS NULL \
                 AND COALESCE(secret_rotated_date, registration_date) < $2 ORDER BY server_id",
            )
            .bind(rotation.namespace.as_str())
            .bind(millis(rotation.before))
            .fetch_all(&mut *tx)
            .await?;
            let mut marked = Vec::new();
            for row in &rows {
                let name: Name = row.parsed("name")?;
                let meant = rotation.names.is_empty() || rotation.names.contains(&name);
                let before = row.maybe_text("secret_rotation")?;
                if !meant || before.as_deref() == Some(&rotation.id[..]) {
                    continue;
                }
                if marked.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
                    break;
                }
                let id = row.text("server_id")?;
                query(
                    "UPDATE servers SET reissue_secret = TRUE, secret_rotation = $1, secret_rotated_date = $2 WHERE server_id = $3",
                )
                .bind(&rotation.id)
                .bind(millis(now))
                .bind(&id)
                .execute(&mut *tx)
                .await?;
                changed::touch(&mut tx, &id).await?;
                let rotated = Rotated {
                    target: RotationTarget::VerificationSecrets,
                    key: &id,
                    previous: None,
                    new: None,
                    kind: rotation.kind,
                    by: rotation.by.to_owned(),
                    reason: rotation.reason,
                    run: rotation.run,
                    policy: rotation.policy,
                    overlap_end: now.checked_add(rotation.overlap).ok(),
                    completed: true,
                };
                rotation_history::write(&mut tx, &rotated, now).await?;
                marked.push(row.parsed("server_id")?);
            }
            tx.commit().await?;
            Ok::<_, StoreError>(marked)
        })
        .await
    }

    /// How far a rotation of verification secrets is.
    pub async fn secrets_rotated(&self, rotation: &SecretRotation<'_>) -> Result<SecretsRotated, StoreError> {
        let rows = query(
            "SELECT name, secret_rotation, reissue_secret FROM servers WHERE namespace = $1 AND registration_date IS NOT NULL \
             AND decommission_date IS NULL AND revoked_date IS NULL \
             AND (secret_rotation = $2 OR COALESCE(secret_rotated_date, registration_date) < $3)",
        )
        .bind(rotation.namespace.as_str())
        .bind(&rotation.id)
        .bind(millis(rotation.before))
        .fetch_all(self.readers())
        .await?;
        let mut far = SecretsRotated::default();
        for row in &rows {
            let name: Name = row.parsed("name")?;
            if !rotation.names.is_empty() && !rotation.names.contains(&name) {
                continue;
            }
            far.total += 1;
            match row.maybe_text("secret_rotation")?.as_deref() == Some(&rotation.id[..]) {
                true => far.done += u32::from(!row.flag("reissue_secret")?),
                false => far.unmarked += 1,
            }
        }
        Ok(far)
    }
}
