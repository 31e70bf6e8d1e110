//! How far each `KeyRotation` is, and what each `RotationPolicy` governs.

use std::collections::BTreeSet;

use horizon_controller_core::{
    rotation::selects,
    status::{RotationFacts, RotationPolicyFacts},
};
use horizon_crds::{Document, KeyRotationSpec, Name, Resource, RotationTarget, RotationType};
use horizon_model::{KeyId, ServerId};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Actor, LeaderEpoch, Store, StoreError,
    dialect::{Connection, query},
    document,
    registration::fence,
    rotation::{self, Replacement},
    row::{Columns as _, millis},
};

/// The most failures that are kept of a rotation.
const MAX_FAILURES: usize = 32;

/// A rotation that somebody asked for and that is not over.
#[derive(Clone, Debug)]
pub struct Run {
    /// The `KeyRotation`.
    pub uid: Uuid,
    /// Its namespace.
    pub namespace: Name,
    /// What it asks for.
    pub spec: KeyRotationSpec,
    /// Who asked for it.
    pub decided_by: String,
    /// When it was asked for.
    pub decided_at: Timestamp,
    /// When it began, if it did.
    pub started_at: Option<Timestamp>,
}

/// How far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunProgress {
    /// Whether it is over, well or not.
    pub completed: bool,
    /// How many keys it is about.
    pub total: u32,
    /// How many of them are rotated.
    pub done: u32,
    /// How many devices or appliances are to take a new key.
    pub receivers: u32,
    /// How many have.
    pub confirmed: u32,
    /// When the old keys end at the latest.
    pub overlap_ends_at: Option<Timestamp>,
    /// What went wrong: with what, and what.
    pub failures: Vec<(String, String)>,
}

/// What a policy governs now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyFigures {
    /// How many keys follow it.
    pub keys: u32,
    /// How many of them are being rotated.
    pub rotating: u32,
    /// When the next rotation begins.
    pub next_run: Option<Timestamp>,
}

/// A `KeyRotation` came into being. Personal keys that are replaced at once are so in this transaction. Returns the servers with
/// sessions that may have to end.
pub(super) async fn record(
    db: &mut Connection,
    uid: Uuid,
    document: &Document<KeyRotationSpec>,
    actor: &Actor,
    now: Timestamp,
) -> Result<Vec<ServerId>, StoreError> {
    let spec = &document.spec;
    query("INSERT INTO rotation_runs (run_uid, target, decided_at, decided_by) VALUES ($1, $2, $3, $4)")
        .bind(uid.to_string())
        .bind(spec.target.as_str())
        .bind(millis(now))
        .bind(actor.name())
        .execute(&mut *db)
        .await?;
    let mut servers = Vec::new();
    if spec.target != RotationTarget::PersonalKeys || spec.kind == RotationType::Scheduled {
        return Ok(servers);
    }
    let mut progress = RunProgress { completed: true, ..RunProgress::default() };
    for (key, name) in selected(db, &document.metadata.namespace, spec).await? {
        progress.total += 1;
        let replacement =
            Replacement { kind: spec.kind, reason: spec.reason.as_str(), run: Some(uid), actor };
        match rotation::replace(db, key, &replacement, now).await? {
            Some(more) => {
                progress.done += 1;
                servers.extend(more);
            }
            None => progress.failures.push((name, "the key had ended before".into())),
        }
    }
    note(db, uid, &progress, now).await?;
    Ok(servers)
}

/// The living personal keys that a rotation means, with their names.
async fn selected(
    db: &mut Connection,
    namespace: &Name,
    spec: &KeyRotationSpec,
) -> Result<Vec<(KeyId, String)>, StoreError> {
    let mut members = BTreeSet::new();
    if !spec.groups.is_empty() {
        let rows = query(
            "SELECT document FROM resources WHERE kind = 'User' AND namespace = $1 AND deleted_at IS NULL",
        )
        .bind(namespace.as_str())
        .fetch_all(&mut *db)
        .await?;
        for row in &rows {
            if let Resource::User(user) = document::read(&row.text("document")?)?
                && user.spec.groups.iter().any(|group| spec.groups.contains(group))
            {
                members.insert(user.metadata.name);
            }
        }
    }
    let rows = query(
        "SELECT k.key_id, k.name, k.user_name FROM personal_keys k JOIN resources r ON r.uid = k.key_id \
         WHERE k.namespace = $1 AND r.deleted_at IS NULL ORDER BY k.key_id",
    )
    .bind(namespace.as_str())
    .fetch_all(&mut *db)
    .await?;
    let mut found = Vec::new();
    for row in &rows {
        let (name, user): (Name, Name) = (row.parsed("name")?, row.parsed("user_name")?);
        if selects(spec, &name, &user, members.contains(&user)) {
            found.push((row.parsed("key_id")?, name.to_string()));
        }
    }
    Ok(found)
}

async fn note(
    db: &mut Connection,
    uid: Uuid,
    progress: &RunProgress,
    now: Timestamp,
) -> Result<(), StoreError> {
    let failures: Vec<_> = progress.failures.iter().take(MAX_FAILURES).collect();
    query(
        "UPDATE rotation_runs SET started_at = COALESCE(started_at, $1), completed_at = COALESCE(completed_at, $2), \
         overlap_end = $3, total = $4, completed = $5, receivers = $6, confirmed = $7, failures = $8 WHERE run_uid = $9",
    )
    .bind(millis(now))
    .bind(progress.completed.then(|| millis(now)))
    .bind(progress.overlap_ends_at.map(millis))
    .bind(progress.total)
    .bind(progress.done)
    .bind(progress.receivers)
    .bind(progress.confirmed)
    .bind(serde_json::json!(failures).to_string())
    .bind(uid.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

impl Store {
    /// The rotations of a class that are not over, the oldest first.
    pub async fn waiting_runs(&self, target: RotationTarget) -> Result<Vec<Run>, StoreError> {
        let rows = query(
            "SELECT n.run_uid, n.decided_at, n.decided_by, n.started_at, r.namespace, r.document FROM rotation_runs n \
             JOIN resources r ON r.uid = n.run_uid WHERE n.target = $1 AND n.completed_at IS NULL \
             ORDER BY n.decided_at, n.run_uid",
        )
        .bind(target.as_str())
        .fetch_all(self.readers())
        .await?;
        let mut runs = Vec::new();
        for row in &rows {
            if let Resource::KeyRotation(rotation) = document::read(&row.text("document")?)? {
                runs.push(Run {
                    uid: row.parsed("run_uid")?,
                    namespace: row.parsed("namespace")?,
                    spec: rotation.spec,
                    decided_by: row.text("decided_by")?,
                    decided_at: row.time("decided_at")?,
                    started_at: row.maybe_time("started_at")?,
                });
            }
        }
        Ok(runs)
    }

    /// The living personal keys that a rotation means, with their names.
    pub async fn keys_of_run(&self, run: &Run) -> Result<Vec<(KeyId, String)>, StoreError> {
        let mut tx = self.begin().await?;
        let found = selected(&mut tx, &run.namespace, &run.spec).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// Says how far a rotation is. What is over stays over.
    pub async fn note_run(
        &self,
        uid: Uuid,
        progress: &RunProgress,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("note_run", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            note(&mut tx, uid, progress, now).await?;
            tx.commit().await
        })
        .await
    }

    /// Which personal keys a rotation has begun to rotate, and how many of them are over, how many devices are to take a new key
    /// and how many have.
    pub async fn begun_by_run(&self, uid: Uuid) -> Result<(BTreeSet<KeyId>, RunProgress), StoreError> {
        // The rotation of a key that ended meanwhile is over too.
        let rows = query(
            "SELECT h.key_id, COALESCE(h.completed_date, k.deactivation_date) AS done_at, h.overlap_end FROM key_rotation_history h \
             LEFT JOIN personal_keys k ON k.key_id = h.key_id WHERE h.run_uid = $1",
        )
        .bind(uid.to_string())
        .fetch_all(self.readers())
        .await?;
        let (mut keys, mut progress) = (BTreeSet::new(), RunProgress::default());
        for row in &rows {
            keys.insert(row.parsed("key_id")?);
            progress.done += u32::from(row.maybe_time("done_at")?.is_some());
            progress.overlap_ends_at = progress.overlap_ends_at.max(row.maybe_time("overlap_end")?);
        }
        let row = query(
            "SELECT COUNT(*) AS n, COUNT(y.confirmed_date) AS confirmed FROM key_deliveries y \
             JOIN key_rotation_history h ON h.new_key_id = y.version_id \
             JOIN devices d ON d.device_id = y.device_id AND d.status IN ('active', 'suspicious') WHERE h.run_uid = $1",
        )
        .bind(uid.to_string())
        .fetch_one(self.readers())
        .await?;
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        progress.receivers = narrow(row.count("n")?);
        progress.confirmed = narrow(row.count("confirmed")?);
        Ok((keys, progress))
    }

    /// What is known about how far a `KeyRotation` is.
    pub async fn run_facts(&self, uid: Uuid) -> Result<RotationFacts, StoreError> {
        let row = query("SELECT * FROM rotation_runs WHERE run_uid = $1")
            .bind(uid.to_string())
            .fetch_optional(self.readers())
            .await?;
        let Some(row) = row else { return Ok(RotationFacts::default()) };
        let narrow = |column| Ok::<_, StoreError>(u32::try_from(row.count(column)?).unwrap_or(u32::MAX));
        Ok(RotationFacts {
            started_at: row.maybe_time("started_at")?,
            completed_at: row.maybe_time("completed_at")?,
            overlap_ends_at: row.maybe_time("overlap_end")?,
            total: narrow("total")?,
            done: narrow("completed")?,
            receivers: narrow("receivers")?,
            confirmed: narrow("confirmed")?,
            failures: row.json("failures")?,
        })
    }

    /// Says what a policy governs now. Returns whether that is news.
    pub async fn note_policy(
        &self,
        uid: Uuid,
        figures: PolicyFigures,
        leader: Option<LeaderEpoch>,
    ) -> Result<bool, StoreError> {
        let known = self.policy_facts(uid).await?;
        if (known.keys, known.rotating, known.next_run) == (figures.keys, figures.rotating, figures.next_run)
        {
            return Ok(false);
        }
        self.repeatable("note_policy", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            query(
                "INSERT INTO rotation_policies (policy_uid, keys, rotating, next_run) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (policy_uid) DO UPDATE SET keys = excluded.keys, rotating = excluded.rotating, \
                 next_run = excluded.next_run",
            )
            .bind(uid.to_string())
            .bind(figures.keys)
            .bind(figures.rotating)
            .bind(figures.next_run.map(millis))
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await?;
        Ok(true)
    }

    /// What is known about what a `RotationPolicy` did.
    pub async fn policy_facts(&self, uid: Uuid) -> Result<RotationPolicyFacts, StoreError> {
        let row = query("SELECT * FROM rotation_policies WHERE policy_uid = $1")
            .bind(uid.to_string())
            .fetch_optional(self.readers())
            .await?;
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut facts = RotationPolicyFacts::default();
        if let Some(row) = row {
            facts.keys = narrow(row.count("keys")?);
            facts.rotating = narrow(row.count("rotating")?);
            facts.next_run = row.maybe_time("next_run")?;
        }
        let row = query(
            "SELECT COUNT(*) AS n, MAX(rotation_date) AS latest, \
             COUNT(CASE WHEN unconfirmed > 0 THEN 1 END) AS unconfirmed FROM key_rotation_history WHERE policy_uid = $1",
        )
        .bind(uid.to_string())
        .fetch_one(self.readers())
        .await?;
        facts.rotations = narrow(row.count("n")?);
        facts.failures = narrow(row.count("unconfirmed")?);
        facts.last_run = row.maybe_time("latest")?;
        Ok(facts)
    }
}
