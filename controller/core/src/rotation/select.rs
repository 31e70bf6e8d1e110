//! Which keys a rotation means, and which policy a key follows.

use std::sync::Arc;

use horizon_crds::{KeyRotationSpec, KindName, Name, Resource, RotationPolicySpec, RotationTarget};

use crate::index::{Index, Stored};

/// The policy that the keys of a class follow which name none: the first by name in the namespace, or for the controller's own
/// keys, which belong to no namespace, the first of all.
pub fn policy_for<'a>(
    index: &'a Index,
    target: RotationTarget,
    namespace: Option<&Name>,
) -> Option<(&'a Arc<Stored>, &'a RotationPolicySpec)> {
    let list = match namespace {
        Some(namespace) => index.in_namespace(KindName::RotationPolicy, namespace),
        None => index.all(KindName::RotationPolicy),
    };
    list.iter().find_map(|stored| match &*stored.resource {
        Resource::RotationPolicy(policy) if policy.spec.target == target => Some((stored, &policy.spec)),
        _ => None,
    })
}

/// Whether a rotation means a personal key, by its name and its user's. `member` says whether that user is in one of the groups
/// that the rotation names.
pub fn selects(spec: &KeyRotationSpec, key: &Name, user: &Name, member: bool) -> bool {
    spec.target == RotationTarget::PersonalKeys
        && (spec.all || spec.names.contains(key) || spec.users.contains(user) || member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, document, name, resource};

    #[test]
    fn keys_are_selected_by_name_user_and_group() {
        let selected = |spec: &str, key: &str, user: &str, member: bool| {
            let spec = format!("target = \"personalKeys\"\ntype = \"manual\"\nreason = \"r\"\n{spec}");
            let Resource::KeyRotation(rotation) = resource("KeyRotation", "r", &spec) else { unreachable!() };
            selects(&rotation.spec, &name(key), &name(user), member)
        };
        assert!(selected("names = [\"a-1\"]", "a-1", "a", false));
        assert!(!selected("names = [\"a-1\"]", "a-2", "a", false));
        assert!(selected("users = [\"a\"]", "a-2", "a", false));
        assert!(!selected("users = [\"a\"]", "b-1", "b", false));
        assert!(selected("groups = [\"g\"]", "b-1", "b", true));
        assert!(selected("all = true", "c-1", "c", false));
    }

    #[test]
    fn a_class_follows_the_first_policy_for_it() {
        let spec = |target: &str| format!("target = \"{target}\"\nevery = \"30d\"");
        let world = World::of(&[
            ("a.toml", document("RotationPolicy", "b", &spec("controllerKeys"))),
            ("b.toml", document("RotationPolicy", "c", &spec("controllerKeys"))),
            ("c.toml", document("RotationPolicy", "a", &spec("personalKeys"))),
        ]);
        let found = |target, namespace: Option<&str>| {
            let namespace = namespace.map(name);
            policy_for(&world.index, target, namespace.as_ref()).map(|(s, _)| s.resource.name().to_string())
        };
        assert_eq!(found(RotationTarget::ControllerKeys, None), Some("b".into()));
        assert_eq!(found(RotationTarget::PersonalKeys, Some("default")), Some("a".into()));
        assert_eq!(found(RotationTarget::PersonalKeys, Some("other")), None);
        assert_eq!(found(RotationTarget::VerificationSecrets, None), None);
    }
}
