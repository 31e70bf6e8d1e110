//! The vocabulary every part of Horizon shares: identifiers, keys, addresses, rules, the state an appliance is asked to
//! reach and the report of what it did. Plain data without I/O; the bytes on the network are `horizon-wire`'s business.

mod access;
mod bytes32;
mod id;
mod identity;
mod report;
mod session;
mod state;

pub use access::{Capability, DestinationRule, Failover, InvalidPorts, PortRange, Protocol};
pub use bytes32::{Digest, InvalidBytes, PublicKey, RootId, Secret, TaggedSecret};
pub use id::{DeviceId, Incarnation, KeyId, NetworkId, ServerId, SessionId};
pub use identity::{DeviceInfo, Factor, FactorKind, IdentityChange};
pub use report::{ApplianceReport, EntryProblem, ProblemCode, SessionUsage, Violation, ViolationKind};
pub use session::{Inbound, SessionConflict, Ticket, TicketNetwork};
pub use state::{
    ApplianceState, EgressEntry, Entry, EntryBody, EntryId, Feature, InvalidEntryId, NetworkEntry,
    SessionEntry, SessionKind, SessionNetwork, SettingsEntry, TunnelEntry,
};
