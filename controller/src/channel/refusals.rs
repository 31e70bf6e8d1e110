//! What refused peers are told: what happened, to what, and what to do.

use std::time::Duration;

use horizon_controller_core::Denial;
use horizon_wire::{proto::RefusalCode, refusal::Refusal};

use crate::store::{EnrolError, RegisterError, SessionError, StoreError};

/// Seconds after which what failed inside may work.
const SOON: u32 = 10;

/// The name of a code in figures.
pub(super) fn name(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Unspecified => "unspecified",
        RefusalCode::Version => "version",
        RefusalCode::Malformed => "malformed",
        RefusalCode::Unauthenticated => "unauthenticated",
        RefusalCode::Expired => "expired",
        RefusalCode::Revoked => "revoked",
        RefusalCode::Used => "used",
        RefusalCode::Policy => "policy",
        RefusalCode::Unavailable => "unavailable",
        RefusalCode::Limit => "limit",
        RefusalCode::Clone => "clone",
        RefusalCode::NotFound => "not_found",
        RefusalCode::Internal => "internal",
    }
}

/// A message that cannot be read or breaks a rule.
pub(super) fn malformed(what: &str) -> Refusal {
    let remedy = "use a release of Horizon whose version the controller knows";
    Refusal::new(RefusalCode::Malformed, format!("a message cannot be used: {what}"), remedy)
}

/// A text that the payload rules refuse.
pub(super) fn payload(field: &str, why: &str) -> Refusal {
    let remedy = "leave it out; an administrator can change the rules: payload of a SecurityPolicy";
    Refusal::new(RefusalCode::Malformed, format!("the field '{field}' is not taken: {why}"), remedy)
}

/// A server whose appliance arrives in several places at once.
pub(super) fn contended(name: &str) -> Refusal {
    let message = format!("several connections want to speak for server '{name}' at the same time");
    Refusal::new(RefusalCode::Unavailable, message, "nothing: the appliance tries again").retry_after(SOON)
}

/// An appliance for which there is no time now.
pub(super) fn crowded(away: Duration) -> Refusal {
    let seconds = u32::try_from(away.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    let message = "many appliances connect at the same time";
    Refusal::new(RefusalCode::Unavailable, message, "nothing: the appliance comes back by itself")
        .retry_after(seconds)
}

/// A message at the wrong time.
pub(super) fn wrong_order(what: &str) -> Refusal {
    malformed(&format!("{what} is not expected now"))
}

/// More messages than a peer may send.
pub(super) fn too_many_messages() -> Refusal {
    Refusal::new(RefusalCode::Limit, "too many messages in a short time", "try again more slowly")
        .retry_after(SOON)
}

/// More tries than an address may make.
pub(super) fn too_many_tries(what: &str) -> Refusal {
    let message = format!("too many {what} from this address");
    Refusal::new(RefusalCode::Limit, message, "try again in a minute").retry_after(60)
}

/// An address that failed too often.
pub(super) fn locked_out(seconds: i64) -> Refusal {
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
    let message = "this address is locked out after too many failed attempts";
    let remedy = format!("try again in {} minutes", seconds.div_ceil(60));
    Refusal::new(RefusalCode::Limit, message, remedy).retry_after(seconds)
}

/// Something inside failed.
pub(super) fn internal(error: &StoreError) -> Refusal {
    if matches!(error, StoreError::Busy) {
        return Refusal::new(RefusalCode::Unavailable, error.to_string(), "nothing: it is tried again")
            .retry_after(SOON);
    }
    tracing::error!("a request failed: {error}");
    let remedy = "try again; if it stays so, look at the controller's log";
    Refusal::new(RefusalCode::Internal, "the controller could not carry it out", remedy).retry_after(SOON)
}

/// A heartbeat that could not be written. Whoever writes them has said why.
pub(super) fn not_durable() -> Refusal {
    let message = "the heartbeat could not be recorded";
    Refusal::new(RefusalCode::Unavailable, message, "nothing: the next one is sent as usual")
        .retry_after(SOON)
}

/// An appliance that is not known, or not by this key: the two are not told apart.
pub(super) fn unknown_appliance() -> Refusal {
    let remedy = "enrol the appliance with a registration token: `horizon-appliance enroll TOKEN`";
    Refusal::new(RefusalCode::Unauthenticated, "the controller does not know this appliance", remedy)
}

/// An appliance whose server has ended.
pub(super) fn ended_server(name: &str, reason: &str) -> Refusal {
    let message = format!("the server '{name}' has ended: {reason}");
    let remedy = "declare it again with the annotation horizon.dev/id, or declare a new server and enrol the appliance \
                  with a token of it";
    Refusal::new(RefusalCode::Revoked, message, remedy)
}

/// An appliance that does not prove that it holds the verification secret.
pub(super) fn unverified(name: &str, what: &str) -> Refusal {
    let message = format!("the appliance of server '{name}' did not prove its identity: {what}");
    let remedy = format!(
        "an administrator looks at `horizon-controller describe server {name}` and approves the identity \
         (`horizon-controller approve {name}`); the appliance then gets a new secret when it next connects"
    );
    Refusal::new(RefusalCode::Unauthenticated, message, remedy).retry_after(60)
}

/// An appliance whose identity was approved while it was connected.
pub(super) fn new_secret(name: &str) -> Refusal {
    let message = format!("the identity of server '{name}' was approved: a new verification secret waits");
    Refusal::new(RefusalCode::Unavailable, message, "nothing: the appliance connects again for it")
        .retry_after(1)
}

/// An appliance that did not answer in time.
pub(super) fn unanswered(name: &str) -> Refusal {
    let message = format!("the appliance of server '{name}' did not answer a challenge in time");
    Refusal::new(RefusalCode::Unavailable, message, "it may connect again").retry_after(SOON)
}

/// A second live process of one appliance.
pub(super) fn clone_of(name: &str) -> Refusal {
    let message = format!("another running copy of this appliance speaks for server '{name}'");
    let remedy = "stop one of the two; a copied machine is enrolled with a token of its own server";
    Refusal::new(RefusalCode::Clone, message, remedy).retry_after(60)
}

/// A connection that was replaced by a newer one.
pub(super) fn replaced() -> Refusal {
    Refusal::new(
        RefusalCode::Clone,
        "a newer connection speaks for this server",
        "nothing, if it is this appliance's",
    )
    .retry_after(SOON)
}

/// One connection of a device too many.
pub(super) fn too_many_of_device() -> Refusal {
    let message = "this device has too many connections, of which this was the oldest";
    Refusal::new(RefusalCode::Limit, message, "nothing, if it is still connected").retry_after(SOON)
}

/// A device that is not enrolled.
pub(super) fn not_enrolled() -> Refusal {
    let remedy = "add a personal key: `horizon key add`";
    Refusal::new(RefusalCode::Unauthenticated, "this device is not enrolled", remedy)
}

/// What policy or the state of things denies.
pub(super) fn denied(denial: &Denial) -> Refusal {
    let code = match denial {
        Denial::UnknownServer { .. } | Denial::ServerGone => RefusalCode::NotFound,
        Denial::DeviceRevoked | Denial::KeyRevoked | Denial::ServerRevoked { .. } => RefusalCode::Revoked,
        Denial::KeyReplaced => RefusalCode::Revoked,
        Denial::KeyExpired => RefusalCode::Expired,
        Denial::Maintenance { .. }
        | Denial::Decommissioned { .. }
        | Denial::Unregistered { .. }
        | Denial::Quarantined { .. } => RefusalCode::Unavailable,
        _ => RefusalCode::Policy,
    };
    Refusal::new(code, denial.to_string(), denial.remedy())
}

/// A server whose appliance is not there.
pub(super) fn offline(name: &str) -> Refusal {
    let message = format!("server '{name}' is not connected to the controller");
    Refusal::new(RefusalCode::Unavailable, message, "try again when it is back, or use another server")
        .retry_after(30)
}

/// A server whose state has no room for another session.
pub(super) fn state_full(name: &str) -> Refusal {
    let message =
        format!("server '{name}' carries as many sessions with as many rules as its state can hold");
    let remedy = "use another server, or have the policies' destinations written with fewer, wider ranges";
    Refusal::new(RefusalCode::Limit, message, remedy).retry_after(60)
}

/// A network that is blocked.
pub(super) fn blocked() -> Refusal {
    let remedy = "ask an administrator: this network is blocked (`horizon-controller get blocks`)";
    Refusal::new(RefusalCode::Policy, "the network that this comes from is blocked", remedy).retry_after(900)
}

/// A peer that did not say who it is.
pub(super) fn silent() -> Refusal {
    Refusal::new(
        RefusalCode::Limit,
        "nothing was said that proves who this is",
        "enrol, or connect when there is something to say",
    )
}

/// More peers from one address that have not proved who they are than there may be.
pub(super) fn too_many_unproven() -> Refusal {
    let message = "too many connections have not proved who they are";
    Refusal::new(RefusalCode::Limit, message, "try again soon").retry_after(SOON)
}

/// A session that its appliance did not take in.
pub(super) fn not_taken_in(name: &str, why: &str) -> Refusal {
    let message = format!("server '{name}' did not take in the session: {why}");
    Refusal::new(RefusalCode::Unavailable, message, "try again, or use another server").retry_after(SOON)
}

/// A takeover that must wait for the appliance of the other session.
pub(super) fn takeover_waits(server: &str, seconds: u64) -> Refusal {
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
    let message = format!("server '{server}' carries the other session and cannot be reached to end it");
    Refusal::new(RefusalCode::Unavailable, message, format!("try again in {seconds} s")).retry_after(seconds)
}

/// A registration that failed.
pub(super) fn registration(error: &RegisterError) -> Refusal {
    let new_token = "ask for a new registration token: `horizon-controller token SERVER`";
    let (code, remedy) = match error {
        RegisterError::Store(e) => return internal(e),
        RegisterError::Unknown => {
            (RefusalCode::Unauthenticated, "check that the whole token was pasted, or ask for a new one")
        }
        RegisterError::Expired(_) => (RefusalCode::Expired, new_token),
        RegisterError::Revoked(_) => (RefusalCode::Revoked, new_token),
        RegisterError::Used(_) | RegisterError::Superseded(_) => (RefusalCode::Used, new_token),
        RegisterError::Quarantined(_) => (
            RefusalCode::Unauthenticated,
            "an administrator approves the identity: `horizon-controller approve SERVER`; then enrol again",
        ),
        RegisterError::NoServer(_) => (RefusalCode::NotFound, "declare the server, then ask for a new token"),
        RegisterError::Ended(_) => (RefusalCode::Revoked, "declare a new server, then ask for a token of it"),
    };
    Refusal::new(code, error.to_string(), remedy)
}

/// An enrolment that failed.
pub(super) fn enrolment(error: &EnrolError) -> Refusal {
    let new_key = "ask an administrator for a new personal key";
    let (code, remedy) = match error {
        EnrolError::Store(e) => return internal(e),
        EnrolError::Unknown => {
            (RefusalCode::Unauthenticated, "check that the whole key was pasted, or ask for a new one")
        }
        EnrolError::KeyRevoked(_) => (RefusalCode::Revoked, new_key),
        EnrolError::KeyReplaced(_) => (RefusalCode::Revoked, new_key),
        EnrolError::KeyExpired(_) => (RefusalCode::Expired, new_key),
        EnrolError::NoUser(_) => (RefusalCode::NotFound, "ask an administrator to declare the user"),
        EnrolError::Suspended { .. } => (RefusalCode::Policy, "ask an administrator to end the suspension"),
        EnrolError::DeviceBlocked(_) => {
            (RefusalCode::Policy, "an administrator can allow it: `horizon-controller device allow`")
        }
        EnrolError::DeviceRevoked(_) => (
            RefusalCode::Revoked,
            "ask an administrator; a device that was revoked stays so, with a new key of its own it is a new one",
        ),
        EnrolError::TooMany { .. } => (
            RefusalCode::Limit,
            "revoke a device that is no longer used, or have the user's deviceLimit raised",
        ),
    };
    Refusal::new(code, error.to_string(), remedy)
}

/// A session that was not granted.
pub(super) fn session(error: &SessionError, server: &str) -> Refusal {
    let (code, remedy) = match error {
        SessionError::Store(e) => return internal(e),
        SessionError::User(denial) => return denied(denial),
        SessionError::Device(_) => (RefusalCode::Revoked, "ask an administrator for a new personal key"),
        SessionError::Server(_) => (RefusalCode::Unavailable, "use another server"),
        SessionError::Full(_) => {
            (RefusalCode::Limit, "try again later, use another server, or have limits.maxSessions raised")
        }
        SessionError::NoAddress(_) => (RefusalCode::Limit, "have a larger range of addresses declared"),
    };
    Refusal::new(code, format!("server '{server}': {error}"), remedy)
}
