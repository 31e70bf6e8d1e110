//! Challenges: each is a row once it is answered, or once it is clear that it will not be.

use horizon_model::{Incarnation, ServerId};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ChannelLease, NewEvent, Severity, Source, Store, StoreError, changed, channels,
    dialect::{Connection, query},
    effects, event,
    row::{Columns as _, millis},
};

/// The longest detail that is kept of a challenge, in characters.
const MAX_DETAIL: usize = 512;

/// One challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChallengeId(pub Uuid);

/// What a challenge looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeType {
    /// Whether the appliance holds the verification secret.
    Hmac,
    /// Whether it holds the server's key, over this very connection.
    PublicKey,
    /// What its machine is like now.
    Identity,
    /// Whether the capability does what it should.
    Capability,
    /// Whether what it reports fits what was granted.
    Behavior,
}

impl ChallengeType {
    /// The name that the database uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "hmac",
            Self::PublicKey => "public_key",
            Self::Identity => "identity_verification",
            Self::Capability => "capability_check",
            Self::Behavior => "behavior_verification",
        }
    }

    /// Whether a failure speaks against the identity of the appliance. That its port cannot be reached may be a firewall's
    /// doing.
    fn incriminates(self) -> bool {
        self != Self::Capability
    }
}

/// A challenge with its result.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Which.
    pub challenge: ChallengeId,
    /// What it looked at.
    pub kind: ChallengeType,
    /// When it was put.
    pub asked: Timestamp,
    /// Whether the answer is right.
    pub right: bool,
    /// What was found, in words; empty where there is no more to say.
    pub detail: String,
    /// How many failures in a row quarantine the server.
    pub tolerated: u16,
    /// Whether the answer proves that the appliance has the secret that was issued last.
    pub newest_secret: bool,
    /// The start of the appliance's process that answers, if it has proved nothing since it attached.
    pub arrival: Option<Incarnation>,
}

/// A challenge of the past.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChallengeRecord {
    /// When it was put.
    pub asked: Timestamp,
    /// What it looked at.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether the answer was right.
    pub right: bool,
    /// What was found.
    pub detail: Option<String>,
}

impl Store {
    /// Records a challenge with its answer: `Verified` follows it. The `tolerated`th wrong one in a row quarantines the server
    /// and raises an event. Only the first answer counts; returns whether this was it.
    pub async fn note_challenge(
        &self,
        server: ServerId,
        lease: ChannelLease,
        answered: &Answered,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let detail: Option<String> = Some(answered.detail.chars().take(MAX_DETAIL).collect::<String>());
        let detail = detail.filter(|detail| !detail.is_empty());
        let (first, raised) = self
            .retried("note_challenge", || async {
                let mut tx = self.begin().await?;
                if !channels::hold(&mut tx, server, lease).await? {
                    return Ok((false, None));
                }
                let done = query(
                    "INSERT INTO verification_challenges (challenge_id, server_id, challenge_time, challenge_type, \
                     response_time, verification_success, detail) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                     ON CONFLICT (challenge_id) DO NOTHING",
                )
                .bind(answered.challenge.0.to_string())
                .bind(server.to_string())
                .bind(millis(answered.asked))
                .bind(answered.kind.as_str())
                .bind(millis(now))
                .bind(answered.right)
                .bind(detail.as_deref())
                .execute(&mut *tx)
                .await?;
                if done.rows_affected() == 0 {
                    return Ok((false, None));
                }
                let raised = judge(&mut tx, server, answered, now).await?;
                tx.commit().await?;
                Ok::<_, StoreError>((true, raised))
            })
            .await?;
        if let Some(kind) = raised {
            self.inner.metrics.security_event(kind);
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
                raise(&mut tx, server, kind, Severity::High, why, now).await?;
            }
            tx.commit().await
        })
        .await?;
        self.inner.metrics.security_event(kind);
        Ok(())
    }

    /// A server's newest challenges, the newest first.
    pub async fn list_challenges(
        &self,
        server: ServerId,
        limit: u32,
    ) -> Result<Vec<ChallengeRecord>, StoreError> {
        let rows = query(
            "SELECT * FROM verification_challenges WHERE server_id = $1 AND response_time IS NOT NULL \
             ORDER BY challenge_time DESC, challenge_id DESC LIMIT $2",
        )
        .bind(server.to_string())
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ChallengeRecord {
                    asked: row.time("challenge_time")?,
                    kind: row.text("challenge_type")?,
                    right: row.flag("verification_success")?,
                    detail: row.maybe_text("detail")?,
                })
            })
            .collect()
    }
}

/// What an answer means for the server. The event that it raised.
async fn judge(
    db: &mut Connection,
    server: ServerId,
    answered: &Answered,
    now: Timestamp,
) -> Result<Option<&'static str>, StoreError> {
    let kind = answered.kind;
    if answered.right {
        // That its port can be reached, or that its reports fit, proves no secret.
        if matches!(kind, ChallengeType::Hmac | ChallengeType::PublicKey | ChallengeType::Identity) {
            let row = query(
                "UPDATE servers SET verified = TRUE, last_verified = $1, \
                 reissue_secret = CASE WHEN $2 THEN FALSE ELSE reissue_secret END WHERE server_id = $3 \
                 RETURNING doubted_incarnation",
            )
            .bind(millis(now))
            .bind(answered.newest_secret)
            .bind(server.to_string())
            .fetch_one(&mut *db)
            .await?;
            if let (Some(doubted), Some(arrival)) =
                (row.maybe_parsed("doubted_incarnation")?, answered.arrival)
            {
                return expose_copy(db, server, doubted, arrival, now).await;
            }
        }
        return Ok(None);
    }
    let why = match kind {
        ChallengeType::Behavior => "its appliance reports what was never granted".to_owned(),
        ChallengeType::Capability => "its tunnel no longer answers".to_owned(),
        kind => format!("its appliance answered a challenge wrongly ({})", kind.as_str()),
    };
    if !kind.incriminates() {
        let event = "capability_check_failed";
        raise(db, server, event, Severity::Medium, &why, now).await?;
        return Ok(Some(event));
    }
    query("UPDATE servers SET verified = FALSE WHERE server_id = $1")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    if failures_in_a_row(db, server, answered.tolerated).await? < answered.tolerated.max(1) {
        effects::refresh_server(db, &server.to_string()).await?;
        return Ok(None);
    }
    let before = query("SELECT requires_verification, doubted_incarnation FROM servers WHERE server_id = $1")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    // Whatever else it waits for is not forgotten over this.
    let alone = !before.flag("requires_verification")? || before.maybe_text("doubted_incarnation")?.is_some();
    distrust(db, server, &why).await?;
    if let Some(newcomer) = answered.arrival.filter(|_| alone) {
        query("UPDATE servers SET doubted_incarnation = $1 WHERE server_id = $2")
            .bind(newcomer.to_string())
            .bind(server.to_string())
            .execute(&mut *db)
            .await?;
    }
    raise(db, server, "challenge_failed", Severity::High, &why, now).await?;
    Ok(Some("challenge_failed"))
}

/// Whoever holds the secret in force has arrived: if the server waits only because another start of its process came before
/// without that secret, that one was a copy, or a snapshot that was rolled back. It is what is shut out, not the server.
async fn expose_copy(
    db: &mut Connection,
    server: ServerId,
    doubted: Incarnation,
    arrival: Incarnation,
    now: Timestamp,
) -> Result<Option<&'static str>, StoreError> {
    if doubted == arrival {
        return Ok(None);
    }
    query(
        "UPDATE servers SET doubted_incarnation = NULL, requires_verification = FALSE, verification_reason = NULL, \
         pending_digest = NULL WHERE server_id = $1",
    )
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await?;
    let what = format!(
        "what answered wrongly as incarnation {doubted} was a copy: the appliance itself has answered since"
    );
    raise(db, server, "copy_exposed", Severity::Critical, &what, now).await?;
    Ok(Some("copy_exposed"))
}

async fn distrust(db: &mut Connection, server: ServerId, why: &str) -> Result<(), StoreError> {
    // What is pending is the identity as it is, unless a change of it already waits.
    query(
        "UPDATE servers SET verified = FALSE, requires_verification = TRUE, verification_reason = $1, \
         pending_digest = COALESCE(pending_digest, identity_digest), doubted_incarnation = NULL WHERE server_id = $2",
    )
    .bind(why)
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await
}

/// How many of a server's newest answers that count are wrong, up to a count.
async fn failures_in_a_row(db: &mut Connection, server: ServerId, most: u16) -> Result<u16, StoreError> {
    let rows = query(
        "SELECT verification_success FROM verification_challenges WHERE server_id = $1 AND response_time IS NOT NULL \
         AND challenge_type <> 'capability_check' ORDER BY response_time DESC, challenge_id DESC LIMIT $2",
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
    severity: Severity,
    why: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let event = NewEvent {
        kind,
        severity,
        source: Source::Server(server),
        address: None,
        description: format!("server {server}: {why}"),
        data: serde_json::Value::Null,
    };
    event::write(db, &event, now).await
}
