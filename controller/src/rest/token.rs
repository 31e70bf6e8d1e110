//! Tokens: JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037) by keys that all replicas share and that change every
//! day. A token names its key, whom it is for, and until when; nothing in its header is believed but the name of a key that
//! is known here.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::store::{Store, StoreError, TokenKey};

/// How long a token of an administrator lives.
pub(super) const ADMIN_LIFETIME: Duration = Duration::from_secs(600);
/// How long a token of a device lives.
pub(super) const DEVICE_LIFETIME: Duration = Duration::from_secs(3600);
/// How far clocks of replicas may be apart, in seconds.
const LEEWAY: i64 = 5;
/// For how long keys are believed without asking the database.
const FRESH: Duration = Duration::from_secs(1);
/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 2048;
/// Who makes them: the keys say which organisation it is, and are nobody else's.
const ISSUER: &str = "horizon";
/// The type of these tokens (RFC 9068).
const TYPE: &str = "at+jwt";
/// What stands before a seed in PKCS #8 (RFC 8410, section 7).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Whom a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// An administrator.
    Admin,
    /// A device.
    Device,
}

impl Audience {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "horizon-admin",
            Self::Device => "horizon-device",
        }
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// Who made it.
    pub(super) iss: String,
    /// About whom: an account, or a device.
    pub(super) sub: Uuid,
    /// For what.
    pub(super) aud: String,
    /// Since when it holds, in seconds since the Unix epoch.
    pub(super) nbf: i64,
    /// When it was made.
    pub(super) iat: i64,
    /// Until when it holds.
    pub(super) exp: i64,
    /// The token.
    pub(super) jti: Uuid,
    /// The session that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sid: Option<Uuid>,
}

/// Why a token is worth nothing.
#[derive(Debug, Error)]
pub(super) enum TokenError {
    /// It is none of ours any more, or is for something else.
    #[error("the token is not valid here")]
    Invalid,
    /// It is none of ours, or was altered, and says that it holds now. It looks like one that is not valid.
    #[error("the token is not valid here")]
    Forged,
    /// Its time is over, or has not come.
    #[error("the token has expired")]
    Expired,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes and checks tokens.
pub(super) struct Keyring {
    store: Store,
    known: Mutex<Option<(Instant, Arc<Vec<TokenKey>>)>>,
}

impl Keyring {
    pub(super) fn new(store: Store) -> Self {
        Self { store, known: Mutex::new(None) }
    }

    /// The keys that may be named.
    pub(super) async fn keys(&self, now: Timestamp) -> Result<Arc<Vec<TokenKey>>, StoreError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((read, keys)) = known
            && read.elapsed() < FRESH
        {
            return Ok(keys);
        }
        let keys = Arc::new(self.store.token_keys(now).await?);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    /// Forgets the keys, which have changed.
    pub(super) fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Makes a token.
    pub(super) async fn sign(
        &self,
        audience: Audience,
        subject: Uuid,
        session: Option<Uuid>,
        now: Timestamp,
    ) -> Result<(String, Claims), StoreError> {
        let lifetime = match audience {
            Audience::Admin => ADMIN_LIFETIME,
            Audience::Device => DEVICE_LIFETIME,
        };
        let keys = self.keys(now).await?;
        let signing = keys.iter().find(|key| key.private.is_some() && key.signs_until > now);
        let closed = StoreError::Corrupt { column: "private_key", why: "no key signs tokens".into() };
        let Some((key, private)) = signing.and_then(|key| Some((key, key.private.as_ref()?))) else {
            return Err(closed);
        };
        let iat = now.as_second();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: subject,
            aud: audience.as_str().to_owned(),
            nbf: iat,
            iat,
            exp: iat.saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(0)),
            jti: Uuid::new_v4(),
            sid: session,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        (header.kid, header.typ) = (Some(key.id.to_string()), Some(TYPE.to_owned()));
        let der = Zeroizing::new([&PKCS8[..], private.seed().expose()].concat());
        let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&der));
        token.map(|token| (token, claims)).map_err(|_| closed)
    }

    /// What a token says, if it is ours and holds now.
    pub(super) async fn check(
        &self,
        token: &str,
        audience: Audience,
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Forged);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Forged)?;
        // The header comes from whoever sends it: it may name one of our keys, and nothing else.
        let foreign = header.jku.is_some()
            || header.jwk.is_some()
            || header.x5u.is_some()
            || header.x5c.is_some()
            || header.crit.is_some()
            || header.cty.is_some();
        if header.alg != Algorithm::EdDSA || header.typ.as_deref() != Some(TYPE) || foreign {
            return Err(TokenError::Forged);
        }
        let id: Uuid = header.kid.as_deref().and_then(|kid| kid.parse().ok()).ok_or(TokenError::Forged)?;
        let keys = self.keys(now).await?;
        let key = keys.iter().find(|key| key.id == id && key.valid_until > now);
        let key = key.ok_or_else(|| of_no_key(token, now))?;
        let public = BASE64URL_NOPAD.encode(key.public.as_bytes());
        let public = DecodingKey::from_ed_components(&public).map_err(|_| TokenError::Invalid)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[audience.as_str()]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        // Times are compared below, with the time that was given.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let claims = jsonwebtoken::decode::<Claims>(token, &public, &validation);
        let claims = claims.map_err(|error| match error.kind() {
            ErrorKind::InvalidAudience | ErrorKind::InvalidIssuer | ErrorKind::MissingRequiredClaim(_) => {
                TokenError::Invalid
            }
            _ => TokenError::Forged,
        })?;
        let claims = claims.claims;
        let time = now.as_second();
        if claims.exp <= time.saturating_sub(LEEWAY) || claims.nbf > time.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

/// What a token is whose key is not known. Keys are kept until what they signed has expired: one that says it holds now was
/// never signed by one, unless that was withdrawn a moment ago.
fn of_no_key(token: &str, now: Timestamp) -> TokenError {
    #[derive(Deserialize)]
    struct Said {
        exp: i64,
    }
    let payload = token.split('.').nth(1).and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok());
    let said = payload.and_then(|payload| serde_json::from_slice::<Said>(&payload).ok());
    match said {
        Some(Said { exp }) if exp <= now.as_second() => TokenError::Invalid,
        _ => TokenError::Forged,
    }
}

/// A key as others are told of it (RFC 7517, RFC 8037).
#[derive(Debug, Serialize)]
pub(super) struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
    kid: String,
    x: String,
}

impl From<&TokenKey> for Jwk {
    fn from(key: &TokenKey) -> Self {
        let (kid, x) = (key.id.to_string(), BASE64URL_NOPAD.encode(key.public.as_bytes()));
        Self { kty: "OKP", crv: "Ed25519", alg: "EdDSA", usage: "sig", kid, x }
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
