//! Notes that replicas leave for each other: small values under fixed names.

use jiff::Timestamp;
use serde_json::Value;

use super::{LeaderEpoch, Store, StoreError, dialect::query, leadership, row::Columns as _, settings};

impl Store {
    /// What time it is by the clock of the database, which is the same for every replica.
    pub async fn clock(&self) -> Result<Timestamp, StoreError> {
        query("SELECT {now} AS clock").fetch_one(self.readers()).await?.time("clock")
    }

    /// A note.
    pub async fn note(&self, name: &str) -> Result<Option<Value>, StoreError> {
        let row = query("SELECT setting_value FROM system_settings WHERE setting_name = $1")
            .bind(name)
            .fetch_optional(self.readers())
            .await?;
        row.map(|row| row.json("setting_value")).transpose()
    }

    /// Leaves a note in the place of the one that is there, or, without a value, takes that away. With a leader's epoch that
    /// is no longer in force nothing changes: [`StoreError::Fenced`].
    pub async fn put_note(
        &self,
        name: &str,
        value: Option<&Value>,
        now: Timestamp,
        leader: Option<LeaderEpoch>,
    ) -> Result<(), StoreError> {
        self.repeatable("put_note", || async {
            let mut tx = self.begin().await?;
            if let Some(epoch) = leader
                && !leadership::leads(&mut tx, epoch).await?
            {
                return Err(StoreError::Fenced);
            }
            match value {
                Some(value) => settings::put(&mut tx, name, value, now).await?,
                None => {
                    query("DELETE FROM system_settings WHERE setting_name = $1")
                        .bind(name)
                        .execute(&mut *tx)
                        .await?;
                }
            }
            tx.commit().await
        })
        .await
    }
}
