//! Documents as the database keeps them: the JSON of a resource, read back into its type.

use std::collections::BTreeMap;

use horizon_crds::{Document, KindName, Metadata, Name, Resource};
use serde::Deserialize;
use serde_json::Value;

use super::StoreError;

#[derive(Deserialize)]
struct Raw {
    kind: KindName,
    metadata: RawMetadata,
    spec: Value,
}

#[derive(Deserialize)]
struct RawMetadata {
    name: Name,
    namespace: Name,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The text of a resource.
pub(super) fn write(resource: &Resource) -> String {
    resource.to_json().to_string()
}

/// The resource of a text.
pub(super) fn read(text: &str) -> Result<Resource, StoreError> {
    parse(text).map_err(|e| StoreError::Corrupt { column: "document", why: e.to_string() })
}

fn parse(text: &str) -> Result<Resource, serde_json::Error> {
    let Raw { kind, metadata, spec } = serde_json::from_str(text)?;
    let RawMetadata { name, namespace, labels, annotations } = metadata;
    let metadata = Metadata { name, namespace, labels, annotations };
    macro_rules! typed {
        ($($kind:ident),+) => {
            match kind {
                $(KindName::$kind => Resource::$kind(Document { metadata, spec: serde_json::from_value(spec)? }),)+
            }
        };
    }
    Ok(typed!(
        Server,
        RegistrationKey,
        User,
        PersonalKey,
        AccessPolicy,
        VirtualNetwork,
        SecurityPolicy,
        Approval,
        Revocation,
        RotationPolicy,
        KeyRotation,
        DeviceDecision
    ))
}
