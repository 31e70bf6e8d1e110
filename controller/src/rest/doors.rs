//! The doors of appliances and devices: the same operations, the same limits and the same one-time secrets as on the control
//! channel. There a key is proved by TLS; here by a signature over a challenge.

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use data_encoding::BASE64URL_NOPAD;
use horizon_model::{PublicKey, ServerId};
use horizon_wire::{
    convert, key,
    proto::{EnrolDevice, Factor},
    token::{PersonalKey, RegistrationToken},
};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Problem, Rest,
    guard::{self, TokenDevice},
    schema::{AskChallenge, Authenticate, Challenge, DeviceTokens, Proof, Register, Registered},
    token::{Audience, DEVICE_LIFETIME},
};
use crate::{
    api::server::Body,
    live::{Counted, Hint, Limit},
    store::{Caller, EnrolError, NewEvent, RegisterError, RegisterRequest, Severity, Source, is_own},
};

/// What is signed with a challenge, before it.
const CONTEXT: &[u8] = b"horizon rest proof v1\0";
/// For how long a challenge can be used, in seconds.
const CHALLENGE_SECONDS: i64 = 120;
/// The longest host name and version that are taken, in characters.
const MAX_SHORT: usize = 128;

type Answer<T> = Result<Json<T>, Problem>;

/// What the stamp of a challenge is over: one key, until one moment.
fn stamped(public: &PublicKey, until: i64) -> Vec<u8> {
    [b"challenge".as_slice(), public.as_bytes(), &until.to_be_bytes()].concat()
}

pub(super) async fn challenge(
    State(rest): State<Rest>,
    Body(AskChallenge { public_key }): Body<AskChallenge>,
) -> Answer<Challenge> {
    let public = public_key.parse().map_err(|error| Problem::bad_request(format!("publicKey: {error}")))?;
    let until = rest.now().as_second().saturating_add(CHALLENGE_SECONDS);
    let text = [&until.to_be_bytes()[..], &rest.api.store.stamp(&stamped(&public, until))].concat();
    Ok(Json(Challenge { challenge: BASE64URL_NOPAD.encode(&text), expires_in: CHALLENGE_SECONDS }))
}

/// The key that somebody proves to have.
fn proved(rest: &Rest, proof: &Proof) -> Result<PublicKey, Problem> {
    let wrong = |what: &str| Problem::bad_request(format!("the proof of the key does not hold: {what}"));
    let public: PublicKey = proof.public_key.parse().map_err(|_| wrong("publicKey is no key"))?;
    let challenge = proof.challenge.as_bytes();
    let decoded = (challenge.len() == 54).then(|| BASE64URL_NOPAD.decode(challenge).ok()).flatten();
    let (until, shown) = decoded
        .as_deref()
        .and_then(|bytes| bytes.split_first_chunk::<8>())
        .ok_or_else(|| wrong("the challenge is none of ours"))?;
    let until = i64::from_be_bytes(*until);
    if !rest.api.store.is_stamp(&stamped(&public, until), shown) {
        return Err(wrong("the challenge is none of ours for this key"));
    }
    if until <= rest.now().as_second() {
        return Err(wrong("the challenge has expired: ask for another"));
    }
    let signature = BASE64URL_NOPAD.decode(proof.signature.as_bytes()).unwrap_or_default();
    let signed = [CONTEXT, challenge].concat();
    if key::verify(&public, &signed, &signature) {
        Ok(public)
    } else {
        Err(wrong("the signature is another's"))
    }
}

/// What keeps somebody from trying too often, and says so where security events are.
struct Try<'a> {
    rest: &'a Rest,
    caller: &'a Caller,
    public: PublicKey,
    now: Timestamp,
}

impl Try<'_> {
    fn allow(&self, counted: Counted, a_minute: u32) -> Result<(), Problem> {
        let limit = Limit::per_minute(a_minute);
        match self.rest.api.live.allow(counted, limit, self.now) {
            true => Ok(()),
            false => Err(Problem::rate_limited(
                "too many tries from this address",
                limit.grows_back().as_secs() + 1,
            )),
        }
    }

    async fn refused(&self, kind: &'static str, why: &str) {
        // A storm of them is told by detection: here each is a row.
        let (due, left_out) = self.rest.refusals_told.due(self.now);
        if !due {
            return;
        }
        let event = NewEvent {
            kind,
            severity: Severity::Low,
            source: Source::Unknown,
            address: Some(self.caller.address),
            description: why.to_owned(),
            data: json!({ "publicKey": self.public.to_string(), "door": "rest", "leftOut": left_out }),
        };
        if let Err(error) = self.rest.api.store.record_event(&event, self.now).await {
            tracing::error!(%error, kind, "a security event could not be recorded");
        }
    }
}

fn invalid(error: convert::Invalid) -> Problem {
    Problem::bad_request(error.to_string())
}

fn short(text: String, field: &'static str) -> Result<String, Problem> {
    convert::text(text, field).map(|text| text.chars().take(MAX_SHORT).collect()).map_err(invalid)
}

pub(super) async fn register(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<Register>,
) -> Answer<Registered> {
    let Register { token, proof, hostname, version, capabilities, factors } = request;
    let public = proved(&rest, &proof)?;
    let (now, policy) = (rest.now(), rest.policy());
    let attempt = Try { rest: &rest, caller: &caller, public, now };
    attempt.allow(Counted::Registration(caller.address), policy.rate_limits.registrations_per_minute)?;
    let token =
        RegistrationToken::decode(&token.0).map_err(|e| Problem::bad_request(format!("token: {e}")))?;
    let factors =
        factors.into_iter().map(|f| Factor { kind: f.kind, name: f.name, value: f.value }).collect();
    let mut factors = convert::decode_factors(factors).map_err(invalid)?;
    factors.retain(is_own);
    factors.extend(rest.geo.lookup(caller.address).map(|place| place.factors()).unwrap_or_default());
    let asked = RegisterRequest {
        key_name: short(token.key_name, "token")?,
        secret: token.secret,
        public_key: public,
        hostname: short(hostname, "hostname")?,
        version: short(version, "version")?,
        capabilities: convert::decode_capabilities(&capabilities).map_err(invalid)?,
        factors,
        address: caller.address,
    };
    let registered = match rest.api.store.register_server(&asked, now).await {
        Ok(registered) => registered,
        Err(RegisterError::Store(error)) => return Err(error.into()),
        Err(error) => {
            if matches!(error, RegisterError::Unknown) {
                guard::note_failure(&rest, caller.address);
            }
            if !matches!(error, RegisterError::Used(_)) {
                attempt.refused("registration_refused", &error.to_string()).await;
            }
            return Err(match error {
                RegisterError::Unknown => Problem::refused("the registration token is not known"),
                other => Problem::conflict(other.to_string()),
            });
        }
    };
    if registered.fresh {
        tracing::info!(server = %registered.server, name = %registered.name, "an appliance registered by REST");
        tell(&rest, registered.server, registered.ended).await;
    }
    Ok(Json(Registered {
        server_id: registered.server.0,
        server: registered.name.to_string(),
        namespace: registered.namespace.to_string(),
        verification_secret: BASE64URL_NOPAD.encode(registered.secret.expose()),
        root: rest.api.strings.root().to_string(),
        controllers: rest.api.strings.advertise.clone(),
    }))
}

/// Whoever spoke for the server until now does no longer, and its status is another.
async fn tell(rest: &Rest, server: ServerId, ended: Option<crate::store::ChannelLease>) {
    let live = &rest.api.live;
    if let Some(lease) = ended {
        live.publish(Hint::MakeWay { server, lease });
    }
    live.publish(Hint::StatusDirty(server.0));
    if let Ok(Some(key)) = rest.api.store.registration_key_of(server).await {
        live.publish(Hint::StatusDirty(key));
    }
}

pub(super) async fn authenticate(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<Authenticate>,
) -> Result<(StatusCode, Json<DeviceTokens>), Problem> {
    let Authenticate { personal_key, proof, name, platform, os_version, app_version, hardware_fingerprint } =
        request;
    let public = proved(&rest, &proof)?;
    let (now, policy) = (rest.now(), rest.policy());
    let attempt = Try { rest: &rest, caller: &caller, public, now };
    attempt.allow(Counted::Enrolment(caller.address), policy.rate_limits.enrolments_per_minute)?;
    let personal = PersonalKey::decode(&personal_key.0)
        .map_err(|e| Problem::bad_request(format!("personalKey: {e}")))?;
    let said = EnrolDevice {
        name,
        platform,
        os_version,
        app_version,
        hardware_fingerprint,
        ..EnrolDevice::default()
    };
    let info = convert::decode_device(&said).map_err(invalid)?;
    let enrolled = match rest.api.store.enrol_device(personal.id, &personal.secret, public, &info, now).await
    {
        Ok(enrolled) => enrolled,
        Err(EnrolError::Store(error)) => return Err(error.into()),
        Err(error) => {
            attempt.refused("enrolment_refused", &error.to_string()).await;
            return Err(match error {
                EnrolError::Unknown => {
                    guard::note_failure(&rest, caller.address);
                    rest.detect.wrong_key(caller.address, personal.id.0);
                    Problem::refused("the personal key is not known")
                }
                other => Problem::conflict(other.to_string()),
            });
        }
    };
    rest.api.live.publish(Hint::StatusDirty(enrolled.user));
    rest.api.live.publish(Hint::StatusDirty(enrolled.key.0));
    let (token, _) = rest.tokens.sign(Audience::Device, enrolled.device.0, None, now).await?;
    let status = if enrolled.fresh { StatusCode::CREATED } else { StatusCode::OK };
    let tokens = DeviceTokens {
        device_id: enrolled.device.0,
        user: enrolled.user_name.to_string(),
        access_token: token,
        token_type: "Bearer",
        expires_in: DEVICE_LIFETIME.as_secs(),
    };
    Ok((status, Json(tokens)))
}

/// A device gives its token back.
pub(super) async fn forget_token(
    State(rest): State<Rest>,
    Extension(device): Extension<TokenDevice>,
) -> Result<Response, Problem> {
    rest.api.store.blacklist_token(device.token, device.expires).await?;
    rest.api.live.kill_token(device.token, DEVICE_LIFETIME, rest.now());
    Ok(guard::no_content())
}
