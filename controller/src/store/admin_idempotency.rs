//! What requests with an idempotency key were answered, so that one that is repeated does nothing twice.

use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use super::{
    Store, StoreError,
    dialect::{Connection, query},
    row::{Columns as _, millis},
    seal::Place,
};
use crate::account::sha256;

/// For how long answers are kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// For how long a request may be under way before another with its key may try.
const UNDER_WAY: SignedDuration = SignedDuration::from_secs(120);

/// A request with an idempotency key.
#[derive(Clone, Debug)]
pub struct IdempotentRequest {
    /// Whose.
    pub owner: String,
    /// The key.
    pub key: String,
    /// The digest of the request.
    pub digest: [u8; 32],
}

/// What is known of a request with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// Nothing: it is to be carried out.
    New,
    /// It was answered with this status and body.
    Answered(u16, Zeroizing<Vec<u8>>),
    /// It is under way.
    UnderWay,
    /// Another request had the key.
    Other,
}

impl IdempotentRequest {
    /// Where its answer is sealed.
    fn place(&self) -> [u8; 16] {
        Self::place_of(&self.owner, &self.key)
    }

    /// The same of a row.
    pub(super) fn place_of(owner: &str, key: &str) -> [u8; 16] {
        let mut place = [0; 16];
        place.copy_from_slice(&sha256(format!("{owner}\n{key}").as_bytes())[..16]);
        place
    }
}

impl Store {
    /// Claims a key for a request, or says what the request with it was answered.
    pub async fn claim_idempotency(
        &self,
        request: &IdempotentRequest,
        now: Timestamp,
    ) -> Result<Repeated, StoreError> {
        self.retried("claim_idempotency", || async {
            let mut tx = self.begin().await?;
            query("DELETE FROM idempotency_keys WHERE owner = $1 AND idempotency_key = $2 AND expiry_time <= $3")
                .bind(&request.owner)
                .bind(&request.key)
                .bind(millis(now))
                .execute(&mut *tx)
                .await?;
            // The digest of a request with a password in it would let guess that: it is sealed as the answer is.
            let (sealer, place) = (self.sealer(), request.place());
            let sealed = sealer.seal_bytes(Place::Request, &place, &request.digest);
            let claimed = query(
                "INSERT INTO idempotency_keys (owner, idempotency_key, request_digest, created_date, expiry_time, digest_key) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (owner, idempotency_key) DO NOTHING",
            )
            .bind(&request.owner)
            .bind(&request.key)
            .bind(sealed.bytes)
            .bind(millis(now))
            .bind(millis(now.checked_add(UNDER_WAY).unwrap_or(Timestamp::MAX)))
            .bind(sealed.key)
            .execute(&mut *tx)
            .await?;
            if claimed.rows_affected() == 1 {
                tx.commit().await?;
                return Ok(Repeated::New);
            }
            let row = query(
                "SELECT request_digest, status, answer FROM idempotency_keys WHERE owner = $1 AND idempotency_key = $2",
            )
            .bind(&request.owner)
            .bind(&request.key)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(Repeated::UnderWay) };
            if !sealer.is_digest(Place::Request, &place, &row.bytes("request_digest")?, &request.digest)? {
                return Ok(Repeated::Other);
            }
            let Some((status, sealed)) = row.maybe_int("status")?.zip(row.maybe_bytes("answer")?) else {
                return Ok(Repeated::UnderWay);
            };
            let answer = sealer.open_bytes(Place::Answer, &place, &sealed)?;
            Ok(Repeated::Answered(u16::try_from(status).unwrap_or(500), answer))
        })
        .await
    }

    /// Keeps what a request was answered; without an answer its key is free again.
    pub async fn settle_idempotency(
        &self,
        request: &IdempotentRequest,
        answer: Option<(u16, &[u8])>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("settle_idempotency", || async {
            let mut tx = self.begin().await?;
            let row = query(
                "SELECT request_digest, status FROM idempotency_keys WHERE owner = $1 AND idempotency_key = $2 {lock}",
            )
            .bind(&request.owner)
            .bind(&request.key)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(()) };
            let (sealer, place) = (self.sealer(), request.place());
            // Another request may have the key since.
            if !sealer.is_digest(Place::Request, &place, &row.bytes("request_digest")?, &request.digest)? {
                return Ok(());
            }
            match answer {
                Some((status, body)) => {
                    let sealed = sealer.seal_bytes(Place::Answer, &place, body);
                    query(
                        "UPDATE idempotency_keys SET status = $3, answer = $4, expiry_time = $5, answer_key = $6 \
                         WHERE owner = $1 AND idempotency_key = $2",
                    )
                    .bind(&request.owner)
                    .bind(&request.key)
                    .bind(i64::from(status))
                    .bind(sealed.bytes)
                    .bind(millis(now.checked_add(KEPT).unwrap_or(Timestamp::MAX)))
                    .bind(sealed.key)
                }
                None => query(
                    "DELETE FROM idempotency_keys WHERE owner = $1 AND idempotency_key = $2 AND status IS NULL",
                )
                .bind(&request.owner)
                .bind(&request.key),
            }
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }
}

/// Forgets answers whose time is over, in the caller's transaction.
pub(super) async fn forget_old(db: &mut Connection, now: Timestamp) -> Result<u64, StoreError> {
    let done = query("DELETE FROM idempotency_keys WHERE expiry_time <= $1")
        .bind(millis(now))
        .execute(&mut *db)
        .await?;
    Ok(done.rows_affected())
}
