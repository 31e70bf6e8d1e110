//! Handing a personal key over to a person: a string and a code, which reach them on two ways. The key's secret is made when both
//! are presented, sealed to whoever presents them, and kept only as a hash.

use data_encoding::Encoding;
use horizon_crds::KindName;
use horizon_model::{KeyId, PublicKey, Secret};
use horizon_tls::hpke;
use horizon_wire::{handing, heartbeat::equal, key::sha256};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Actor, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event,
    personal::SALT_BYTES,
    rotation_versions,
    row::{Columns as _, millis},
    seal::{Place, random},
};

/// How often a code may be tried.
const MAX_ATTEMPTS: u32 = 5;
/// For how long a hand-over may be open at most.
const MAX_HANDOVER: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Characters of a code, of 5 bits each: with five tries, one in 200 thousand million is guessed.
const CODE_CHARACTERS: usize = 8;

/// A hand-over that was just made.
#[derive(Clone, Debug)]
pub struct NewHandover {
    /// Which.
    pub id: Uuid,
    /// The secret of its string.
    pub secret: Secret,
    /// The code, to be told in another way.
    pub code: Zeroizing<String>,
    /// Until when it is open.
    pub expires: Timestamp,
}

/// Why no hand-over was made.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// There is no such key, or it has ended.
    #[error("the key has ended, or there is none")]
    Ended,
    /// The key is in use.
    #[error("the key is in use already")]
    InUse,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a hand-over was not claimed. All but `Unknown` and `Store` are told only to whoever has the string.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// No such string.
    #[error("the hand-over is not known")]
    Unknown,
    /// Another code.
    #[error("the code is another one; {left} tries are left")]
    WrongCode {
        /// How many.
        left: u32,
    },
    /// It was tried too often.
    #[error("the code was tried too often: the hand-over has ended")]
    Exhausted,
    /// Its time is over, another was made since, or the key is in use.
    #[error("the hand-over has ended")]
    Ended,
    /// Somebody else has the key.
    #[error("the key was handed over at {0} already, to another device")]
    Taken(Timestamp),
    /// Nothing can be sealed to what the device sent.
    #[error("the device sent no usable wrapping key")]
    NoWrapping,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

macro_rules! of_sqlx {
    ($($error:ty),+) => {
        $(impl From<sqlx::Error> for $error {
            fn from(e: sqlx::Error) -> Self {
                Self::Store(e.into())
            }
        })+
    };
}
of_sqlx!(HandoverError, ClaimError);

/// A claim of a hand-over.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Which.
    pub id: Uuid,
    /// The secret of its string.
    pub secret: &'a Secret,
    /// The code, as it was typed.
    pub code: &'a str,
    /// What the key is sealed to.
    pub wrapping: &'a [u8; 32],
    /// The key the device proved in TLS.
    pub device: PublicKey,
}

/// Crockford's base32: no letter that is taken for another, in either case.
fn alphabet() -> Encoding {
    let mut specification = data_encoding::Specification::new();
    specification.symbols.push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    specification.encoding().expect("32 symbols are an alphabet")
}

/// A code as people type it: case, spaces and hyphens do not matter, nor do letters that look like digits.
fn normal(code: &str) -> Zeroizing<String> {
    let letters = code.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    });
    Zeroizing::new(letters.take(handing::MAX_CODE_BYTES).collect())
}

struct Open {
    key: KeyId,
    code_hash: Zeroizing<Vec<u8>>,
    code_salt: Vec<u8>,
    attempts: u32,
}

impl Store {
    /// Makes a hand-over of a key that nobody uses yet. One that was made before for it ends.
    pub async fn hand_over(
        &self,
        key: KeyId,
        open_for: SignedDuration,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<NewHandover, HandoverError> {
        let bytes: [u8; CODE_CHARACTERS * 5 / 8] = random();
        let plain = Zeroizing::new(alphabet().encode(&bytes));
        let salt: [u8; SALT_BYTES] = random();
        let code_hash = self.hash_text(&plain, salt.to_vec()).await?;
        let (id, secret) = (Uuid::now_v7(), Secret::new(random()));
        let expires = now.checked_add(open_for.min(MAX_HANDOVER)).unwrap_or(now);
        self.retried("hand_over", || async {
            let mut tx = self.begin().await?;
            let name = open_key(&mut tx, key, now).await?;
            query("UPDATE key_handovers SET ended_date = $1 WHERE key_id = $2 AND ended_date IS NULL")
                .bind(millis(now))
                .bind(key.to_string())
                .execute(&mut *tx)
                .await?;
            let sealer = self.sealer();
            let seal = |place, value: &[u8]| sealer.seal_bytes(place, id.as_bytes(), value);
            let digest = seal(Place::Handover, &sha256(secret.expose()).0);
            // A code is short: its hash would not keep it from who has the database.
            let code = seal(Place::HandoverCode, &code_hash);
            query(
                "INSERT INTO key_handovers (handover_id, key_id, secret_digest, code_hash, code_salt, creation_date, \
                 expiration_date, created_by, digest_key, code_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
            )
            .bind(id.to_string())
            .bind(key.to_string())
            .bind(digest.bytes)
            .bind(code.bytes)
            .bind(&salt[..])
            .bind(millis(now))
            .bind(millis(expires))
            .bind(actor.name())
            .bind(digest.key)
            .execute(&mut *tx)
            .await?;
            let record = Record::new("hand_over", KindName::PersonalKey.as_str(), key, &name);
            audit::write(&mut tx, actor, now, &[record]).await?;
            note(&mut tx, key, ("handover_created", Severity::Info), "a hand-over was made of", &name, now).await?;
            tx.commit().await?;
            Ok::<_, HandoverError>(())
        })
        .await?;
        let code = Zeroizing::new(format!("{}-{}", &plain[..4], &plain[4..]));
        Ok(NewHandover { id, secret, code, expires })
    }

    /// Gives a key to whoever presents string and code: makes its secret anew, keeps the hash, and seals it. The same device may
    /// ask again as long as it has not used the key: the answer may have been lost.
    pub async fn claim_handover(
        &self,
        claim: &Claim<'_>,
        now: Timestamp,
    ) -> Result<(KeyId, hpke::Sealed), ClaimError> {
        // The try counts before the code is looked at, so that many at once are no more tries than one after the other.
        let open = self.retried("claim_handover", || self.count_attempt(claim, now)).await?;
        let hash = self.hash_text(&normal(claim.code), open.code_salt.clone()).await?;
        if !equal(&open.code_hash, &hash) {
            let left = MAX_ATTEMPTS.saturating_sub(open.attempts);
            self.wrong_code(claim.id, open.key, left, now).await?;
            return Err(if left == 0 { ClaimError::Exhausted } else { ClaimError::WrongCode { left } });
        }
        let version = self.version_to_issue(open.key).await?;
        let secret = self.sealer().tagged(version, &random());
        let sealed = hpke::seal(
            claim.wrapping,
            handing::HANDOVER_INFO,
            &[claim.id.as_bytes().as_slice(), version.as_bytes()].concat(),
            secret.expose(),
        )
        .map_err(|_| ClaimError::NoWrapping)?;
        let (hash, salt) = self.hashed(secret).await?;
        self.retried("claim_handover", || self.give(claim, open.key, version, (&hash, &salt), now)).await?;
        Ok((version, sealed))
    }

    async fn count_attempt(&self, claim: &Claim<'_>, now: Timestamp) -> Result<Open, ClaimError> {
        let mut tx = self.begin().await?;
        let row = query("SELECT * FROM key_handovers WHERE handover_id = $1 {lock}")
            .bind(claim.id.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let digest = sha256(claim.secret.expose()).0;
        let (sealer, owner) = (self.sealer(), claim.id.as_bytes());
        let is = |sealed: Vec<u8>| sealer.is_digest(Place::Handover, owner, &sealed, &digest);
        let row = match row {
            Some(row) if is(row.bytes("secret_digest")?).map_err(StoreError::from)? => row,
            _ => return Err(ClaimError::Unknown),
        };
        check_open(&row, claim, now)?;
        let attempts = u32::try_from(row.count("attempts")?).unwrap_or(u32::MAX) + 1;
        query("UPDATE key_handovers SET attempts = $1 WHERE handover_id = $2")
            .bind(attempts)
            .bind(claim.id.to_string())
            .execute(&mut *tx)
            .await?;
        let open = Open {
            key: row.parsed("key_id")?,
            code_hash: sealer
                .open_bytes(Place::HandoverCode, owner, &row.bytes("code_hash")?)
                .map_err(StoreError::from)?,
            code_salt: row.bytes("code_salt")?,
            attempts,
        };
        tx.commit().await?;
        Ok(open)
    }

    async fn wrong_code(&self, id: Uuid, key: KeyId, left: u32, now: Timestamp) -> Result<(), StoreError> {
        self.repeatable("wrong_code", || async {
            let mut tx = self.begin().await?;
            let what = if left == 0 {
                query(
                    "UPDATE key_handovers SET ended_date = COALESCE(ended_date, $1) WHERE handover_id = $2",
                )
                .bind(millis(now))
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
                ("handover_exhausted", Severity::High)
            } else {
                ("handover_code_wrong", Severity::Medium)
            };
            note(
                &mut tx,
                key,
                what,
                "somebody with the string typed a wrong code for the hand-over of",
                "",
                now,
            )
            .await?;
            tx.commit().await
        })
        .await
    }

    async fn give(
        &self,
        claim: &Claim<'_>,
        key: KeyId,
        version: KeyId,
        hash: (&[u8], &[u8]),
        now: Timestamp,
    ) -> Result<(), ClaimError> {
        let mut tx = self.begin().await?;
        let name = match open_key(&mut tx, key, now).await {
            Ok(name) => name,
            Err(HandoverError::Store(error)) => return Err(error.into()),
            Err(_) => return Err(ClaimError::Ended),
        };
        let row = query("SELECT * FROM key_handovers WHERE handover_id = $1 {lock}")
            .bind(claim.id.to_string())
            .fetch_one(&mut *tx)
            .await?;
        let attempts = row.count("attempts")?;
        check_open(&row, claim, now).or_else(|error| match error {
            // This try was the last one, and it was right.
            ClaimError::Exhausted if attempts == u64::from(MAX_ATTEMPTS) => Ok(()),
            other => Err(other),
        })?;
        let waiting = rotation_versions::awaiting_secret(&mut tx, key).await?;
        if version != waiting.map_or(key, |(newest, _)| newest) {
            return Err(ClaimError::Ended);
        }
        rotation_versions::put_hash(&mut tx, key, version, hash).await?;
        query("UPDATE key_handovers SET claimed_date = COALESCE(claimed_date, $1), claimed_by = $2 WHERE handover_id = $3")
            .bind(millis(now))
            .bind(&claim.device.0[..])
            .bind(claim.id.to_string())
            .execute(&mut *tx)
            .await?;
        let record = Record::new("claim_handover", KindName::PersonalKey.as_str(), key, &name)
            .notes(format!("by the device with the key {}", claim.device));
        audit::write(&mut tx, &Actor::System("enrolment"), now, &[record]).await?;
        note(&mut tx, key, ("handover_claimed", Severity::Info), "a device was handed", &name, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// The name of a key that can be handed over: nobody uses it. Its row is locked.
async fn open_key(db: &mut Connection, key: KeyId, now: Timestamp) -> Result<String, HandoverError> {
    let row = query("SELECT * FROM personal_keys WHERE key_id = $1 {lock}")
        .bind(key.to_string())
        .fetch_optional(&mut *db)
        .await?
        .ok_or(HandoverError::Ended)?;
    let expired = row.maybe_time("expiration_date")?.is_some_and(|at| at <= now);
    if expired || row.maybe_time("deactivation_date")?.is_some() {
        return Err(HandoverError::Ended);
    }
    let waits = rotation_versions::awaiting_secret(db, key).await?.is_some();
    if !waits && row.maybe_time("activation_date")?.is_some() {
        return Err(HandoverError::InUse);
    }
    Ok(format!("{}/{}", row.text("namespace")?, row.text("name")?))
}

fn check_open(row: &Row, claim: &Claim<'_>, now: Timestamp) -> Result<(), ClaimError> {
    if row.count("attempts")? >= u64::from(MAX_ATTEMPTS) {
        return Err(ClaimError::Exhausted);
    }
    if row.maybe_time("ended_date")?.is_some() || row.time("expiration_date")? <= now {
        return Err(ClaimError::Ended);
    }
    match (row.maybe_time("claimed_date")?, row.maybe_bytes32("claimed_by")?) {
        (Some(at), Some(device)) if device != claim.device.0 => Err(ClaimError::Taken(at)),
        _ => Ok(()),
    }
}

async fn note(
    db: &mut Connection,
    key: KeyId,
    (kind, severity): (&'static str, Severity),
    what: &str,
    name: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let source = Source::Resource(key.0);
    let description = format!("{what} PersonalKey {name}").trim_end().to_owned();
    let event =
        NewEvent { kind, severity, source, address: None, description, data: serde_json::Value::Null };
    event::write(db, &event, now).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        assert_eq!(*normal("abcd-efgh"), "ABCDEFGH");
        assert_eq!(*normal(" ab cd EF-0O il"), "ABCDEF0011");
        assert_eq!(alphabet().encode(&[0; 5]).len(), CODE_CHARACTERS);
        assert!(normal(&"x".repeat(1000)).len() <= handing::MAX_CODE_BYTES);
    }
}
