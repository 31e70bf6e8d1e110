//! The security policies in force, made once for each change of the resources: every heartbeat asks for one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use horizon_crds::{Name, SecurityPolicySpec};

use super::Desired;
use crate::store::Revision;

/// Keeps them, by namespace.
#[derive(Default)]
pub(super) struct Policies(Mutex<Known>);

#[derive(Default)]
struct Known {
    revision: Revision,
    of: HashMap<Name, Arc<SecurityPolicySpec>>,
}

impl Policies {
    /// The policy of a namespace.
    pub(super) fn of(&self, desired: &dyn Desired, namespace: &Name) -> Arc<SecurityPolicySpec> {
        let (index, revision) = desired.in_force();
        // Each change is one step, so what is kept is whole whatever thread panics.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.revision != revision {
            *known = Known { revision, of: HashMap::new() };
        }
        if let Some(policy) = known.of.get(namespace) {
            return policy.clone();
        }
        let policy = Arc::new(index.security_policy(namespace));
        known.of.insert(namespace.clone(), policy.clone());
        policy
    }
}
