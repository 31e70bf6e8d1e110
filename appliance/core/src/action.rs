//! What can be done to the host and the tunnel.

use std::fmt;

use horizon_model::{EntryId, NetworkId, SessionEntry, SessionId};
use ipnet::IpNet;

use crate::Ruleset;

/// One step. Each may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End a session and tell its peer.
    RemoveSession(SessionId),
    /// Forget a virtual network.
    RemoveNetwork(NetworkId),
    /// Close the tunnel, if any, and listen on this UDP port. Device, networks and sessions must be set again.
    Listen(u16),
    /// Close the tunnel: its sessions end, and its device vanishes.
    StopListening,
    /// Replace the nftables table by this rule set, as one transaction.
    ApplyRuleset(Ruleset),
    /// Remove the nftables table.
    RemoveRuleset,
    /// Remove the TUN device.
    RemoveTun,
    /// Create the TUN device with this MTU in bytes, up, and give it to the tunnel.
    CreateTun(u16),
    /// Set the TUN device's MTU in bytes.
    SetMtu(u16),
    /// Remove an address from the TUN device.
    RemoveAddress(IpNet),
    /// Add an address to the TUN device.
    AddAddress(IpNet),
    /// Bring the TUN device up.
    SetUp,
    /// Lead a range through the TUN device again.
    AddRoute(IpNet),
    /// Write a kernel setting, remembering what it was.
    Set {
        /// Its name under `/proc/sys`, with slashes.
        name: String,
        /// The value.
        value: String,
    },
    /// Write back what a kernel setting was, and forget it.
    Restore {
        /// Its name under `/proc/sys`, with slashes.
        name: String,
        /// What it was.
        value: String,
    },
    /// Make a virtual network known to the tunnel.
    AddNetwork(NetworkId),
    /// Admit a session, or change it in place.
    UpsertSession(Box<SessionEntry>),
}

impl Action {
    /// The entry that is not in force when this fails.
    pub fn entry(&self) -> EntryId {
        match self {
            Self::RemoveSession(id) => EntryId::session(*id),
            Self::UpsertSession(session) => EntryId::session(session.id),
            Self::RemoveNetwork(id) | Self::AddNetwork(id) => EntryId::network(*id),
            Self::ApplyRuleset(_) | Self::RemoveRuleset | Self::Set { .. } | Self::Restore { .. } => {
                EntryId::egress()
            }
            Self::Listen(_)
            | Self::StopListening
            | Self::RemoveTun
            | Self::CreateTun(_)
            | Self::SetMtu(_)
            | Self::RemoveAddress(_)
            | Self::AddAddress(_)
            | Self::SetUp
            | Self::AddRoute(_) => EntryId::tunnel(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveSession(id) => write!(f, "end session {id}"),
            Self::RemoveNetwork(id) => write!(f, "remove network {id}"),
            Self::Listen(port) => write!(f, "listen on UDP port {port}"),
            Self::StopListening => f.write_str("close the tunnel"),
            Self::ApplyRuleset(_) => f.write_str("apply the nftables rule set"),
            Self::RemoveRuleset => f.write_str("remove the nftables rule set"),
            Self::RemoveTun => f.write_str("remove the TUN device"),
            Self::CreateTun(mtu) => write!(f, "create the TUN device with MTU {mtu}"),
            Self::SetMtu(mtu) => write!(f, "set the TUN device's MTU to {mtu}"),
            Self::RemoveAddress(address) => write!(f, "remove the address {address}"),
            Self::AddAddress(address) => write!(f, "add the address {address}"),
            Self::SetUp => f.write_str("bring the TUN device up"),
            Self::AddRoute(range) => write!(f, "add the route to {range}"),
            Self::Set { name, value } => write!(f, "set {name} to {value}"),
            Self::Restore { name, value } => write!(f, "set {name} back to {value}"),
            Self::AddNetwork(id) => write!(f, "add network {id}"),
            Self::UpsertSession(session) => write!(f, "admit session {}", session.id),
        }
    }
}
