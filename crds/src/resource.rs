//! Resources: a spec with its kind and its name.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use crate::{
    API_VERSION, Issue, Issues, KindName, Name,
    kinds::{
        AccessPolicySpec, ApprovalSpec, DeviceDecisionSpec, KeyRotationSpec, PersonalKeySpec, Reference,
        RegistrationKeySpec, RevocationSpec, RotationPolicySpec, SecurityPolicySpec, ServerSpec, Spec,
        UserSpec, VirtualNetworkSpec,
    },
};

/// The namespace of a document that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a document says about its resource besides the spec: the part of Kubernetes' `ObjectMeta` that people write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The name, unique among the kind in its namespace.
    pub name: Name,
    /// The namespace.
    pub namespace: Name,
    /// Labels, by which tools select (at most [`Metadata::MAX_ENTRIES`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, which tools keep for themselves (at most [`Metadata::MAX_ENTRIES`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The most labels, and the most annotations.
    pub const MAX_ENTRIES: usize = 64;
    /// The longest value of a label.
    pub const MAX_LABEL_BYTES: usize = 63;
    /// The longest value of an annotation.
    pub const MAX_ANNOTATION_BYTES: usize = 4096;

    /// Metadata of a name in a namespace, without labels and annotations.
    pub fn new(namespace: Name, name: Name) -> Self {
        Self { name, namespace, labels: BTreeMap::new(), annotations: BTreeMap::new() }
    }
}

/// One resource of a known spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document<S> {
    /// Name, namespace, labels and annotations.
    pub metadata: Metadata,
    /// What is declared, with every default filled in.
    pub spec: S,
}

/// Which resource: its kind, namespace and name. Shown as `Server default/berlin`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ResourceId {
    /// The kind.
    pub kind: KindName,
    /// The namespace.
    pub namespace: Name,
    /// The name.
    pub name: Name,
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

macro_rules! resources {
    ($($kind:ident($spec:ident)),+ $(,)?) => {
        /// A resource of any kind.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "documented at the specs")]
        pub enum Resource {
            $($kind(Document<$spec>)),+
        }

        $(
            impl From<Document<$spec>> for Resource {
                fn from(document: Document<$spec>) -> Self {
                    Self::$kind(document)
                }
            }
        )+

        impl Resource {
            /// The kind.
            pub fn kind(&self) -> KindName {
                match self {
                    $(Self::$kind(_) => KindName::$kind),+
                }
            }

            /// Name, namespace, labels and annotations.
            pub fn metadata(&self) -> &Metadata {
                match self {
                    $(Self::$kind(document) => &document.metadata),+
                }
            }

            /// The spec as JSON, with every default.
            pub fn spec_json(&self) -> Value {
                let json = match self {
                    $(Self::$kind(document) => serde_json::to_value(&document.spec)),+
                };
                // Specs consist of strings, integers, lists and structs: nothing that JSON lacks.
                json.unwrap_or_default()
            }

            /// The names the spec refers to.
            pub fn references(&self) -> Vec<Reference> {
                match self {
                    $(Self::$kind(document) => document.spec.references()),+
                }
            }

            /// Checks what takes more than one field. Documents that were read are already checked; this is for resources
            /// that a program puts together.
            pub fn check(&self) -> Vec<Issue> {
                let mut issues = Issues::default();
                match self {
                    $(Self::$kind(document) => document.spec.check(&mut issues)),+
                }
                issues.into_vec()
            }

            /// Checks whether `self` may replace `old`: what is final stays final. Resources of different kinds share nothing
            /// and are not compared.
            pub fn check_update(&self, old: &Self) -> Vec<Issue> {
                let mut issues = Issues::default();
                match (self, old) {
                    $((Self::$kind(new), Self::$kind(old)) => new.spec.check_update(&old.spec, &mut issues),)+
                    _ => {}
                }
                issues.into_vec()
            }

            pub(crate) fn from_json(
                kind: KindName,
                metadata: Metadata,
                spec: Value,
            ) -> Result<Self, serde_json::Error> {
                Ok(match kind {
                    $(KindName::$kind => Self::$kind(Document { metadata, spec: serde_json::from_value(spec)? })),+
                })
            }
        }

        /// The JSON schema of a kind's spec, before Kubernetes' restrictions are applied.
        pub(crate) fn spec_schema(kind: KindName, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            match kind {
                $(KindName::$kind => <$spec as schemars::JsonSchema>::json_schema(generator)),+
            }
        }
    };
}

resources!(
    Server(ServerSpec),
    RegistrationKey(RegistrationKeySpec),
    User(UserSpec),
    PersonalKey(PersonalKeySpec),
    AccessPolicy(AccessPolicySpec),
    VirtualNetwork(VirtualNetworkSpec),
    SecurityPolicy(SecurityPolicySpec),
    Approval(ApprovalSpec),
    Revocation(RevocationSpec),
    RotationPolicy(RotationPolicySpec),
    KeyRotation(KeyRotationSpec),
    DeviceDecision(DeviceDecisionSpec),
);

impl Resource {
    /// The name.
    pub fn name(&self) -> &Name {
        &self.metadata().name
    }

    /// The namespace.
    pub fn namespace(&self) -> &Name {
        &self.metadata().namespace
    }

    /// Which resource this is.
    pub fn id(&self) -> ResourceId {
        ResourceId { kind: self.kind(), namespace: self.namespace().clone(), name: self.name().clone() }
    }

    /// The whole document as JSON: `apiVersion`, `kind`, `metadata` and `spec`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": self.kind().as_str(),
            "metadata": self.metadata(),
            "spec": self.spec_json(),
        })
    }

    /// The canonical bytes of the spec: JSON with sorted keys, without spaces, with every default. Two specs that mean the
    /// same have the same bytes, so a digest of them tells whether the generation moves.
    pub fn canonical_spec(&self) -> Vec<u8> {
        sorted(self.spec_json()).to_string().into_bytes()
    }
}

/// Brings keys in order also where serde_json is built to keep them in the order of their insertion.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().collect();
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
