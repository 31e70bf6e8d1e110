//! Challenges: each is a row once it is answered.

use horizon_model::ServerId;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ChannelLease, NewEvent, Severity, Source, Store, StoreError, changed, channels,
    dialect::{Connection, query},
    effects, event,
    row::{Columns as _, millis},
};

/// One challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChallengeId(pub Uuid);

/// A challenge that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Which.
    pub challenge: ChallengeId,
    /// When it was put.
    pub asked: Timestamp,
    /// Whether the answer is right.
    pub right: bool,
    /// How many wrong answers in a row raise an event.
    pub tolerated: u16,
}

impl Store {
    /// Records a challenge with its answer: `Verified` follows it. A wrong answer quarantines the server, and raises an event
    /// when it is the `tolerated`th in a row. Only the first answer counts; returns whether this was it.
    pub async fn note_challenge(
        &self,
        server: ServerId,
        lease: ChannelLease,
        answered: &Answered,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (first, raised) = self
            .retried("note_challenge", || async {
                let mut tx = self.begin().await?;
                if !channels::hold(&mut tx, server, lease).await? {
                    return Ok((false, false));
                }
                let done = query(
                    "INSERT INTO verification_challenges (challenge_id, server_id, challenge_time, challenge_type, \
                     response_time, verification_success) VALUES ($1, $2, $3, 'hmac', $4, $5) \
                     ON CONFLICT (challenge_id) DO NOTHING",
                )
                .bind(answered.challenge.0.to_string())
                .bind(server.to_string())
                .bind(millis(answered.asked))
                .bind(millis(now))
                .bind(answered.right)
                .execute(&mut *tx)
                .await?;
                if done.rows_affected() == 0 {
                    return Ok((false, false));
                }
                let raised = judge(&mut tx, server, answered.right, answered.tolerated, now).await?;
                tx.commit().await?;
                Ok::<_, StoreError>((true, raised))
            })
            .await?;
        if raised {
            self.inner.metrics.security_event("challenge_failed");
        }
        Ok(first)
    }

    /// Records that a server's appliance could not prove that it holds the verification secret: `Verified` no longer holds,
    /// and the server takes no new sessions until its identity is approved.
    pub async fn distrust_server(
        &self,
        server: ServerId,
        lease: ChannelLease,
        kind: &'static str,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.retried("distrust_server", || async {
            let mut tx = self.begin().await?;
            if channels::hold(&mut tx, server, lease).await? {
                distrust(&mut tx, server, why).await?;
                raise(&mut tx, server, kind, why, now).await?;
            }
            tx.commit().await
        })
        .await?;
        self.inner.metrics.security_event(kind);
        Ok(())
    }
}

/// What an answer means for the server. Whether it raised an event.
async fn judge(
    db: &mut Connection,
    server: ServerId,
    right: bool,
    tolerated: u16,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if right {
        query("UPDATE servers SET verified = TRUE, last_verified = $1, reissue_secret = FALSE WHERE server_id = $2")
            .bind(millis(now))
            .bind(server.to_string())
            .execute(db)
            .await?;
        return Ok(false);
    }
    let why = "its appliance answered a challenge wrongly";
    distrust(db, server, why).await?;
    let raised = failures_in_a_row(db, server, tolerated).await? >= tolerated;
    if raised {
        raise(db, server, "challenge_failed", why, now).await?;
    }
    Ok(raised)
}

async fn distrust(db: &mut Connection, server: ServerId, why: &str) -> Result<(), StoreError> {
    // What is pending is the identity as it is, unless a change of it already waits.
    query(
        "UPDATE servers SET verified = FALSE, requires_verification = TRUE, verification_reason = $1, \
         pending_digest = COALESCE(pending_digest, identity_digest) WHERE server_id = $2",
    )
    .bind(why)
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await
}

/// How many of a server's newest answers are wrong, up to a count.
async fn failures_in_a_row(db: &mut Connection, server: ServerId, most: u16) -> Result<u16, StoreError> {
    let rows = query(
        "SELECT verification_success FROM verification_challenges WHERE server_id = $1 AND response_time IS NOT NULL \
         ORDER BY response_time DESC, challenge_id DESC LIMIT $2",
    )
    .bind(server.to_string())
    .bind(i64::from(most.max(1)))
    .fetch_all(&mut *db)
    .await?;
    let mut failures = 0;
    for row in &rows {
        if row.flag("verification_success")? {
            break;
        }
        failures += 1;
    }
    Ok(failures)
}

async fn raise(
    db: &mut Connection,
    server: ServerId,
    kind: &'static str,
    why: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let event = NewEvent {
        kind,
        severity: Severity::High,
        source: Source::Server(server),
        address: None,
        description: format!("server {server}: {why}"),
        data: serde_json::Value::Null,
    };
    event::write(db, &event, now).await
}
