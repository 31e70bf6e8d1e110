//! Personal keys: issuing their secrets, and proving them.

use argon2::{Algorithm, Argon2, Params, Version};
use horizon_crds::KindName;
use horizon_model::{KeyId, TaggedSecret};
use jiff::Timestamp;

use super::{
    Actor, IssueError, LeaderEpoch, Store, StoreError,
    audit::{self, Record},
    dialect::query,
    registration::{UNDELIVERED, fence},
    row::Columns as _,
    seal::random,
};

/// Memory of one Argon2id computation, in KiB (OWASP's first recommendation, with two passes and one lane).
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;

/// The secret of a personal key, as it is delivered once.
#[derive(Clone, Debug)]
pub struct PersonalSecret {
    /// The key.
    pub key: KeyId,
    /// Its secret.
    pub secret: TaggedSecret,
}

impl Store {
    /// Makes the secret of a personal key, once. An Argon2id hash of it is kept.
    pub async fn issue_personal_secret(
        &self,
        key: KeyId,
        now: Timestamp,
    ) -> Result<PersonalSecret, IssueError> {
        self.issue(key, None, now).await
    }

    /// The same for a leader that delivers the secret. One that was made to be delivered, and that no note says where it is
    /// ([`note_secret_file`](Self::note_secret_file)), is replaced: nobody was told of it.
    pub async fn personal_secret_to_deliver(
        &self,
        key: KeyId,
        leader: LeaderEpoch,
        now: Timestamp,
    ) -> Result<PersonalSecret, IssueError> {
        self.issue(key, Some(leader), now).await
    }

    async fn issue(
        &self,
        key: KeyId,
        deliverer: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<PersonalSecret, IssueError> {
        let secret = self.sealer().tagged(key, &random());
        let salt: [u8; SALT_BYTES] = random();
        let hash = self.hash(secret.clone(), salt.to_vec()).await?;
        self.retried("issue_personal_secret", || self.keep_hash(key, (&hash, &salt), deliverer, now)).await?;
        Ok(PersonalSecret { key, secret })
    }

    async fn keep_hash(
        &self,
        key: KeyId,
        (hash, salt): (&[u8], &[u8]),
        deliverer: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<(), IssueError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, deliverer).await?;
        let row = query("SELECT * FROM personal_keys WHERE key_id = $1 {lock}")
            .bind(key.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(StoreError::from)?
            .ok_or(IssueError::Unknown)?;
        let undelivered = row.maybe_text("secret_file")?.is_some_and(|file| file == UNDELIVERED);
        if row.maybe_bytes("key_hash")?.is_some() && !(deliverer.is_some() && undelivered) {
            return Err(IssueError::AlreadyIssued);
        }
        let expired = row.maybe_time("expiration_date")?.is_some_and(|at| at <= now);
        let ended =
            row.maybe_time("deactivation_date")?.is_some() || row.maybe_time("activation_date")?.is_some();
        if expired || ended {
            return Err(IssueError::Ended);
        }
        query("UPDATE personal_keys SET key_hash = $1, key_salt = $2, secret_file = $3 WHERE key_id = $4")
            .bind(hash)
            .bind(salt)
            .bind(deliverer.map(|_| UNDELIVERED))
            .bind(key.to_string())
            .execute(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        let name = format!("{}/{}", row.text("namespace")?, row.text("name")?);
        let record = Record::new("issue_secret", KindName::PersonalKey.as_str(), key, name);
        audit::write(&mut tx, &Actor::System("enrolment"), now, &[record]).await?;
        Ok(tx.commit().await?)
    }

    /// Whether a secret is the key's. Garbage is told by its tag, without the database and the hash; an unknown key takes
    /// as long as a known one.
    pub(super) async fn proves(&self, key: KeyId, secret: &TaggedSecret) -> Result<bool, StoreError> {
        if !self.sealer().plausible(key, secret) {
            return Ok(false);
        }
        let row = query("SELECT key_hash, key_salt FROM personal_keys WHERE key_id = $1")
            .bind(key.to_string())
            .fetch_optional(self.readers())
            .await?;
        let (mut known, mut salt) = (None, vec![0; SALT_BYTES]);
        if let Some(row) = row {
            known = row.maybe_bytes("key_hash")?;
            salt = row.maybe_bytes("key_salt")?.unwrap_or(salt);
        }
        let hash = self.hash(secret.clone(), salt).await?;
        Ok(known.is_some_and(|known| horizon_wire::heartbeat::equal(&known, &hash)))
    }

    /// Argon2id (RFC 9106), off the async threads and few at a time.
    async fn hash(&self, secret: TaggedSecret, salt: Vec<u8>) -> Result<[u8; 32], StoreError> {
        let _permit = self.inner.hashing.acquire().await.map_err(|_| StoreError::Closed)?;
        let hashed = tokio::task::spawn_blocking(move || {
            let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are constants");
            let mut out = [0; 32];
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(secret.split().0, &salt, &mut out)
                .map(|()| out)
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(e)) => Err(StoreError::Corrupt { column: "key_salt", why: e.to_string() }),
            Err(_) => Err(StoreError::Closed),
        }
    }
}
