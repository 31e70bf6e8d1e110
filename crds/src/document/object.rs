//! Reading objects as the API server of Kubernetes hands them out.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Origin, Parsed, node::Node, read::Reader};
use crate::Metadata;

/// Annotations that tools keep on objects and that are no part of what is declared, by their domain.
const FOREIGN_DOMAINS: [&str; 6] =
    ["kubernetes.io", "k8s.io", "helm.sh", "argoproj.io", "fluxcd.io", "cattle.io"];
/// The annotation by which the API server itself notes who changed an object.
pub const CHANGED_BY: &str = "horizon.dev/changed-by";

/// Reads an object by the rules of documents. Of its metadata only what a document may have is looked at: annotations of
/// tools, and such as are too long or too many, are passed over, since an object has them without its author's doing.
/// `file` is what problems and the resource's place are named after; there are no positions in an object.
///
/// Like [`parse`](super::parse), never fails as a whole and never panics.
pub fn from_object(file: &Arc<str>, mut object: Value) -> Parsed {
    let mut document = Map::new();
    for key in ["apiVersion", "kind", "spec"] {
        if let Some(value) = object.get_mut(key) {
            document.insert(key.to_owned(), value.take());
        }
    }
    document.insert("metadata".to_owned(), metadata(object.get_mut("metadata").map(Value::take)));
    let mut reader = Reader::new(file.clone());
    reader.document(&Node::from_json(&Value::Object(document), 0));
    let mut parsed = reader.finish();
    for (_, origin) in &mut parsed.resources {
        *origin = Origin::elsewhere(file.clone());
    }
    parsed.problems.iter_mut().for_each(|problem| problem.position = None);
    parsed
}

fn metadata(object: Option<Value>) -> Value {
    let mut metadata = Map::new();
    let Some(Value::Object(mut fields)) = object else { return Value::Object(metadata) };
    for key in ["name", "namespace", "labels"] {
        if let Some(value) = fields.remove(key) {
            metadata.insert(key.to_owned(), value);
        }
    }
    if let Some(Value::Object(annotations)) = fields.remove("annotations") {
        let kept = annotations.into_iter().filter(|(key, value)| is_declared(key, value));
        metadata.insert("annotations".to_owned(), Value::Object(kept.take(Metadata::MAX_ENTRIES).collect()));
    }
    Value::Object(metadata)
}

/// Whether an annotation is part of what is declared.
fn is_declared(key: &str, value: &Value) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let below =
        |foreign: &str| domain.strip_suffix(foreign).is_some_and(|p| p.is_empty() || p.ends_with('.'));
    key != CHANGED_BY
        && !FOREIGN_DOMAINS.iter().any(|foreign| below(foreign))
        && value.as_str().is_some_and(|text| text.len() <= Metadata::MAX_ANNOTATION_BYTES)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Resource;

    fn read(object: Value) -> Parsed {
        from_object(&"kubernetes/default/User/ana/1".into(), object)
    }

    #[test]
    fn an_object_is_read_without_what_the_server_and_tools_add() {
        let parsed = read(json!({
            "apiVersion": "horizon.dev/v1alpha1",
            "kind": "User",
            "metadata": {
                "name": "ana", "namespace": "people", "uid": "1", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{ "manager": "kubectl" }],
                "labels": { "team": "a" },
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(9000),
                    "argocd.argoproj.io/tracking-id": "a:b", CHANGED_BY: "mallory",
                    "example.org/long": "y".repeat(9000), "example.org/note": "kept", "notkubernetes.io/note": "kept",
                },
            },
            "spec": { "groups": ["staff"] },
            "status": { "conditions": [] },
        }));
        assert_eq!(parsed.problems, []);
        let (resource, place) = &parsed.resources[0];
        let Resource::User(user) = resource else { panic!("no user") };
        assert_eq!(user.metadata.namespace.as_str(), "people");
        let annotations: Vec<_> = user.metadata.annotations.keys().collect();
        assert_eq!(annotations, ["example.org/note", "notkubernetes.io/note"]);
        assert_eq!(place.file(), "kubernetes/default/User/ana/1");
    }

    #[test]
    fn a_malformed_object_is_told_by_its_name() {
        let parsed = read(json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "User", "metadata": { "name": "ana", "namespace": "people" },
            "spec": { "groups": "staff", "old": null },
        }));
        assert!(parsed.resources.is_empty() && parsed.is_complete());
        let shown: Vec<_> = parsed.problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("User people/ana: spec.old: unknown field \"old\": "), "{shown:?}");
        assert_eq!(
            shown[1],
            "User people/ana: spec.groups: this is a text, where a list is expected: put the values in brackets"
        );
    }

    #[test]
    fn whatever_an_object_is_it_is_answered() {
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        for object in [
            json!(null),
            json!([]),
            json!({ "metadata": 3, "spec": deep }),
            json!({ "metadata": { "name": {} } }),
        ] {
            assert!(!read(object).problems.is_empty());
        }
    }
}
