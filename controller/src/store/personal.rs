//! Personal keys: issuing their secrets, and proving them.

use argon2::{Algorithm, Argon2, Params, Version};
use horizon_crds::KindName;
use horizon_model::{KeyId, TaggedSecret};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    Actor, IssueError, LeaderEpoch, Store, StoreError,
    audit::{self, Record},
    dialect::query,
    registration::{UNDELIVERED, fence},
    rotation_versions,
    row::Columns as _,
    seal::random,
};

/// Memory of one Argon2id computation, in KiB (OWASP's first recommendation, with two passes and one lane).
pub(super) const MEMORY_KIB: u32 = 19 * 1024;
pub(super) const PASSES: u32 = 2;
pub(super) const LANES: u32 = 1;
pub(super) const SALT_BYTES: usize = 16;

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
        let version = self.version_to_issue(key).await?;
        let secret = self.sealer().tagged(version, &random());
        let (hash, salt) = self.hashed(secret.clone()).await?;
        let kept = || self.keep_hash(key, version, (&hash, &salt), deliverer, now);
        self.retried("issue_personal_secret", kept).await?;
        Ok(PersonalSecret { key: version, secret })
    }

    /// The version of a key that waits for its secret: the key itself, or what replaced it.
    pub(super) async fn version_to_issue(&self, key: KeyId) -> Result<KeyId, StoreError> {
        let mut tx = self.begin().await?;
        let waiting = rotation_versions::awaiting_secret(&mut tx, key).await?;
        tx.commit().await?;
        Ok(waiting.map_or(key, |(version, _)| version))
    }

    async fn keep_hash(
        &self,
        key: KeyId,
        version: KeyId,
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
        let waiting = rotation_versions::awaiting_secret(&mut tx, key).await?;
        // Rotated meanwhile: this is the secret of a version that is over.
        if version != waiting.map_or(key, |(newest, _)| newest) {
            return Err(IssueError::AlreadyIssued);
        }
        let issued = match waiting {
            Some((_, issued)) => issued,
            None => row.maybe_bytes("key_hash")?.is_some(),
        };
        if issued && !(deliverer.is_some() && undelivered) {
            return Err(IssueError::AlreadyIssued);
        }
        let expired = row.maybe_time("expiration_date")?.is_some_and(|at| at <= now);
        let used = waiting.is_none() && row.maybe_time("activation_date")?.is_some();
        if expired || used || row.maybe_time("deactivation_date")?.is_some() {
            return Err(IssueError::Ended);
        }
        rotation_versions::put_hash(&mut tx, key, version, (hash, salt)).await?;
        query("UPDATE personal_keys SET secret_file = $1 WHERE key_id = $2")
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

    /// The key whose version a secret is. Garbage is told by its tag, without the database and the hash; an unknown version
    /// takes as long as a known one, and one that has ended is still known to its holder.
    pub(super) async fn proves(
        &self,
        version: KeyId,
        secret: &TaggedSecret,
    ) -> Result<Option<KeyId>, StoreError> {
        if !self.sealer().plausible(version, secret) {
            return Ok(None);
        }
        let row = query(
            "SELECT v.key_id, v.key_hash, v.key_salt FROM personal_key_versions v WHERE v.version_id = $1 UNION ALL \
             SELECT k.key_id, k.key_hash, k.key_salt FROM personal_keys k WHERE k.key_id = $1 \
             AND NOT EXISTS (SELECT 1 FROM personal_key_versions o WHERE o.version_id = $1)",
        )
        .bind(version.to_string())
        .fetch_optional(self.readers())
        .await?;
        let (mut known, mut salt) = (None, vec![0; SALT_BYTES]);
        if let Some(row) = row {
            salt = row.maybe_bytes("key_salt")?.unwrap_or(salt);
            known = row.maybe_bytes("key_hash")?.zip(Some(row.parsed("key_id")?));
        }
        let hash = self.hash(secret.clone(), salt).await?;
        Ok(known.filter(|(known, _)| horizon_wire::heartbeat::equal(known, &hash)).map(|(_, key)| key))
    }

    /// Argon2id (RFC 9106), off the async threads and few at a time.
    pub(super) async fn hash(&self, secret: TaggedSecret, salt: Vec<u8>) -> Result<[u8; 32], StoreError> {
        self.hash_bytes(Zeroizing::new(secret.split().0.to_vec()), salt).await
    }

    /// The same of a text that people type.
    pub(super) async fn hash_text(&self, text: &str, salt: Vec<u8>) -> Result<[u8; 32], StoreError> {
        self.hash_bytes(Zeroizing::new(text.as_bytes().to_vec()), salt).await
    }

    async fn hash_bytes(&self, secret: Zeroizing<Vec<u8>>, salt: Vec<u8>) -> Result<[u8; 32], StoreError> {
        let place = self.inner.hashing.place().await?;
        let hashed = tokio::task::spawn_blocking(move || {
            let _place = place;
            let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are constants");
            let mut out = [0; 32];
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(&secret, &salt, &mut out)
                .map(|()| out)
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(e)) => Err(StoreError::Corrupt { column: "key_salt", why: e.to_string() }),
            Err(_) => Err(StoreError::Closed),
        }
    }
}
