//! The controller's refusals and silences as failures that a person can act on.

use horizon_channel::{ConnectError, RequestError};
use horizon_client_core::failure::{Failure, FailureKind};
use horizon_wire::{proto::RefusalCode, refusal::Refusal};

/// A refusal.
pub(super) fn refused(refusal: Refusal) -> Failure {
    use RefusalCode as C;
    let kind = match refusal.code {
        C::Unauthenticated | C::Expired | C::Revoked | C::Used | C::Policy | C::NotFound | C::Clone => {
            FailureKind::Refused
        }
        C::Unspecified | C::Version | C::Malformed | C::Unavailable | C::Limit | C::Internal => {
            FailureKind::Failed
        }
    };
    let mut remedy = refusal.remedy;
    if remedy.is_empty() && refusal.retry_after_seconds > 0 {
        remedy = format!("try again in {} s", refusal.retry_after_seconds);
    }
    Failure::new(kind, refusal.message, remedy)
}

/// No controller was reached, or not one to trust.
pub(super) fn not_connected(error: ConnectError) -> Failure {
    match error {
        ConnectError::Unreachable(_) => Failure::new(
            FailureKind::Unreachable,
            error.to_string(),
            "check the network and that UDP to the controller's port passes; a session that is open goes on without it",
        ),
        ConnectError::Refused(refusal) => refused(refusal),
        ConnectError::Trust { .. } | ConnectError::UntrustedTlsKey { .. } => Failure::failed(
            error.to_string(),
            "somebody may be posing as the controller; if the organisation was set up anew, add a new personal key",
        ),
        ConnectError::Protocol(_) => Failure::failed(
            error.to_string(),
            "check that the address is a Horizon controller's and that both sides are up to date",
        ),
    }
}

/// A request without an answer.
pub(super) fn not_answered(error: RequestError) -> Failure {
    match error {
        RequestError::Refused(refusal) => refused(refusal),
        RequestError::Gone | RequestError::Timeout => Failure::new(
            FailureKind::Unreachable,
            error.to_string(),
            "try again; a session that is open goes on without the controller",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_is_told_from_trouble() {
        let policy = refused(Refusal::new(RefusalCode::Policy, "no policy allows it", "apiVersion = …"));
        assert_eq!((policy.kind.exit_code(), policy.remedy.as_str()), (3, "apiVersion = …"));
        let busy = refused(Refusal::new(RefusalCode::Limit, "too fast", "").retry_after(7));
        assert_eq!((busy.kind.exit_code(), busy.remedy.as_str()), (1, "try again in 7 s"));
        let away = not_connected(ConnectError::Unreachable(vec![("c:1".into(), "refused".into())]));
        assert_eq!(away.kind.exit_code(), 4);
        assert!(away.message.contains("c:1: refused"), "{away}");
        assert_eq!(not_answered(RequestError::Gone).kind.exit_code(), 4);
    }
}
