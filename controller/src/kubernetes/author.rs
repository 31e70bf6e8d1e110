//! Who changed an object. A watch does not tell. A MutatingAdmissionPolicy of ours has the API server note it in an
//! annotation that nobody can forge while the policy is in force; without it there is only the name that the client gave
//! itself, which is marked as such.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use horizon_crds::document::CHANGED_BY;
use k8s_openapi::{
    api::admissionregistration::v1::{MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client};

use super::failure::{Failure, words};

/// The name of the policy, and of its binding.
pub const POLICY: &str = "horizon-changed-by";
/// How often to look whether the policy is in force.
pub(super) const LOOK: Duration = Duration::from_secs(60);
/// The longest name that is taken over, in bytes.
const MAX_AUTHOR: usize = 256;

/// Whether the API server notes who changes objects. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Stamps(Arc<AtomicBool>);

impl Stamps {
    /// Whether the annotation can be trusted.
    pub fn are_made(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Looks whether policy and binding are there.
    pub(super) async fn look(&self, client: &Client) {
        let policies: Api<MutatingAdmissionPolicy> = Api::all(client.clone());
        let bindings: Api<MutatingAdmissionPolicyBinding> = Api::all(client.clone());
        let policy = async { policies.get_metadata_opt(POLICY).await.map(|found| found.is_some()) };
        let binding = async { bindings.get_metadata_opt(POLICY).await.map(|found| found.is_some()) };
        let found = match tokio::try_join!(policy, binding) {
            Ok((policy, binding)) => policy && binding,
            // What is not known stays as it was, but a server that has none, or does not show it, has no say.
            Err(error) if Failure::of(&error) == Failure::Passing => return,
            Err(error) => {
                tracing::debug!(error = %words(&error), "the policy {POLICY} cannot be looked at");
                false
            }
        };
        if self.0.swap(found, Ordering::AcqRel) != found || !found {
            if found {
                tracing::info!("the API server notes who changes objects: the audit trail names users");
            } else {
                tracing::warn!(
                    "the policy {POLICY} is not in force: the audit trail names clients as they call themselves; apply \
                     manifests/base/changed-by.yaml to have users"
                );
            }
        }
    }
}

/// Who wrote what an object declares: a user of the API server when it noted that, else the client that wrote last, by its
/// own word.
pub(super) fn author(metadata: &ObjectMeta, stamped: bool) -> Option<Arc<str>> {
    let noted = metadata.annotations.as_ref().and_then(|annotations| annotations.get(CHANGED_BY));
    if let Some(user) = noted.filter(|user| stamped && !user.is_empty()) {
        return Some(cut(user).into());
    }
    let fields = metadata.managed_fields.iter().flatten();
    let spec = fields.filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty());
    let last = spec.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    let manager = last.manager.as_deref().filter(|manager| !manager.is_empty())?;
    Some(format!("client {} (not verified)", cut(manager)).into())
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_AUTHOR)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_note_counts_only_while_the_server_makes_it() {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "annotations": { CHANGED_BY: "alice" },
            "managedFields": [
                { "manager": "helm", "time": "2026-01-01T00:00:00Z" },
                { "manager": "kubectl-edit", "time": "2026-01-02T00:00:00Z" },
                { "manager": "horizon-controller", "subresource": "status", "time": "2026-01-03T00:00:00Z" },
            ],
        }))
        .unwrap();
        assert_eq!(author(&metadata, true).as_deref(), Some("alice"));
        assert_eq!(author(&metadata, false).as_deref(), Some("client kubectl-edit (not verified)"));
        assert_eq!(author(&ObjectMeta::default(), true), None);
        let long = "ä".repeat(1000);
        let metadata: ObjectMeta =
            serde_json::from_value(json!({ "annotations": { CHANGED_BY: long } })).unwrap();
        assert_eq!(author(&metadata, true).map(|author| author.len()), Some(MAX_AUTHOR));
    }
}
