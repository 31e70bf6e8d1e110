//! Decisions: approvals, revocations, and letting resources go.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use data_encoding::BASE32_NOPAD;
use horizon_controller_core::Stored;
use horizon_crds::{
    ApprovalSpec, Decision, Document, IdentityDigest, InvalidValue, Issue, KindName, Metadata, Name,
    Resource, RevocationSpec, RevocationTarget, TargetKind, Text, document,
};

use super::{
    Api, ApiError,
    model::{ApprovalRequest, Done, Recorded, RevocationRequest},
    read,
    server::{Account, Body},
};
use crate::engine::PutError;

/// Brings a resource into force. It is checked by the rules of documents, which know the range of every field.
pub(crate) async fn put(api: &Api, resource: &Resource, account: &Account) -> Result<Arc<Stored>, ApiError> {
    let resource = document::from_json(&resource.to_json()).map_err(|issues| {
        let (message, remedy) = told(&issues);
        ApiError::bad_request(message, remedy)
    })?;
    api.engine.put(resource, account.actor()).await.map_err(refused)
}

fn refused(error: PutError) -> ApiError {
    match error {
        PutError::Refused(issues) => {
            let (message, remedy) = told(&issues);
            ApiError::conflict(message, remedy)
        }
        PutError::Failed(error) => ApiError::internal("write it down", error),
        busy @ (PutError::Busy | PutError::NoLeader(_) | PutError::AtLeader(_)) => {
            ApiError::unavailable(busy.to_string())
        }
        PutError::Stopped => ApiError::stopping(),
    }
}

/// What is wrong, and what to do.
fn told(issues: &[Issue]) -> (String, String) {
    let all = |part: fn(&Issue) -> String| issues.iter().map(part).collect::<Vec<_>>().join("; ");
    (all(|issue| format!("{}: {}", issue.field, issue.message)), all(|issue| issue.remedy.clone()))
}

/// A text of a request, as a spec takes it.
fn text<const MAX: usize>(given: &str) -> Result<Text<MAX>, ApiError> {
    given.parse().map_err(|error: InvalidValue| ApiError::bad_request(error.message, error.remedy))
}

pub(crate) async fn confirm_prune(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
) -> Result<Json<Done>, ApiError> {
    let message = match api.engine.confirm_prune(account.actor()).await.map_err(refused)? {
        0 => "nothing waits for a confirmation".to_owned(),
        1 => "1 resource was let go".to_owned(),
        count => format!("{count} resources were let go"),
    };
    Ok(Json(Done { message }))
}

/// A name for a record: the parts, as far as there is room, and a random ending that makes it unique.
pub(crate) fn record_name(parts: &[&str]) -> Result<Name, ApiError> {
    const LONGEST: usize = 63;
    let mut random = [0; 5];
    aws_lc_rs::rand::fill(&mut random).map_err(|error| ApiError::internal("draw a random name", error))?;
    let ending = BASE32_NOPAD.encode(&random).to_ascii_lowercase();
    let mut stem = parts.join("-");
    stem.truncate(LONGEST - 1 - ending.len());
    let name = format!("{}-{ending}", stem.trim_end_matches('-'));
    name.as_str().try_into().map_err(|error| ApiError::internal("make a name", error))
}

pub(crate) async fn approve(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<ApprovalRequest>,
) -> Result<Json<Recorded>, ApiError> {
    let ApprovalRequest { namespace, server, digest, reason } = request;
    let index = api.engine.index();
    let Some((stored, _)) = index.server(&namespace, &server) else {
        return Err(read::missing(&api, KindName::Server, &namespace, &server));
    };
    let facts = api.store.server_facts(stored.server_id()).await;
    let facts = facts.map_err(|error| ApiError::internal("read the identity", error))?;
    let digest = digest.or(facts.pending_digest.map(IdentityDigest::from)).ok_or_else(|| {
        let remedy = format!(
            "see `horizon-controller describe server {server}`; --digest approves an identity in advance"
        );
        ApiError::conflict(format!("server '{server}' has no identity that waits for an approval"), remedy)
    })?;
    let metadata = Metadata::new(namespace, record_name(&[&server])?);
    let name = metadata.name.clone();
    let message = format!("the identity {digest} of server '{server}' is approved ({name})");
    let spec = ApprovalSpec {
        server_ref: server,
        identity_digest: digest,
        decision: Decision::Approve,
        reason: text(&reason)?,
    };
    put(&api, &Resource::Approval(Document { metadata, spec }), &account).await?;
    Ok(Json(Recorded { kind: KindName::Approval, name, message }))
}

pub(crate) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<RevocationRequest>,
) -> Result<Json<Recorded>, ApiError> {
    let RevocationRequest { namespace, kind, name: target, reason, compromised } = request;
    let word = match kind {
        TargetKind::Server => "server",
        TargetKind::PersonalKey => "personalkey",
        TargetKind::Device => "device",
        TargetKind::RegistrationKey => "registrationkey",
    };
    let index = api.engine.index();
    let exists = match kind {
        TargetKind::Server => index.get(KindName::Server, &namespace, &target).is_some(),
        TargetKind::PersonalKey => index.get(KindName::PersonalKey, &namespace, &target).is_some(),
        TargetKind::RegistrationKey => index.get(KindName::RegistrationKey, &namespace, &target).is_some(),
        TargetKind::Device => true,
    };
    let reason = text(&reason)?;
    if reason.is_empty() {
        return Err(ApiError::bad_request(
            "a revocation needs a reason",
            "say why; it is kept in the audit trail",
        ));
    }
    let metadata = Metadata::new(namespace, record_name(&[word, &target])?);
    let name = metadata.name.clone();
    let spec =
        RevocationSpec { target: RevocationTarget { kind, name: target.clone() }, reason, compromised };
    put(&api, &Resource::Revocation(Document { metadata, spec }), &account).await?;
    let note = if exists { "" } else { "; there is none of that name now, but what is gone stays revoked" };
    let message = format!("{word} '{target}' is revoked for good ({name}){note}");
    Ok(Json(Recorded { kind: KindName::Revocation, name, message }))
}
