//! Notifications to administrators: what they should know, whether they read it, what they did; and where each was sent.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Actor, LeaderEpoch, SecurityEvent, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event, leadership,
    row::{Columns as _, int, millis},
};

/// The most events that one look takes.
const MOST_EVENTS: u32 = 500;
/// The most deliveries that wait; what goes beyond is only stored.
const MOST_WAITING: u64 = 1_000;
/// How often a delivery is tried: with the pauses below, for about eight hours.
const TRIES: i64 = 12;
/// The pause after the first failure; each further one is twice as long, up to the longest.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(2);
/// The longest error that is kept, in bytes.
const MAX_ERROR: usize = 512;

/// How urgent a notification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words say it all")]
pub enum Urgency {
    Low,
    Normal,
    High,
    Critical,
}

impl Urgency {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// A way to administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// An HTTP request.
    Webhook,
    /// E-mail.
    Smtp,
}

impl Channel {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Smtp => "smtp",
        }
    }
}

/// A way, and from which urgency on it is used.
pub type Way = (Channel, Urgency);

/// A notification to be stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNotification {
    /// `security`, `system`, … as the schema lists them.
    pub kind: &'static str,
    /// How urgent.
    pub urgency: Urgency,
    /// Notifications with the same key are one, while nobody read it and it is young.
    pub key: String,
    /// One line.
    pub subject: String,
    /// All of it.
    pub content: String,
    /// How many things it tells of.
    pub occurrences: u64,
    /// Whether somebody has to do something.
    pub action_required: bool,
}

/// A stored notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Its number.
    pub id: i64,
    /// When it was made.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// `security`, `system`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `low`, `normal`, `high` or `critical`.
    pub urgency: String,
    /// One line.
    pub subject: String,
    /// All of it.
    pub content: String,
    /// How many things it tells of.
    pub occurrences: u64,
    /// When it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub read_at: Option<Timestamp>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_by: Option<String>,
    /// Whether somebody has to do something.
    pub action_required: bool,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub action_at: Option<Timestamp>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_by: Option<String>,
}

/// A delivery that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What is sent.
    pub notification: Notification,
    /// How often it was tried before.
    pub attempts: u32,
}

/// How deliveries of a channel do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCounts {
    /// Those that wait.
    pub waiting: u64,
    /// Those that were given up.
    pub failed: u64,
}

impl Store {
    /// Makes notifications of the events that nobody was told of, as `compose` says from them and from how many
    /// notifications were sent in the last hour. Returns how many events there were. Only the leader does.
    pub async fn take_notice(
        &self,
        leader: LeaderEpoch,
        channels: &[Way],
        same_for: SignedDuration,
        compose: impl Fn(&[SecurityEvent], u64) -> Vec<NewNotification>,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let waiting = query("SELECT event_id FROM security_events WHERE noticed = FALSE LIMIT 1")
            .fetch_optional(self.readers())
            .await?;
        if waiting.is_none() {
            return Ok(0);
        }
        self.repeatable("take_notice", || async {
            let mut tx = self.begin().await?;
            if !leadership::leads(&mut tx, leader).await? {
                return Err(StoreError::Fenced);
            }
            let events = event::unnoticed(&mut tx, MOST_EVENTS).await?;
            let hour = now.checked_sub(SignedDuration::from_hours(1)).unwrap_or(Timestamp::MIN);
            let recent = query("SELECT COUNT(*) AS n FROM notifications WHERE timestamp > $1")
                .bind(millis(hour))
                .fetch_one(&mut *tx)
                .await?
                .count("n")?;
            for notification in compose(&events, recent) {
                write(&mut tx, &notification, channels, same_for, now).await?;
            }
            event::note_noticed(&mut tx, &events).await?;
            tx.commit().await?;
            Ok(events.len())
        })
        .await
    }

    /// Stores a notification and has it sent. One with the same key that is young and unread is told of again instead.
    pub async fn notify_admins(
        &self,
        notification: &NewNotification,
        channels: &[Way],
        same_for: SignedDuration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.retried("notify_admins", || async {
            let mut tx = self.begin().await?;
            write(&mut tx, notification, channels, same_for, now).await?;
            tx.commit().await
        })
        .await
    }

    /// Notifications, the newest first.
    pub async fn list_notifications(&self, limit: u32) -> Result<Vec<Notification>, StoreError> {
        self.page_notifications(None, limit).await
    }

    /// A page of them: those before one, the newest first.
    pub async fn page_notifications(
        &self,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Notification>, StoreError> {
        let rows = query(
            "SELECT * FROM notifications WHERE notification_id < $1 ORDER BY notification_id DESC LIMIT $2",
        )
        .bind(before.unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(read).collect()
    }

    /// Notes that somebody read a notification, and what they did about it, if anything. Returns it, if there is one.
    pub async fn address_notification(
        &self,
        id: i64,
        action: Option<&str>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<Notification>, StoreError> {
        self.repeatable("address_notification", || async {
            let mut tx = self.begin().await?;
            query("UPDATE notifications SET read_time = $1, read_by = $2 WHERE notification_id = $3 AND read_time IS NULL")
                .bind(millis(now))
                .bind(actor.name())
                .bind(id)
                .execute(&mut *tx)
                .await?;
            if let Some(action) = action {
                let done = query(
                    "UPDATE notifications SET action_time = $1, action_by = $2, action_details = $3 \
                     WHERE notification_id = $4",
                )
                .bind(millis(now))
                .bind(actor.name())
                .bind(action)
                .bind(id)
                .execute(&mut *tx)
                .await?;
                if done.rows_affected() > 0 {
                    let record = Record::new("act_on_notification", "Notification", id, id).notes(action);
                    audit::write(&mut tx, actor, now, &[record]).await?;
                }
            }
            let row = query("SELECT * FROM notifications WHERE notification_id = $1")
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            let found = row.as_ref().map(read).transpose()?;
            tx.commit().await?;
            Ok(found)
        })
        .await
    }

    /// Deliveries of a channel that are due, the oldest first.
    pub async fn due_deliveries(
        &self,
        channel: Channel,
        limit: u32,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, StoreError> {
        let rows = query(
            "SELECT n.*, d.attempts AS attempts FROM notification_deliveries d \
             JOIN notifications n ON n.notification_id = d.notification_id \
             WHERE d.state = 'waiting' AND d.channel = $1 AND d.next_attempt <= $2 ORDER BY d.notification_id LIMIT $3",
        )
        .bind(channel.as_str())
        .bind(millis(now))
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        let delivery = |row: &Row| {
            Ok(Delivery {
                notification: read(row)?,
                attempts: u32::try_from(row.int("attempts")?).unwrap_or(u32::MAX),
            })
        };
        rows.iter().map(delivery).collect()
    }

    /// Notes how a try to deliver went. After so many failures it is given up. Returns whether it is.
    pub async fn note_delivery(
        &self,
        id: i64,
        channel: Channel,
        outcome: Result<(), &str>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let row = query(
            "SELECT attempts FROM notification_deliveries WHERE notification_id = $1 AND channel = $2 \
             AND state = 'waiting' {lock}",
        )
        .bind(id)
        .bind(channel.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(false) };
        let attempts = row.int("attempts")? + 1;
        let (state, error) = match outcome {
            Ok(()) => ("delivered", None),
            Err(why) if attempts >= TRIES => ("failed", Some(why)),
            Err(why) => ("waiting", Some(why)),
        };
        let error = error.map(|why| why[..why.floor_char_boundary(MAX_ERROR)].to_owned());
        query(
            "UPDATE notification_deliveries SET state = $1, attempts = $2, next_attempt = $3, last_error = $4, \
             delivered_at = $5 WHERE notification_id = $6 AND channel = $7",
        )
        .bind(state)
        .bind(attempts)
        .bind(millis(now.checked_add(pause(attempts)).unwrap_or(now)))
        .bind(error)
        .bind((state == "delivered").then(|| millis(now)))
        .bind(id)
        .bind(channel.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(state == "failed")
    }

    /// How deliveries of a channel do.
    pub async fn delivery_counts(&self, channel: Channel) -> Result<DeliveryCounts, StoreError> {
        let row = query(
            "SELECT CAST(COALESCE(SUM(CASE WHEN state = 'waiting' THEN 1 ELSE 0 END), 0) AS BIGINT) AS waiting, \
             CAST(COALESCE(SUM(CASE WHEN state = 'failed' THEN 1 ELSE 0 END), 0) AS BIGINT) AS failed \
             FROM notification_deliveries WHERE channel = $1 AND state <> 'delivered'",
        )
        .bind(channel.as_str())
        .fetch_one(self.readers())
        .await?;
        Ok(DeliveryCounts { waiting: row.count("waiting")?, failed: row.count("failed")? })
    }
}

/// The pause after so many tries.
fn pause(attempts: i64) -> SignedDuration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(20);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

async fn write(
    db: &mut Connection,
    new: &NewNotification,
    channels: &[Way],
    same_for: SignedDuration,
    now: Timestamp,
) -> Result<(), StoreError> {
    let young = now.checked_sub(same_for).unwrap_or(Timestamp::MIN);
    db.serialise("notifications").await?;
    let same = query(
        "SELECT notification_id FROM notifications WHERE dedup_key = $1 AND read_time IS NULL AND timestamp > $2 \
         ORDER BY notification_id DESC LIMIT 1",
    )
    .bind(&new.key)
    .bind(millis(young))
    .fetch_optional(&mut *db)
    .await?;
    if let Some(row) = same {
        query("UPDATE notifications SET occurrences = occurrences + $1 WHERE notification_id = $2")
            .bind(int(new.occurrences))
            .bind(row.int("notification_id")?)
            .execute(&mut *db)
            .await?;
        return Ok(());
    }
    let row = query(
        "INSERT INTO notifications (timestamp, notification_type, urgency, dedup_key, subject, content, occurrences, \
         action_required) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING notification_id",
    )
    .bind(millis(now))
    .bind(new.kind)
    .bind(new.urgency.as_str())
    .bind(&new.key)
    .bind(&new.subject)
    .bind(&new.content)
    .bind(int(new.occurrences))
    .bind(new.action_required)
    .fetch_one(&mut *db)
    .await?;
    let id = row.int("notification_id")?;
    for (channel, _) in channels.iter().filter(|(_, minimum)| new.urgency >= *minimum) {
        let waiting = query(
            "SELECT COUNT(*) AS n FROM notification_deliveries WHERE state = 'waiting' AND channel = $1",
        )
        .bind(channel.as_str())
        .fetch_one(&mut *db)
        .await?;
        if waiting.count("n")? >= MOST_WAITING {
            continue;
        }
        query(
            "INSERT INTO notification_deliveries (notification_id, channel, state, next_attempt) \
             VALUES ($1, $2, 'waiting', $3)",
        )
        .bind(id)
        .bind(channel.as_str())
        .bind(millis(now))
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Forgets notifications that are older than a time.
pub(super) async fn prune(db: &mut Connection, before: i64) -> Result<u64, StoreError> {
    query(
        "DELETE FROM notification_deliveries WHERE notification_id IN \
         (SELECT notification_id FROM notifications WHERE timestamp < $1)",
    )
    .bind(before)
    .execute(&mut *db)
    .await?;
    let gone = query("DELETE FROM notifications WHERE timestamp < $1").bind(before).execute(&mut *db).await?;
    Ok(gone.rows_affected())
}

fn read(row: &Row) -> Result<Notification, StoreError> {
    Ok(Notification {
        id: row.int("notification_id")?,
        time: row.time("timestamp")?,
        kind: row.text("notification_type")?,
        urgency: row.text("urgency")?,
        subject: row.text("subject")?,
        content: row.text("content")?,
        occurrences: row.count("occurrences")?,
        read_at: row.maybe_time("read_time")?,
        read_by: row.maybe_text("read_by")?,
        action_required: row.flag("action_required")?,
        action: row.maybe_text("action_details")?,
        action_at: row.maybe_time("action_time")?,
        action_by: row.maybe_text("action_by")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let pauses: Vec<i64> = [1, 2, 3, 10, 11, 1000].map(|n| pause(n).as_secs()).to_vec();
        assert_eq!(pauses, [10, 20, 40, 5120, 7200, 7200]);
    }
}
