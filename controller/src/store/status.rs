//! Statuses of resources, as the engine last wrote them.

use std::collections::{BTreeMap, HashMap};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::{
    LeaderEpoch, Store, StoreError,
    dialect::{Builder, MAX_BINDS, query},
    leadership,
    row::{Columns as _, millis},
};

impl Store {
    /// Writes statuses in one transaction. Those of resources that are gone are passed over. With a leader's epoch that is no
    /// longer in force nothing is written: [`StoreError::Fenced`].
    pub async fn put_statuses(
        &self,
        statuses: &[(Uuid, Value)],
        now: Timestamp,
        leader: Option<LeaderEpoch>,
    ) -> Result<(), StoreError> {
        let _timed = self.timed("put_statuses");
        self.repeatable("put_statuses", || self.write_statuses(statuses, now, leader)).await
    }

    async fn write_statuses(
        &self,
        statuses: &[(Uuid, Value)],
        now: Timestamp,
        leader: Option<LeaderEpoch>,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if let Some(epoch) = leader
            && !leadership::leads(&mut tx, epoch).await?
        {
            return Err(StoreError::Fenced);
        }
        // One row for each, in one order, so that two that write many do not wait for each other in a circle.
        let last: BTreeMap<_, _> = statuses.iter().map(|(uid, status)| (*uid, status)).collect();
        let rows: Vec<_> = last.into_iter().collect();
        for chunk in rows.chunks(MAX_BINDS / 2 - 1) {
            let mut insert = Builder::new(
                "INSERT INTO resource_status (uid, status, updated_at) SELECT r.uid, v.column2, ",
            );
            insert.push_bind(millis(now)).push(" FROM (");
            insert.push_values(chunk, |row, (uid, status)| {
                row.push_bind(uid.to_string()).push_bind(status.to_string());
            });
            insert.push(
                ") AS v JOIN resources r ON r.uid = v.column1 WHERE TRUE \
                 ON CONFLICT (uid) DO UPDATE SET status = excluded.status, updated_at = excluded.updated_at",
            );
            insert.build().execute(&mut *tx).await?;
        }
        tx.commit().await
    }

    /// The status of a resource in force.
    pub async fn status_of(&self, uid: Uuid) -> Result<Option<Value>, StoreError> {
        let row = query(
            "SELECT s.status FROM resource_status s JOIN resources r ON r.uid = s.uid \
             WHERE s.uid = $1 AND r.deleted_at IS NULL",
        )
        .bind(uid.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| row.json("status")).transpose()
    }

    /// The statuses of these resources, of those that are in force and have one. One that cannot be read is an error of its
    /// own.
    pub async fn statuses_of(
        &self,
        uids: &[Uuid],
    ) -> Result<Vec<(Uuid, Result<Value, StoreError>)>, StoreError> {
        let mut statuses = Vec::new();
        for chunk in uids.chunks(MAX_BINDS) {
            let mut select = Builder::new(
                "SELECT s.uid, s.status FROM resource_status s JOIN resources r ON r.uid = s.uid \
                 WHERE r.deleted_at IS NULL AND s.uid IN ",
            );
            select.push_list(chunk.iter().map(Uuid::to_string));
            for row in select.build().fetch_all(self.readers()).await? {
                statuses.push((row.parsed("uid")?, row.json("status")));
            }
        }
        Ok(statuses)
    }

    /// The statuses of all resources in force, each as the text of its JSON.
    pub async fn status_texts(&self) -> Result<Vec<(Uuid, String)>, StoreError> {
        let mut rows = query(
            "SELECT s.uid, s.status FROM resource_status s JOIN resources r ON r.uid = s.uid WHERE r.deleted_at IS NULL",
        )
        .fetch(self.readers());
        let mut texts = Vec::new();
        while let Some(row) = rows.try_next().await? {
            texts.push((row.parsed("uid")?, row.text("status")?));
        }
        Ok(texts)
    }

    /// The statuses of all resources in force.
    pub async fn statuses(&self) -> Result<HashMap<Uuid, Value>, StoreError> {
        let read = |(uid, text): (Uuid, String)| {
            let why = |e: serde_json::Error| StoreError::Corrupt { column: "status", why: e.to_string() };
            Ok((uid, serde_json::from_str(&text).map_err(why)?))
        };
        self.status_texts().await?.into_iter().map(read).collect()
    }
}
