//! The bodies of requests and answers, shared by the server and the CLI.

use std::collections::BTreeMap;

use horizon_crds::{
    DeviceVerdict, IdentityDigest, KindName, Name, RotationTarget, RotationType, TargetKind, TimeSpan,
    Timestamp,
};
use horizon_model::{DeviceId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::store::KeySetHolders;

/// A list of resources or records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List<T> {
    /// The entries.
    pub items: Vec<T>,
}

/// A resource with what the controller knows about it, in the shape Kubernetes shows resources.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// `horizon.dev/v1alpha1`.
    pub api_version: String,
    /// The kind.
    pub kind: KindName,
    /// Name and origin.
    pub metadata: ObjectMeta,
    /// What is declared.
    pub spec: Value,
    /// What is so; absent until the controller has looked.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

/// What is known about a resource besides its spec and its status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// The name.
    pub name: Name,
    /// The namespace.
    pub namespace: Name,
    /// Its identity for as long as it exists; a resource recreated under the same name has another.
    pub uid: String,
    /// 1 at first, one more with every change of the spec.
    pub generation: i64,
    /// When it came into being.
    pub creation_timestamp: Timestamp,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations; `horizon.dev/origin` names the file, or the controller's own records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The annotation that says where a resource was written.
pub const ORIGIN: &str = "horizon.dev/origin";

/// Everything about one resource.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Detail {
    /// The resource.
    #[schema(value_type = Object)]
    pub object: Object,
    /// What it amounts to, in sentences: who may use a server, what a user may use and why not.
    pub reasons: Vec<String>,
    /// What is known about the appliance of a server, in sentences.
    #[serde(default)]
    pub appliance: Vec<String>,
    /// The newest heartbeats of a server's appliance, newest first.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub heartbeats: Vec<Value>,
    /// What is known of the machine of a server's appliance: what holds now, then what held before.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub factors: Vec<Value>,
    /// The newest challenges of a server's appliance, newest first.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub challenges: Vec<Value>,
    /// The newest rotations of the key, or of the verification secret of a server's appliance, newest first.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub rotations: Vec<Value>,
    /// What is wrong with its file now, if anything: the last good state is in force.
    pub problems: Vec<String>,
    /// The newest security events about it, newest first.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<Value>,
    /// The newest changes to it, newest first.
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<Value>,
}

/// Everything about one session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionDetail {
    /// The session, as lists show it.
    pub session: Value,
    /// What it moved, minute by minute, the newest first.
    pub minutes: Vec<Value>,
}

/// How the controller does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// What declares resources: the directory of the files, or Kubernetes.
    pub resources_directory: String,
    /// Where appliances and clients connect.
    pub listen: String,
    /// What tokens and invitations name.
    pub advertise: Vec<String>,
    /// The id of the organisation's root.
    pub root: String,
    /// Resources in force, by kind.
    pub resources: BTreeMap<String, u64>,
    /// Appliances with a control channel.
    pub appliances: u64,
    /// Devices with a control channel.
    pub devices: u64,
    /// Sessions requested or active.
    pub sessions: u64,
    /// What is wrong in the resource files now, one line each.
    pub problems: Vec<String>,
    /// Resources whose files vanished and that wait for `confirm-prune`; one line each.
    pub prune_pending: Vec<String>,
    /// Parts that are not ready, and why.
    pub not_ready: Vec<String>,
    /// The version of the resources in force: one more with every commit that changed something.
    #[serde(default)]
    pub revision: i64,
    /// How the database does: `answers`, or why it does not.
    #[serde(default)]
    pub database: String,
    /// Parts that do not do as they should, one line each.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The newest KeySet.
    #[serde(default)]
    pub keyset: u64,
    /// How many of those that are connected hold which KeySet.
    #[serde(default)]
    pub keyset_holders: Vec<KeySetHolders>,
    /// What seals the secrets of the database.
    #[serde(default)]
    pub envelope: String,
    /// The rotations of the organisation's keys that are under way, one line each.
    #[serde(default)]
    pub rotations: Vec<String>,
    /// This controller among others; absent where there can be no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
}

/// A controller among others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replication {
    /// The name of the replica that answers.
    pub replica: String,
    /// The name of the one that leads; absent when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The epoch under which this one leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// Every replica that is there or was until lately.
    pub replicas: Vec<ReplicaStatus>,
    /// How replicas hear of each other, and whether that works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

/// One replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Where appliances and clients reach it.
    pub addresses: Vec<String>,
    /// Its version.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
    /// Whether it was heard of lately.
    pub alive: bool,
    /// How long ago it was last heard of.
    pub seen_seconds: u64,
}

/// Asks for a registration token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// The namespace of the server.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The server.
    #[schema(value_type = String)]
    pub server: Name,
    /// How long the token can be used.
    #[schema(value_type = String)]
    pub lifetime: TimeSpan,
}

/// Asks for a personal key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InvitationRequest {
    /// The namespace of the user.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The user.
    #[schema(value_type = String)]
    pub user: Name,
    /// How long the key can be used; `None` until it is revoked.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub lifetime: Option<TimeSpan>,
}

/// The one string to paste. It is shown once; the controller keeps what it needs to recognise it, no more.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// The resource that stands for it.
    #[schema(value_type = String)]
    pub name: Name,
    /// The string.
    pub secret: String,
    /// Until when it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({})", self.name)
    }
}

/// Accepts a changed identity.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRequest {
    /// The namespace of the server.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The server.
    #[schema(value_type = String)]
    pub server: Name,
    /// Which identity; `None` for the pending one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub digest: Option<IdentityDigest>,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Revokes something for good.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevocationRequest {
    /// The namespace.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// What it is.
    #[schema(value_type = String)]
    pub kind: TargetKind,
    /// Its name; of a device its id.
    #[schema(value_type = String)]
    pub name: Name,
    /// Why.
    pub reason: String,
    /// Whether it is believed to be in wrong hands.
    #[serde(default)]
    pub compromised: bool,
}

/// Replaces keys now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotationRequest {
    /// The namespace.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// Which class of keys.
    #[schema(value_type = String)]
    pub target: RotationTarget,
    /// Which of them; none means all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub names: Vec<Name>,
    /// How.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: RotationType,
    /// Why.
    pub reason: String,
    /// For how long the old key of a scheduled rotation goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub overlap: Option<TimeSpan>,
}

/// Asks for the string of a personal key that was replaced at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyStringRequest {
    /// The namespace of the key.
    pub namespace: Name,
    /// The key.
    pub name: Name,
}

/// Asks for a hand-over of a personal key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandoverRequest {
    /// The namespace of the key.
    pub namespace: Name,
    /// The key.
    pub name: Name,
    /// How long the hand-over is open; seven days at most.
    pub lifetime: TimeSpan,
}

/// A hand-over. Both parts are shown once, and belong on two different ways.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandedOver {
    /// The key.
    pub name: Name,
    /// The string.
    pub handover: String,
    /// The code.
    pub code: String,
    /// Until when they can be used.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HandedOver({})", self.name)
    }
}

/// Decides about a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceDecisionRequest {
    /// The namespace of its user.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// Which.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// What.
    #[schema(value_type = String)]
    pub decision: DeviceVerdict,
    /// Why.
    pub reason: String,
    /// Its new name, with `rename`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_name: Option<String>,
}

/// Everything about one device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceDetail {
    /// Whether it has a channel to a controller now.
    pub online: bool,
    /// The device, as lists show it.
    #[schema(value_type = Object)]
    pub device: Value,
    /// Its sessions, the newest first.
    #[schema(value_type = Vec<Object>)]
    pub sessions: Vec<Value>,
    /// The newest security events about it, newest first.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<Value>,
    /// The newest changes to it, newest first.
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<Value>,
}

/// The record that was written.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Its kind.
    #[schema(value_type = String)]
    pub kind: KindName,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// What it means, in a sentence.
    pub message: String,
}

/// A file of resources, as `diff` sends it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileText {
    /// Its path below the directory.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Asks what would change.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// The files of the directory.
    pub files: Vec<FileText>,
}

/// What was done, in a sentence.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// The sentence.
    pub message: String,
}

/// What would change if the controller read the files that were sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// What is wrong, one line each. What it would replace stays in force.
    pub problems: Vec<String>,
    /// What would come into force, change or go.
    pub resources: Vec<ResourceDiff>,
    /// Why removals would wait for a confirmation, if they would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Servers whose appliances would be told something, as `namespace/name`.
    pub servers: Vec<String>,
    /// Whose access would change.
    pub access: Vec<AccessDiff>,
    /// Live sessions that would end or be cut down.
    pub sessions: Vec<SessionDiff>,
    /// Whether there were too many users and servers to compare all.
    pub partial: bool,
}

/// What would happen to a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceDiff {
    /// The kind.
    pub kind: KindName,
    /// The namespace.
    pub namespace: Name,
    /// The name.
    pub name: Name,
    /// What happens.
    pub action: Action,
    /// The fields that change; for what comes or goes, none.
    pub fields: Vec<FieldDiff>,
}

/// What would happen to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It comes into force.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Remove,
}

/// A field that would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldDiff {
    /// Its path, like `spec.servers`.
    pub field: String,
    /// What it is; absent when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it would be; absent when it would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// How a user's access to a server would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessDiff {
    /// The namespace of both.
    pub namespace: Name,
    /// The user.
    pub user: Name,
    /// The server.
    pub server: Name,
    /// How.
    pub effect: Effect,
}

/// How access would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// There is none and there would be some.
    Gained,
    /// There is some and there would be none.
    Lost,
    /// Some of it would be taken away, whatever is added.
    Narrowed,
    /// It would grow, or be set up otherwise.
    Changed,
}

/// What would happen to a live session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionDiff {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub user: Name,
    /// Where.
    pub server: Name,
    /// Whether it would end; otherwise it would be cut down.
    pub ends: bool,
}
