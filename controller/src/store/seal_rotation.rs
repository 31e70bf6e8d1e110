//! Rotation of the envelope: new data keys, and a new envelope key in the place of one in a file, step by step. Each step is one
//! transaction of the leader, and is taken when all replicas have said that they can follow.

use horizon_crds::{RotationTarget, RotationType};
use horizon_model::Secret;
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    Actor, EnvelopeKey, LeaderEpoch, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event,
    registration::fence,
    rotation_history::{self, Rotated},
    row::{Columns as _, int, millis},
    seal::{DataKey, FORMAT, Purpose, random},
    seal_keys::{FIRST_CHECK, LOCK, add_envelope, add_key, add_wrap, purpose_of_hand, read_keys},
    seal_rows, settings,
};
use crate::keys::Envelope;

/// The class of keys, as `KeyRotation`s and the history spell it.
pub const ENVELOPE_CLASS: &str = "envelope";

/// A rotation of the envelope and of the data keys under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeRotation {
    /// Its number.
    pub id: i64,
    /// How.
    pub kind: RotationType,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub by: String,
    /// The `KeyRotation`.
    pub run: Option<Uuid>,
    /// The `RotationPolicy`.
    pub policy: Option<Uuid>,
    /// Whether the envelope key is replaced too, where it is no hardware's.
    pub new_envelope: bool,
    /// How far it is.
    pub phase: EnvelopePhase,
    /// How many values were sealed anew.
    pub resealed: u64,
}

/// How far a rotation of the envelope is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnvelopePhase {
    /// It has not begun.
    Requested,
    /// The new keys are there; replicas take them.
    Published,
    /// What is new is sealed under them; what is there is sealed anew.
    InUse,
    /// The old keys are gone.
    Done,
}

/// A rotation that begins.
#[derive(Clone, Debug)]
pub struct NewEnvelopeRotation<'a> {
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
    /// Whether the envelope key is replaced too.
    pub new_envelope: bool,
}

/// How the envelope is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvelopeState {
    /// The envelope keys: id and whether it is the one in use.
    pub envelopes: Vec<(String, bool)>,
    /// The number of the data key that seals what is new, and when it was made.
    pub sealing: Option<(i64, Timestamp)>,
    /// The older ones that values still name.
    pub older: Vec<i64>,
    /// The replicas that said which keys they have.
    pub replicas: u64,
    /// How many of them have the envelope key that is to come.
    pub moved: u64,
}

/// Whether every replica that is there says that it has an envelope key, the data keys up to a number, and, if one is named,
/// that it seals under it.
async fn all_have(
    db: &mut Connection,
    envelope: &str,
    newest: i64,
    sealing: Option<i64>,
) -> Result<bool, StoreError> {
    let row = query(
        "SELECT COUNT(*) AS n FROM replicas r LEFT JOIN envelope_holders h ON h.replica_id = r.replica_id \
         WHERE h.replica_id IS NULL OR h.envelope_id <> $1 OR h.newest < $2 OR ($3 IS NOT NULL AND h.sealing <> $3)",
    )
    .bind(envelope)
    .bind(newest)
    .bind(sealing)
    .fetch_one(&mut *db)
    .await?;
    let own = query("SELECT COUNT(*) AS n FROM envelope_holders WHERE envelope_id = $1 AND newest >= $2")
        .bind(envelope)
        .bind(newest)
        .fetch_one(&mut *db)
        .await?;
    Ok(row.count("n")? == 0 && own.count("n")? > 0)
}

async fn set_phase(
    db: &mut Connection,
    id: i64,
    (from, to): (&'static str, &'static str),
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = query(
        "UPDATE envelope_rotations SET phase = $1, phase_date = $2, ended_date = $3 WHERE rotation_id = $4 AND phase = $5",
    )
    .bind(to)
    .bind(millis(now))
    .bind((to == "done").then(|| millis(now)))
    .bind(id)
    .bind(from)
    .execute(&mut *db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The event and the audit row of a step.
async fn tell(
    db: &mut Connection,
    rotation: &EnvelopeRotation,
    (kind, what): (&'static str, String),
    now: Timestamp,
) -> Result<(), StoreError> {
    let severity = match rotation.kind {
        RotationType::Compromised => Severity::Critical,
        RotationType::Emergency => Severity::High,
        RotationType::Scheduled | RotationType::Manual => Severity::Info,
    };
    let event = NewEvent {
        kind,
        severity,
        source: Source::System,
        address: None,
        description: format!("envelope of the database: {what}: {}", rotation.reason),
        data: json!({ "class": ENVELOPE_CLASS, "reason": rotation.reason, "by": rotation.by }),
    };
    event::write(db, &event, now).await?;
    let record = Record::new("rotate", "Envelope", rotation.id, ENVELOPE_CLASS)
        .notes(format!("{what}; asked for by {}: {}", rotation.by, rotation.reason));
    audit::write(db, &Actor::System("keys"), now, &[record]).await
}

impl Store {
    /// Begins a rotation of the envelope, unless one is under way.
    pub async fn begin_envelope_rotation(
        &self,
        new: &NewEnvelopeRotation<'_>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("begin_envelope_rotation", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            let done = query(
                "INSERT INTO envelope_rotations (class, rotation_type, reason, requested_by, requested_date, run_uid, policy_uid, \
                 new_envelope, phase, phase_date) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'requested', $5) \
                 ON CONFLICT (class) WHERE ended_date IS NULL DO NOTHING",
            )
            .bind(ENVELOPE_CLASS)
            .bind(new.kind.as_str())
            .bind(new.reason)
            .bind(new.by)
            .bind(millis(now))
            .bind(new.run.map(|uid| uid.to_string()))
            .bind(new.policy.map(|uid| uid.to_string()))
            .bind(new.new_envelope)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    /// The rotation of the envelope that is not over, or that of a run.
    pub async fn envelope_rotation(&self, run: Option<Uuid>) -> Result<Option<EnvelopeRotation>, StoreError> {
        let row = match run {
            Some(run) => query("SELECT * FROM envelope_rotations WHERE run_uid = $1").bind(run.to_string()),
            None => query("SELECT * FROM envelope_rotations WHERE ended_date IS NULL"),
        };
        row.fetch_optional(self.readers()).await?.as_ref().map(read_rotation).transpose()
    }

    /// The first step: new data keys, and `next` in the place of the envelope key, become known. `false` when it was taken already, or
    /// has to wait for another envelope key to be in use everywhere.
    pub async fn publish_data_keys(
        &self,
        rotation: &EnvelopeRotation,
        next: Option<&EnvelopeKey>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("publish_data_keys", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise(LOCK).await?;
            let envelope = self.envelope();
            let known = query("SELECT envelope_id FROM envelope_keys").fetch_all(&mut *tx).await?;
            let alone = matches!(&known[..], [one] if one.text("envelope_id")? == envelope.id());
            if !alone || !set_phase(&mut tx, rotation.id, ("requested", "published"), now).await? {
                return Ok(false);
            }
            let keys = read_keys(&mut *tx, &envelope, self.sealer().keys()).await?;
            let newest = keys.iter().map(|key| key.number).max().unwrap_or(0);
            let next = next.map(Envelope::from);
            if let Some(next) = &next {
                let secret = next.key().ok_or(StoreError::FirstEnvelope)?;
                let handed = envelope.wrap(&purpose_of_hand(&next.id()), &secret.0).await?;
                add_envelope(&mut tx, next, "next", Some(handed), now).await?;
                for key in &keys {
                    add_wrap(&mut tx, next, key).await?;
                }
            }
            let envelopes: Vec<&Envelope> = [&envelope].into_iter().chain(&next).collect();
            for (number, purpose) in (newest + 1..).zip([Purpose::Seal, Purpose::Lookup, Purpose::Shared]) {
                let secret = Secret::new(random());
                let key = DataKey { number, purpose, format: FORMAT, current: false, secret };
                add_key(&mut tx, &key, &envelopes, now).await?;
            }
            let what = match next {
                Some(_) => "new data keys and a new envelope key are published",
                None => "new data keys are published",
            };
            tell(&mut tx, rotation, ("controller_key_published", what.to_owned()), now).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Ends the use of an envelope key that has a successor, once every replica has that: nothing is wrapped under it any more.
    /// Returns the id of the one in use since.
    pub async fn settle_envelope(
        &self,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        let waiting = query("SELECT envelope_id FROM envelope_keys WHERE state = 'next'")
            .fetch_optional(self.readers())
            .await?;
        if waiting.is_none() {
            return Ok(None);
        }
        self.retried("settle_envelope", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise(LOCK).await?;
            let row = query("SELECT envelope_id FROM envelope_keys WHERE state = 'next'")
                .fetch_optional(&mut *tx)
                .await?;
            let Some(row) = row else { return Ok(None) };
            let id = row.text("envelope_id")?;
            if self.envelope().id() != id || !all_have(&mut tx, &id, 0, None).await? {
                return Ok(None);
            }
            // What is wrapped under it goes with it.
            query("DELETE FROM envelope_keys WHERE envelope_id <> $1").bind(&id).execute(&mut *tx).await?;
            query("UPDATE envelope_keys SET state = 'current', handed = NULL WHERE envelope_id = $1")
                .bind(&id)
                .execute(&mut *tx)
                .await?;
            let record = Record::new("rotate", "Envelope", &id, ENVELOPE_CLASS)
                .notes("every replica has it; nothing is wrapped under the one before any more".to_owned());
            audit::write(&mut tx, &Actor::System("keys"), now, &[record]).await?;
            tx.commit().await?;
            Ok(Some(id))
        })
        .await
    }

    /// The second step: once every replica has the new data keys, what is new is sealed under them.
    pub async fn use_data_keys(
        &self,
        rotation: &EnvelopeRotation,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("use_data_keys", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise(LOCK).await?;
            let row = query("SELECT COALESCE(MAX(key_number), 0) AS newest FROM data_keys")
                .fetch_one(&mut *tx)
                .await?;
            let other = query("SELECT envelope_id FROM envelope_keys WHERE state = 'next'")
                .fetch_optional(&mut *tx)
                .await?;
            let (newest, envelope) = (row.int("newest")?, self.envelope().id());
            if other.is_some() || !all_have(&mut tx, &envelope, newest, None).await? {
                return Ok(false);
            }
            if !set_phase(&mut tx, rotation.id, ("published", "in_use"), now).await? {
                return Ok(false);
            }
            query(
                "UPDATE data_keys SET state = 'previous' WHERE state = 'current' \
                 AND purpose IN (SELECT purpose FROM data_keys WHERE state = 'published')",
            )
            .execute(&mut *tx)
            .await?;
            query("UPDATE data_keys SET state = 'current' WHERE state = 'published'")
                .execute(&mut *tx)
                .await?;
            let sealing = sealing(&mut tx).await?;
            let what = format!("what is new is sealed under data key {sealing}");
            tell(&mut tx, rotation, ("controller_key_used", what), now).await?;
            let rotated = Rotated {
                target: RotationTarget::ControllerKeys,
                key: ENVELOPE_CLASS,
                previous: None,
                new: Some(format!("data key {sealing}")),
                kind: rotation.kind,
                by: rotation.by.clone(),
                reason: &rotation.reason,
                run: rotation.run,
                policy: rotation.policy,
                overlap_end: None,
                completed: false,
            };
            rotation_history::write(&mut tx, &rotated, now).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Whether every replica that is there seals under the data key in use.
    pub async fn all_seal_anew(&self) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sealing = sealing(&mut tx).await?;
        let all = all_have(&mut tx, &self.envelope().id(), 0, Some(sealing)).await?;
        Ok(all && self.sealer().sealing() == sealing)
    }

    /// The last step: data keys that nothing names any more are dropped, and with the last of them the rotation is over. `false` when
    /// there are values left that name one.
    pub async fn retire_data_keys(
        &self,
        rotation: &EnvelopeRotation,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("retire_data_keys", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise(LOCK).await?;
            let sealing = sealing(&mut tx).await?;
            let envelope = self.envelope().id();
            if !all_have(&mut tx, &envelope, 0, Some(sealing)).await? || seal_rows::any_left(&mut tx).await? {
                return Ok(false);
            }
            if !set_phase(&mut tx, rotation.id, ("in_use", "done"), now).await? {
                return Ok(false);
            }
            // Whoever still seals under one of them, against all that was said, is refused by the foreign key.
            query("DELETE FROM data_keys WHERE state = 'previous'").execute(&mut *tx).await?;
            // A program of before there were data keys does not open this database any more.
            settings::put(&mut tx, FIRST_CHECK, &random::<16>().to_vec(), now).await?;
            query(
                "UPDATE key_rotation_history SET completed_date = $1 WHERE target = 'controllerKeys' AND key_id = $2 \
                 AND completed_date IS NULL",
            )
            .bind(millis(now))
            .bind(ENVELOPE_CLASS)
            .execute(&mut *tx)
            .await?;
            let what = "every value is sealed anew, and the data keys before are gone".to_owned();
            tell(&mut tx, rotation, ("controller_key_retired", what), now).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Wraps the data keys under another envelope key too, as its successor: a key of hardware, or of a file. The replicas that are
    /// started with it use it; when all do, the one before is let go.
    pub async fn rewrap_data_keys(
        &self,
        next: &Envelope,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("rewrap_data_keys", || async {
            let mut tx = self.begin().await?;
            tx.serialise(LOCK).await?;
            let envelope = self.envelope();
            let known = query("SELECT envelope_id FROM envelope_keys").fetch_all(&mut *tx).await?;
            for row in &known {
                let id = row.text("envelope_id")?;
                if id == next.id() {
                    return Ok(false);
                }
                if id != envelope.id() {
                    return Err(StoreError::EnvelopeChanges(id));
                }
            }
            add_envelope(&mut tx, next, "next", None, now).await?;
            for key in &read_keys(&mut *tx, &envelope, &[]).await? {
                add_wrap(&mut tx, next, key).await?;
            }
            let record = Record::new("rewrap", "Envelope", next.id(), ENVELOPE_CLASS).notes(format!(
                "the data keys are wrapped under {} beside {}",
                next.id(),
                envelope.id()
            ));
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// How the envelope is.
    pub async fn envelope_state(&self) -> Result<EnvelopeState, StoreError> {
        let mut state = EnvelopeState::default();
        for row in &query("SELECT envelope_id, state FROM envelope_keys ORDER BY state, envelope_id")
            .fetch_all(self.readers())
            .await?
        {
            state.envelopes.push((row.text("envelope_id")?, row.text("state")? == "current"));
        }
        for row in &query(
            "SELECT key_number, state, made_date FROM data_keys WHERE purpose = 'seal' ORDER BY key_number",
        )
        .fetch_all(self.readers())
        .await?
        {
            match &row.text("state")?[..] {
                "current" => state.sealing = Some((row.int("key_number")?, row.time("made_date")?)),
                "previous" => state.older.push(row.int("key_number")?),
                _ => {}
            }
        }
        let row = query(
            "SELECT COUNT(*) AS n, COUNT(CASE WHEN envelope_id IN (SELECT envelope_id FROM envelope_keys WHERE state = 'next') \
             THEN 1 END) AS moved FROM envelope_holders",
        )
        .fetch_one(self.readers())
        .await?;
        (state.replicas, state.moved) = (row.count("n")?, row.count("moved")?);
        Ok(state)
    }

    /// Notes that more values were sealed anew.
    pub(super) async fn note_resealed(db: &mut Connection, more: u64) -> Result<(), StoreError> {
        query("UPDATE envelope_rotations SET resealed = resealed + $1 WHERE ended_date IS NULL")
            .bind(int(more))
            .execute(db)
            .await?;
        Ok(())
    }
}

/// The number of the data key under which is sealed what is new.
async fn sealing(db: &mut Connection) -> Result<i64, StoreError> {
    let row = query("SELECT key_number FROM data_keys WHERE purpose = 'seal' AND state = 'current'")
        .fetch_one(&mut *db)
        .await?;
    row.int("key_number")
}

fn read_rotation(row: &Row) -> Result<EnvelopeRotation, StoreError> {
    Ok(EnvelopeRotation {
        id: row.int("rotation_id")?,
        kind: match &row.text("rotation_type")?[..] {
            "manual" => RotationType::Manual,
            "emergency" => RotationType::Emergency,
            "compromised" => RotationType::Compromised,
            _ => RotationType::Scheduled,
        },
        reason: row.text("reason")?,
        by: row.text("requested_by")?,
        run: row.maybe_parsed("run_uid")?,
        policy: row.maybe_parsed("policy_uid")?,
        new_envelope: row.flag("new_envelope")?,
        phase: match &row.text("phase")?[..] {
            "requested" => EnvelopePhase::Requested,
            "published" => EnvelopePhase::Published,
            "in_use" => EnvelopePhase::InUse,
            _ => EnvelopePhase::Done,
        },
        resealed: row.count("resealed")?,
    })
}
