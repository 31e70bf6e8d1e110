//! The data keys of the database: how they are made, wrapped and read. Each replica reads them anew when there are others, and
//! says which it has.

use horizon_model::Secret;
use jiff::Timestamp;

use super::{
    EnvelopeKey, ReplicaId, SealError, Store, StoreError,
    dialect::{Connection, On, query},
    row::{Columns as _, millis},
    seal::{DataKey, FIRST_FORMAT, FORMAT, Purpose, Sealer, first_check, first_keys, random},
    settings,
};
use crate::keys::Envelope;

/// By what the database of before there were data keys knew its envelope key.
pub(super) const FIRST_CHECK: &str = "envelope_check";
/// What keeps others out while data keys are made or change.
pub(super) const LOCK: &str = "data keys";

/// What a data key is wrapped for.
fn purpose_of_wrap(number: i64, purpose: Purpose, format: i64) -> Vec<u8> {
    format!("horizon data key {number} {} {format}", purpose.as_str()).into_bytes()
}

/// What the successor of an envelope key is wrapped for.
pub(super) fn purpose_of_hand(id: &str) -> Vec<u8> {
    format!("horizon envelope key {id}").into_bytes()
}

/// Reads the data keys, which must open under `envelope` unless they are known already.
pub(super) async fn read_keys<'a>(
    on: impl Into<On<'a>>,
    envelope: &Envelope,
    known: &[DataKey],
) -> Result<Vec<DataKey>, StoreError> {
    let rows = query(
        "SELECT k.key_number, k.purpose, k.format, k.state, w.wrapped FROM data_keys k LEFT JOIN data_key_wraps w \
         ON w.key_number = k.key_number AND w.envelope_id = $1 ORDER BY k.key_number",
    )
    .bind(envelope.id())
    .fetch_all(on)
    .await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        let (number, format) = (row.int("key_number")?, row.int("format")?);
        let purpose = row.text("purpose")?;
        let purpose = Purpose::read(&purpose)
            .ok_or_else(|| StoreError::Corrupt { column: "purpose", why: format!("'{purpose}' is none") })?;
        let secret = match known.iter().find(|key| key.number == number) {
            Some(key) => key.secret.clone(),
            None => {
                let wrapped = row.maybe_bytes("wrapped")?;
                let wrapped = wrapped.ok_or_else(|| StoreError::OtherEnvelope { held: envelope.id() })?;
                envelope.unwrap(&purpose_of_wrap(number, purpose, format), &wrapped).await?
            }
        };
        keys.push(DataKey { number, purpose, format, current: row.text("state")? == "current", secret });
    }
    Ok(keys)
}

pub(super) async fn add_envelope(
    db: &mut Connection,
    envelope: &Envelope,
    state: &'static str,
    handed: Option<Vec<u8>>,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO envelope_keys (envelope_id, provider, state, handed, made_date) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(envelope.id())
    .bind(envelope.provider())
    .bind(state)
    .bind(handed)
    .bind(millis(now))
    .execute(db)
    .await?;
    Ok(())
}

pub(super) async fn add_wrap(
    db: &mut Connection,
    envelope: &Envelope,
    key: &DataKey,
) -> Result<(), StoreError> {
    let wrapped = envelope.wrap(&purpose_of_wrap(key.number, key.purpose, key.format), &key.secret).await?;
    query("INSERT INTO data_key_wraps (key_number, envelope_id, wrapped) VALUES ($1, $2, $3)")
        .bind(key.number)
        .bind(envelope.id())
        .bind(wrapped)
        .execute(db)
        .await?;
    Ok(())
}

pub(super) async fn add_key(
    db: &mut Connection,
    key: &DataKey,
    envelopes: &[&Envelope],
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO data_keys (key_number, purpose, format, state, made_date) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(key.number)
    .bind(key.purpose.as_str())
    .bind(key.format)
    .bind(if key.current { "current" } else { "published" })
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    for envelope in envelopes {
        add_wrap(db, envelope, key).await?;
    }
    Ok(())
}

/// Opens the data keys of a database. A new one gets its first; one of before there were any gets those that its values are
/// sealed under.
pub(super) async fn bind(db: &mut Connection, envelope: &Envelope) -> Result<Sealer, StoreError> {
    db.serialise(LOCK).await?;
    let found = read_keys(&mut *db, envelope, &[]).await?;
    if !found.is_empty() {
        return Ok(Sealer::new(found));
    }
    let now = Timestamp::now();
    let made: Vec<(Purpose, i64, Secret)> = match settings::get::<Vec<u8>>(db, FIRST_CHECK).await? {
        Some(check) => {
            let key = envelope.key().ok_or(StoreError::FirstEnvelope)?;
            if check != first_check(key) {
                return Err(SealError.into());
            }
            first_keys(key).into_iter().map(|(purpose, key)| (purpose, FIRST_FORMAT, key)).collect()
        }
        None => {
            settings::begin(db, now).await?;
            // A program of before there were data keys would take this database for a new one.
            settings::put(db, FIRST_CHECK, &random::<16>().to_vec(), now).await?;
            let all = [Purpose::Seal, Purpose::Lookup, Purpose::Shared, Purpose::Tag];
            all.into_iter().map(|purpose| (purpose, FORMAT, Secret::new(random()))).collect()
        }
    };
    add_envelope(db, envelope, "current", None, now).await?;
    let keys: Vec<DataKey> = (1..)
        .zip(made)
        .map(|(number, (purpose, format, secret))| DataKey { number, purpose, format, current: true, secret })
        .collect();
    for key in &keys {
        add_key(db, key, &[envelope], now).await?;
    }
    Ok(Sealer::new(keys))
}

impl Store {
    /// Reads the data keys anew if there are others. Says whether there were.
    pub async fn refresh_data_keys(&self) -> Result<bool, StoreError> {
        let (before, envelope) = (self.sealer(), self.envelope());
        let keys = read_keys(self.readers(), &envelope, before.keys()).await?;
        let shape = |keys: &[DataKey]| keys.iter().map(|key| (key.number, key.current)).collect::<Vec<_>>();
        if keys.is_empty() || shape(&keys) == shape(before.keys()) {
            return Ok(false);
        }
        self.use_sealer(Sealer::new(keys));
        Ok(true)
    }

    /// The successor of the envelope key that this replica has, as far as it is no hardware's and this one does not have it yet.
    pub async fn next_envelope_key(&self) -> Result<Option<EnvelopeKey>, StoreError> {
        let row = query(
            "SELECT envelope_id, handed FROM envelope_keys WHERE state = 'next' AND handed IS NOT NULL",
        )
        .fetch_optional(self.readers())
        .await?;
        let envelope = self.envelope();
        let Some(row) = row else { return Ok(None) };
        let (id, handed) = (row.text("envelope_id")?, row.bytes("handed")?);
        if envelope.id() == id || envelope.key().is_none() {
            return Ok(None);
        }
        Ok(Some(EnvelopeKey(envelope.unwrap(&purpose_of_hand(&id), &handed).await?)))
    }

    /// Goes on with another envelope key, which the data keys are wrapped under too.
    pub async fn use_envelope(&self, next: Envelope) -> Result<(), StoreError> {
        // It must open what the database has before anything relies on it.
        read_keys(self.readers(), &next, &[]).await?;
        self.replace_envelope(next);
        Ok(())
    }

    /// Says which keys a replica has.
    pub async fn put_envelope_holder(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let (sealer, envelope) = (self.sealer(), self.envelope());
        let newest = sealer.keys().iter().map(|key| key.number).max().unwrap_or(0);
        self.repeatable("put_envelope_holder", || async {
            let mut tx = self.begin().await?;
            query(
                "DELETE FROM envelope_holders WHERE replica_id <> $1 AND replica_id NOT IN (SELECT replica_id FROM replicas)",
            )
            .bind(replica.to_string())
            .execute(&mut *tx)
            .await?;
            query(
                "INSERT INTO envelope_holders (replica_id, envelope_id, newest, sealing) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (replica_id) DO UPDATE SET envelope_id = excluded.envelope_id, newest = excluded.newest, \
                 sealing = excluded.sealing",
            )
            .bind(replica.to_string())
            .bind(envelope.id())
            .bind(newest)
            .bind(sealer.sealing())
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// What a replica last said of its keys would say now: it is said again when this changes.
    pub fn envelope_holding(&self) -> (String, Vec<(i64, bool)>) {
        let keys = self.sealer().keys().iter().map(|key| (key.number, key.current)).collect();
        (self.envelope().id(), keys)
    }

    /// Since when values are sealed in the format of before there were data keys, if they are.
    pub async fn first_format_since(&self) -> Result<Option<Timestamp>, StoreError> {
        let row = query(
            "SELECT made_date FROM data_keys WHERE purpose = 'seal' AND format = 1 AND state = 'current'",
        )
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| row.time("made_date")).transpose()
    }
}
