//! The keys that sign tokens, which all replicas share, and the tokens that are dead before their time.

use std::time::Duration;

use horizon_model::{PublicKey, Secret};
use horizon_wire::key::SigningKey;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
    seal::{Place, random},
};

/// For how long a key signs.
const SIGNS: Duration = Duration::from_secs(24 * 3600);
/// For how much longer what it signed can be valid, which is longer than any token lives.
const OUTLASTS: Duration = Duration::from_secs(2 * 3600);

/// A key of tokens.
#[derive(Clone, Debug)]
pub struct TokenKey {
    /// Its id, as tokens name it (`kid`).
    pub id: Uuid,
    /// The public half.
    pub public: PublicKey,
    /// The private half, while it signs.
    pub private: Option<SigningKey>,
    /// Until when it signs.
    pub signs_until: Timestamp,
    /// Until when what it signed can be valid.
    pub valid_until: Timestamp,
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

impl Store {
    /// The keys that may be named by a valid token, the newest first. One of them signs: if none does any more, another is
    /// made.
    pub async fn token_keys(&self, now: Timestamp) -> Result<Vec<TokenKey>, StoreError> {
        let known = self.read_token_keys(now).await?;
        if known.iter().any(|key| key.private.is_some() && key.signs_until > now) {
            return Ok(known);
        }
        self.retried("token_keys", || async {
            let mut tx = self.begin().await?;
            tx.serialise("token keys").await?;
            let row =
                query("SELECT key_id FROM token_keys WHERE signs_until > $1 AND private_key IS NOT NULL")
                    .bind(millis(now))
                    .fetch_optional(&mut *tx)
                    .await?;
            if row.is_none() {
                self.add_token_key(&mut tx, now).await?;
            }
            tx.commit().await
        })
        .await?;
        self.read_token_keys(now).await
    }

    async fn read_token_keys(&self, now: Timestamp) -> Result<Vec<TokenKey>, StoreError> {
        let rows =
            query("SELECT * FROM token_keys WHERE valid_until > $1 ORDER BY created_date DESC, key_id DESC")
                .bind(millis(now))
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(|row| self.read_token_key(row, now)).collect()
    }

    fn read_token_key(&self, row: &Row, now: Timestamp) -> Result<TokenKey, StoreError> {
        let id: Uuid = row.parsed("key_id")?;
        let (signs_until, valid_until) = (row.time("signs_until")?, row.time("valid_until")?);
        let public = row.maybe_bytes32("public_key")?.map(PublicKey);
        let public = public.ok_or(StoreError::Corrupt { column: "public_key", why: "is missing".into() })?;
        let private = match row.maybe_bytes("private_key")?.filter(|_| signs_until > now) {
            Some(sealed) => {
                Some(SigningKey::from_seed(self.sealer().open(Place::TokenKey, id.as_bytes(), &sealed)?))
            }
            None => None,
        };
        Ok(TokenKey { id, public, private, signs_until, valid_until })
    }

    async fn add_token_key(&self, db: &mut Connection, now: Timestamp) -> Result<Uuid, StoreError> {
        let id = Uuid::new_v4();
        let key = SigningKey::from_seed(Secret::new(random()));
        let signs_until = later(now, SIGNS);
        let sealed = self.sealer().seal(Place::TokenKey, id.as_bytes(), key.seed());
        query(
            "INSERT INTO token_keys (key_id, public_key, private_key, created_date, signs_until, valid_until, sealing_key) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id.to_string())
        .bind(&key.public().0[..])
        .bind(sealed.bytes)
        .bind(millis(now))
        .bind(millis(signs_until))
        .bind(millis(later(signs_until, OUTLASTS)))
        .bind(sealed.key)
        .execute(&mut *db)
        .await?;
        Ok(id)
    }

    /// Puts another key in the place of those that sign. What they signed stays valid until it expires, unless it is dead at
    /// once: `compromised`.
    pub async fn rotate_token_keys(
        &self,
        compromised: bool,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Uuid, StoreError> {
        self.retried("rotate_token_keys", || async {
            let mut tx = self.begin().await?;
            tx.serialise("token keys").await?;
            let ends = if compromised { millis(now) } else { millis(later(now, OUTLASTS)) };
            query(
                "UPDATE token_keys SET private_key = NULL, sealing_key = NULL, signs_until = $1, \
                 valid_until = CASE WHEN valid_until < $2 THEN valid_until ELSE $2 END WHERE valid_until > $1",
            )
            .bind(millis(now))
            .bind(ends)
            .execute(&mut *tx)
            .await?;
            let id = self.add_token_key(&mut tx, now).await?;
            let note = if compromised { "what was signed before is void" } else { "what was signed before expires" };
            let record = Record::new("rotate", "TokenKey", id, id).notes(note);
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(id)
        })
        .await
    }

    /// Makes a token worthless before its time.
    pub async fn blacklist_token(&self, token: Uuid, until: Timestamp) -> Result<(), StoreError> {
        self.repeatable("blacklist_token", || async {
            let mut tx = self.begin().await?;
            query("INSERT INTO token_blacklist (token_id, expiry_time) VALUES ($1, $2) ON CONFLICT (token_id) DO NOTHING")
                .bind(token.to_string())
                .bind(millis(until))
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Whether a token is worthless before its time.
    pub async fn is_blacklisted(&self, token: Uuid) -> Result<bool, StoreError> {
        let row = query("SELECT token_id FROM token_blacklist WHERE token_id = $1")
            .bind(token.to_string())
            .fetch_optional(self.readers())
            .await?;
        Ok(row.is_some())
    }
}

/// Forgets keys and tokens whose time is over, in the caller's transaction.
pub(super) async fn forget_old(db: &mut Connection, now: Timestamp) -> Result<u64, StoreError> {
    query("UPDATE token_keys SET private_key = NULL, sealing_key = NULL WHERE signs_until <= $1")
        .bind(millis(now))
        .execute(&mut *db)
        .await?;
    let mut deleted = 0;
    for delete in [
        "DELETE FROM token_keys WHERE valid_until <= $1",
        "DELETE FROM token_blacklist WHERE expiry_time <= $1",
    ] {
        deleted += query(delete).bind(millis(now)).execute(&mut *db).await?.rows_affected();
    }
    Ok(deleted)
}
