//! What statuses are made from besides resources: what the store and the live layer know.

use std::net::IpAddr;

use horizon_crds::Name;
use horizon_model::{Capability, DeviceId, EntryProblem, IdentityChange, PublicKey};
use jiff::Timestamp;

/// Whether an appliance's control channel is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether it is up now.
    pub connected: bool,
    /// Since when it is so.
    pub since: Timestamp,
}

/// What is known about a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// When an appliance registered.
    pub registered_at: Option<Timestamp>,
    /// What the appliance reports to be able to do.
    pub capabilities: Vec<Capability>,
    /// The address it is seen under.
    pub public_address: Option<IpAddr>,
    /// The version of its software.
    pub version: Option<String>,
    /// Whether it answered its last challenge correctly; `None` before the first.
    pub verified: Option<bool>,
    /// Whether it waits for an approval.
    pub requires_verification: bool,
    /// Why it does.
    pub verification_reason: Option<String>,
    /// The digest of the approved identity factors.
    pub identity_digest: Option<[u8; 32]>,
    /// The digest of those that wait for an approval.
    pub pending_digest: Option<[u8; 32]>,
    /// What differs between the two.
    pub identity_changes: Vec<IdentityChange>,
    /// How far its machine is from the approved one, in points.
    pub identity_drift: u64,
    /// Where its public address is, in words.
    pub location: Option<String>,
    /// Its control channel; `None` when none was seen since the controller started.
    pub presence: Option<Presence>,
    /// The generation of the state it is asked to reach; 0 when none was made yet.
    pub state_generation: u64,
    /// The generation it last applied.
    pub applied_generation: u64,
    /// Since when it is behind, as far as somebody has watched.
    pub behind_since: Option<Timestamp>,
    /// Entries that are not in force.
    pub problems: Vec<EntryProblem>,
    /// What is known about whether its tunnel's port can be reached, when it cannot.
    pub unreachable: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Whether it was revoked as compromised.
    pub compromised: bool,
}

/// What is known about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Which.
    pub id: DeviceId,
    /// The name it gave itself.
    pub name: String,
    /// The operating system.
    pub platform: String,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// What is known about a personal key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersonalKeyFacts {
    /// When its first device was enrolled.
    pub activated_at: Option<Timestamp>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was deactivated.
    pub deactivated_at: Option<Timestamp>,
    /// Why.
    pub deactivation_reason: Option<String>,
    /// Whether it counts as compromised.
    pub compromised: bool,
    /// The devices enrolled with it.
    pub devices: Vec<DeviceFacts>,
    /// The file with the key string, until it was delivered.
    pub secret_file: Option<String>,
    /// How many rotations it went through.
    pub rotations: u32,
    /// When it was last rotated.
    pub last_rotation: Option<Timestamp>,
    /// Until when the version before the newest works, while it does.
    pub overlap_end: Option<Timestamp>,
    /// The devices that are to take the newest version and have not confirmed it.
    pub unconfirmed: Vec<DeviceId>,
    /// Whether people have to enter the newest version.
    pub manual_rotation_required: bool,
}

/// What is known about what a rotation policy did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationPolicyFacts {
    /// When a rotation of it last began.
    pub last_run: Option<Timestamp>,
    /// When the next begins.
    pub next_run: Option<Timestamp>,
    /// How many keys follow it.
    pub keys: u32,
    /// How many of them are being rotated.
    pub rotating: u32,
    /// How many rotations it began.
    pub rotations: u32,
    /// How many of them failed, or were not confirmed by all.
    pub failures: u32,
}

/// What is known about how far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationFacts {
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub completed_at: Option<Timestamp>,
    /// When the old keys end at the latest.
    pub overlap_ends_at: Option<Timestamp>,
    /// How many keys it is about.
    pub total: u32,
    /// How many of them are rotated.
    pub done: u32,
    /// How many devices or appliances are to take a new key.
    pub receivers: u32,
    /// How many have.
    pub confirmed: u32,
    /// What went wrong: with what, and what.
    pub failures: Vec<(String, String)>,
}

/// What is known about a registration key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrationKeyFacts {
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was used.
    pub used_at: Option<Timestamp>,
    /// By whom.
    pub used_by: Option<PublicKey>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The file with the token, until it was delivered.
    pub secret_file: Option<String>,
}

/// What is known about a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserFacts {
    /// The user's keys, by name.
    pub keys: Vec<(Name, PersonalKeyFacts)>,
    /// The user's devices.
    pub devices: Vec<DeviceFacts>,
}

/// What became of an approval or a revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionFacts {
    /// When it took effect.
    pub effective_at: Option<Timestamp>,
    /// The servers that were told.
    pub applied_servers: Vec<Name>,
}

/// What is known about one resource, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// A server's.
    Server(Box<ServerFacts>),
    /// A registration key's.
    RegistrationKey(RegistrationKeyFacts),
    /// A user's.
    User(UserFacts),
    /// A personal key's.
    PersonalKey(PersonalKeyFacts),
    /// A virtual network's: how many of its addresses are given out.
    VirtualNetwork {
        /// Addresses given out.
        addresses_in_use: u32,
    },
    /// A security policy's: how many source addresses are locked out.
    SecurityPolicy {
        /// Addresses locked out.
        locked_out: u32,
    },
    /// An approval's.
    Approval(DecisionFacts),
    /// A revocation's.
    Revocation(DecisionFacts),
    /// A rotation policy's.
    RotationPolicy(RotationPolicyFacts),
    /// A rotation's.
    KeyRotation(RotationFacts),
    /// A decision's about a device.
    DeviceDecision(DecisionFacts),
    /// Nothing beyond resources: an access policy's.
    None,
}
