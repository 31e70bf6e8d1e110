//! Scheduled tasks: what the leader does from time to time, when it is due next, and how it went.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    LeaderEpoch, Store, StoreError,
    dialect::{Connection, Row, query},
    leadership,
    row::{Columns as _, millis},
};

/// The longest outcome that is kept, in bytes.
const MAX_OUTPUT: usize = 1024;
/// The pause before the first retry; each further one is twice as long.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(15);

/// By how much the clocks of two leaders may differ.
const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(300);

/// A task as the program knows it.
#[derive(Clone, Copy, Debug)]
pub struct TaskSpec {
    /// Its name.
    pub name: &'static str,
    /// `maintenance`, `cleanup`, `security_scan`, `report_generation`, … as the schema lists them.
    pub kind: &'static str,
    /// What it does, for people.
    pub description: &'static str,
    /// How often.
    pub every: SignedDuration,
    /// How soon for the first time.
    pub first: SignedDuration,
    /// How often it is tried again when it fails, before it waits for its next time.
    pub retries: u32,
}

/// A task as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What kind of task it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it runs.
    #[schema(value_type = Object)]
    pub schedule: Value,
    /// What it does.
    pub description: String,
    /// When it is due.
    #[schema(value_type = String)]
    pub next_run: Timestamp,
    /// When it last began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_run: Option<Timestamp>,
    /// `running`, `succeeded` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<String>,
    /// What it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_output: Option<String>,
    /// How often it was tried again since it last worked.
    pub retries: u64,
    /// How often it is at most, before it waits for its next time.
    pub max_retries: u64,
}

impl Store {
    /// Writes down a task. When it is due stays as it was.
    pub async fn declare_task(&self, task: &TaskSpec, now: Timestamp) -> Result<(), StoreError> {
        let every = serde_json::json!({ "every": format!("{:#}", task.every) });
        let first = now.checked_add(task.first).unwrap_or(now);
        self.repeatable("declare_task", || async {
            let mut tx = self.begin().await?;
            query(
                "INSERT INTO scheduled_tasks (task_name, task_type, schedule, description, next_run, max_retries) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task_name) DO UPDATE SET task_type = excluded.task_type, \
                 schedule = excluded.schedule, description = excluded.description, max_retries = excluded.max_retries",
            )
            .bind(task.name)
            .bind(task.kind)
            .bind(every.to_string())
            .bind(task.description)
            .bind(millis(first))
            .bind(task.retries)
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// Takes a task that is due, for the leader. Returns whether it was due.
    pub async fn begin_task(
        &self,
        task: &TaskSpec,
        leader: LeaderEpoch,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        if !leadership::leads(&mut tx, leader).await? {
            return Err(StoreError::Fenced);
        }
        // No task waits for longer than this: a later time was written by a clock that was set back since.
        let latest = now.checked_add(task.every.max(task.first) + CLOCKS_APART).unwrap_or(Timestamp::MAX);
        // Should this leader end now, the next one finds it due again after a while.
        let done = query(
            "UPDATE scheduled_tasks SET last_run = $1, last_status = 'running', next_run = $2 \
             WHERE task_name = $3 AND (next_run <= $1 OR next_run > $4)",
        )
        .bind(millis(now))
        .bind(millis(now.checked_add(task.every).unwrap_or(now)))
        .bind(task.name)
        .bind(millis(latest))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes how a task went. One that failed is due again soon, so many times, and then at its next time. Returns whether
    /// it failed for good.
    pub async fn finish_task(
        &self,
        task: &TaskSpec,
        leader: LeaderEpoch,
        outcome: Result<String, String>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        if !leadership::leads(&mut tx, leader).await? {
            return Err(StoreError::Fenced);
        }
        let retries = retries(&mut tx, task.name).await?;
        let (status, output, retries, next) = match outcome {
            Ok(said) => ("succeeded", said, 0, task.every),
            Err(why) if retries < task.retries => {
                ("failed", why, retries + 1, FIRST_RETRY.saturating_mul(1 << retries.min(16)).min(task.every))
            }
            Err(why) => ("failed", why, 0, task.every),
        };
        let given_up = status == "failed" && retries == 0;
        query(
            "UPDATE scheduled_tasks SET last_status = $1, last_output = $2, retry_count = $3, next_run = $4 \
             WHERE task_name = $5",
        )
        .bind(status)
        .bind(&output[..output.floor_char_boundary(MAX_OUTPUT)])
        .bind(retries)
        .bind(millis(now.checked_add(next).unwrap_or(now)))
        .bind(task.name)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(given_up)
    }

    /// The tasks, by name.
    pub async fn list_tasks(&self) -> Result<Vec<Task>, StoreError> {
        let rows =
            query("SELECT * FROM scheduled_tasks ORDER BY task_name").fetch_all(self.readers()).await?;
        rows.iter().map(read).collect()
    }
}

async fn retries(db: &mut Connection, name: &str) -> Result<u32, StoreError> {
    let row = query("SELECT retry_count FROM scheduled_tasks WHERE task_name = $1 {lock}")
        .bind(name)
        .fetch_optional(&mut *db)
        .await?;
    let count = row.map(|row| row.int("retry_count")).transpose()?.unwrap_or(0);
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

fn read(row: &Row) -> Result<Task, StoreError> {
    Ok(Task {
        name: row.text("task_name")?,
        kind: row.text("task_type")?,
        schedule: row.json("schedule")?,
        description: row.text("description")?,
        next_run: row.time("next_run")?,
        last_run: row.maybe_time("last_run")?,
        last_status: row.maybe_text("last_status")?,
        last_output: row.maybe_text("last_output")?,
        retries: row.count("retry_count")?,
        max_retries: row.count("max_retries")?,
    })
}
