//! The schema of Horizon: the resource kinds of `horizon.dev/v1alpha1`, read from TOML and YAML, checked, and described to
//! Kubernetes. Pure: bytes in, resources and problems out.
//!
//! | wanted | found in |
//! |---|---|
//! | the kinds' specs and statuses | [`ServerSpec`], [`ServerStatus`], [`UserSpec`], …; [`Condition`], [`set_condition`] |
//! | one resource of any kind | [`Resource`], [`Document`], [`Metadata`], [`ResourceId`] |
//! | a file's resources and problems | [`parse`], [`Parsed`], [`Problem`], [`Origin`]; JSON from an API: [`document::from_json`] |
//! | duplicates, dangling references, overlaps | [`check_set`], [`Names::dangling`] |
//! | what a new version may not change | [`Resource::check_update`] |
//! | whether a generation moves | [`Resource::canonical_spec`] |
//! | writing documents | [`document::to_toml`], [`document::to_yaml`], [`Resource::to_json`] |
//! | the words of a command line | [`KindName::parse`] |
//! | CRDs, the reference page, examples | [`crd`], [`reference`](fn@reference), [`example`]; the program `crdgen` |
//!
//! ```
//! use horizon_crds::{Resource, check_set, parse};
//!
//! let file = parse("ana.toml", br#"
//! apiVersion = "horizon.dev/v1alpha1"
//! kind = "User"
//! metadata.name = "ana"
//!
//! [spec]
//! groups = ["staff"]
//! devicelimit = 2
//! "#);
//! assert_eq!(
//!     file.problems[0].to_string(),
//!     "ana.toml:8:1: User default/ana: spec.devicelimit: unknown field \"devicelimit\": did you mean \"deviceLimit\"?",
//! );
//!
//! let file = parse("ana.yaml", b"{apiVersion: horizon.dev/v1alpha1, kind: User, metadata: {name: ana}, spec: {}}");
//! let (resource, origin) = &file.resources[0];
//! let Resource::User(user) = resource else { panic!("no user") };
//! assert_eq!(user.spec.device_limit, 5);
//! assert!(check_set(&[(resource, origin)]).is_empty());
//! ```

mod check;
mod condition;
mod crd;
pub mod document;
mod kind;
mod kinds;
mod reference;
mod resource;
mod set;
mod value;

pub use check::{Issue, Issues};
pub use condition::{Condition, ConditionStatus, ConditionType, set_condition};
pub use crd::{crd, crd_yaml};
pub use document::{Origin, Parsed, Position, Problem, parse};
pub use kind::{API_VERSION, GROUP, KindName, UnknownKind, VERSION};
pub use kinds::*;
pub use reference::{example, generated_files, reference};
pub use resource::{DEFAULT_NAMESPACE, Document, Metadata, Resource, ResourceId};
pub use set::{Names, SetProblem, check_set, check_set_with};
pub use value::{
    BitRate, Cidr, DomainName, EmailAddress, Endpoint, IdentityDigest, InvalidValue, Name, ServerSelector,
    Text, TimeOfDay, TimeSpan, Timestamp, Weekday,
};
