//! From an object as the API server hands it out to a file of the desired state.

use std::sync::Arc;

use horizon_controller_core::{File, ObjectVersion};
use horizon_crds::{
    API_VERSION, ConditionStatus, KindName,
    document::{KUBERNETES_PREFIX, from_object},
};
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    author::author,
    objects::{Entry, Key, hash, hash_json},
};

/// An object that was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) key: Key,
    pub(super) entry: Entry,
    author: Option<Arc<str>>,
    /// Whether somebody deleted it, and only others' finalizers keep it. That cannot be taken back.
    pub(super) ends: bool,
    object: DynamicObject,
}

impl Seen {
    /// Looks at an object. `None` when it lacks what every stored object has. With `stamped` the annotation that names who
    /// changed it is the API server's own.
    pub(super) fn new(kind: KindName, object: DynamicObject, stamped: bool) -> Option<Self> {
        let metadata = &object.metadata;
        let key = Key {
            kind,
            namespace: metadata.namespace.as_deref()?.into(),
            name: metadata.name.as_deref()?.into(),
        };
        let uid: Uuid = metadata.uid.as_deref()?.parse().ok()?;
        let generation = metadata.generation.unwrap_or_default();
        let author = author(metadata, stamped);
        let status = object.data.get("status").unwrap_or(&Value::Null);
        let entry = Entry {
            uid,
            generation,
            version: metadata.resource_version.as_deref()?.into(),
            // The API server counts the generation with every change of the spec.
            content: hash(&(uid, generation, &metadata.labels, &metadata.annotations, &author)),
            status: hash_json(status),
            accepted: accepted(status),
            wrote: None,
        };
        let ends = metadata.deletion_timestamp.is_some();
        Some(Self { key, entry, author, ends, object })
    }

    /// The path that stands for the object.
    pub(super) fn path(&self) -> Arc<str> {
        path(&self.key, self.entry.uid)
    }

    /// What it declares.
    pub(super) fn into_file(self) -> File {
        let path = self.path();
        let Self { key, entry, author, mut object, .. } = self;
        let mut metadata = Map::new();
        metadata.insert("name".into(), key.name.into_string().into());
        metadata.insert("namespace".into(), key.namespace.into_string().into());
        metadata.insert("labels".into(), json!(object.metadata.labels.unwrap_or_default()));
        metadata.insert("annotations".into(), json!(object.metadata.annotations.unwrap_or_default()));
        let mut document = Map::new();
        document.insert("apiVersion".into(), API_VERSION.into());
        document.insert("kind".into(), key.kind.as_str().into());
        document.insert("metadata".into(), metadata.into());
        if let Some(spec) = object.data.get_mut("spec") {
            document.insert("spec".into(), spec.take());
        }
        let mut file = File::from(from_object(&path, document.into()));
        file.object = Some(ObjectVersion { uid: entry.uid, generation: entry.generation });
        file.author = author;
        file
    }
}

/// The path that stands for an object: another one for an object recreated under the same name.
pub(super) fn path(key: &Key, uid: Uuid) -> Arc<str> {
    format!("{KUBERNETES_PREFIX}{}/{}/{}/{uid}", key.namespace, key.kind, key.name).into()
}

/// What a status says about being accepted, and since when.
pub(super) fn accepted(status: &Value) -> Option<(ConditionStatus, Timestamp)> {
    let conditions = status.get("conditions")?.as_array()?;
    let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
    let holds = match accepted["status"].as_str()? {
        "True" => ConditionStatus::True,
        "False" => ConditionStatus::False,
        _ => ConditionStatus::Unknown,
    };
    Some((holds, accepted["lastTransitionTime"].as_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use horizon_crds::Resource;

    use super::*;

    fn seen(object: Value) -> Option<Seen> {
        Seen::new(KindName::User, serde_json::from_value(object).unwrap(), true)
    }

    fn ana(spec: Value) -> Value {
        let mut object = json!({
            "apiVersion": API_VERSION, "kind": "User",
            "metadata": {
                "name": "ana", "namespace": "people", "uid": "7f1f6c52-7c49-4d2e-8f6d-0c6f6f5f0001", "generation": 3,
                "resourceVersion": "41", "annotations": { "horizon.dev/changed-by": "alice", "example.org/a": "b" },
                "managedFields": [{ "manager": "kubectl", "operation": "Apply", "fieldsV1": {} }],
            },
            "status": { "conditions": [
                { "type": "Accepted", "status": "False", "lastTransitionTime": "2026-01-02T03:04:05Z" },
            ] },
        });
        object["spec"] = spec;
        object
    }

    #[test]
    fn an_object_becomes_a_file() {
        let seen = seen(ana(json!({ "groups": ["staff"] }))).unwrap();
        let since = Some((ConditionStatus::False, "2026-01-02T03:04:05Z".parse().unwrap()));
        assert_eq!((seen.entry.accepted, &*seen.entry.version), (since, "41"));
        let file = seen.into_file();
        assert_eq!(file.object.map(|object| object.generation), Some(3));
        assert_eq!(file.author.as_deref(), Some("alice"));
        let candidate = &file.resources[0];
        let Resource::User(user) = &*candidate.resource else { panic!("no user") };
        assert_eq!(user.metadata.annotations.keys().collect::<Vec<_>>(), ["example.org/a"]);
        assert_eq!(candidate.place.file(), "kubernetes/people/User/ana/7f1f6c52-7c49-4d2e-8f6d-0c6f6f5f0001");
    }

    #[test]
    fn a_malformed_object_is_a_file_with_problems() {
        for spec in [json!(null), json!([]), json!({ "groups": 1 }), json!("x".repeat(1_500_000))] {
            let file = seen(ana(spec)).unwrap().into_file();
            assert!(file.resources.is_empty() && file.complete, "{file:?}");
            assert_eq!(
                file.problems[0].resource.as_ref().map(ToString::to_string).unwrap(),
                "User people/ana"
            );
        }
    }

    #[test]
    fn only_what_is_declared_counts_as_content() {
        let before = seen(ana(json!({}))).unwrap();
        let mut later = ana(json!({}));
        later["metadata"]["resourceVersion"] = "42".into();
        later["status"] = json!({});
        let later = seen(later).unwrap();
        assert_eq!(before.entry.content, later.entry.content);
        assert_ne!(before.entry.status, later.entry.status);
        let mut edited = ana(json!({}));
        edited["metadata"]["generation"] = 4.into();
        assert_ne!(seen(edited).unwrap().entry.content, before.entry.content);
    }
}
