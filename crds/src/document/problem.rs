//! What is wrong with a file, for people.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use super::{Origin, Position};
use crate::{Issue, Resource, ResourceId};

/// How the files are named that stand for objects of Kubernetes: `kubernetes/NAMESPACE/KIND/NAME/UID`.
pub const KUBERNETES_PREFIX: &str = "kubernetes/";

/// Something wrong in a file: where it is, what it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    #[serde(serialize_with = "shared_text")]
    pub file: Arc<str>,
    /// The place in the file; `None` when the whole file is meant.
    pub position: Option<Position>,
    /// The resource, when it could be told.
    pub resource: Option<ResourceId>,
    /// The path of the field, like `spec.destinations[0].ports`; empty when no single field is meant.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// Places an issue of a resource.
    pub fn from_issue(issue: Issue, resource: &Resource, origin: &Origin) -> Self {
        Self {
            file: origin.shared_file(),
            position: Some(origin.locate(&issue.field)),
            resource: Some(resource.id()),
            field: issue.field,
            message: issue.message,
            remedy: issue.remedy,
        }
    }

    /// The problem for a reader who knows which resource is meant: the field, what is wrong, what to do about it.
    pub fn without_place(&self) -> String {
        let colon = if self.field.is_empty() { "" } else { ": " };
        format!("{}{colon}{}: {}", self.field, self.message, self.remedy)
    }

    /// Whether it is about an object of Kubernetes, which has no lines.
    pub fn is_of_object(&self) -> bool {
        self.file.starts_with(KUBERNETES_PREFIX)
    }

    pub(super) fn into_issue(self) -> Issue {
        Issue { field: self.field, message: self.message, remedy: self.remedy }
    }
}

/// serde shares no pointers unless a feature says so.
fn shared_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Problem {
    /// `policies.toml:12:3: AccessPolicy default/staff: spec.servers[0]: …: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.resource, self.is_of_object()) {
            (Some(resource), true) => write!(f, "{resource}")?,
            (resource, _) => {
                f.write_str(&self.file)?;
                if let Some(position) = self.position {
                    write!(f, ":{position}")?;
                }
                if let Some(resource) = resource {
                    write!(f, ": {resource}")?;
                }
            }
        }
        write!(f, ": {}", self.without_place())
    }
}
