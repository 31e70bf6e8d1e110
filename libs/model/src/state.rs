//! Desired state: what the controller asks an appliance to reach, as a set of entries that change one by one.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{DestinationRule, Inbound, NetworkId, PublicKey, Secret, SessionId};

/// The name of an entry: `tunnel`, `network/3`, `session/0198…`. At most [`EntryId::MAX_BYTES`] of lower-case letters,
/// digits, `/`, `-` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(String);

/// A text that cannot name an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("an entry id has 1 to {} characters of a-z, 0-9, '/', '-' and '.'", EntryId::MAX_BYTES)]
pub struct InvalidEntryId;

impl EntryId {
    /// The longest name.
    pub const MAX_BYTES: usize = 96;

    /// Checks and takes a name.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidEntryId> {
        let text = text.into();
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'.');
        if text.is_empty() || text.len() > Self::MAX_BYTES || !text.bytes().all(ok) {
            return Err(InvalidEntryId);
        }
        Ok(Self(text))
    }

    /// The entry of an appliance's settings.
    pub fn settings() -> Self {
        Self("settings".into())
    }

    /// The entry of the tunnel.
    pub fn tunnel() -> Self {
        Self("tunnel".into())
    }

    /// The entry of the egress.
    pub fn egress() -> Self {
        Self("egress".into())
    }

    /// The entry of a virtual network.
    pub fn network(id: NetworkId) -> Self {
        Self(format!("network/{id}"))
    }

    /// The entry of a session.
    pub fn session(id: SessionId) -> Self {
        Self(format!("session/{id}"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for EntryId {
    type Error = InvalidEntryId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.0
    }
}

/// Something an appliance must know how to do before it may act on an entry. New meanings get new features, so that an
/// older appliance refuses what it would misunderstand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Layer 3 sessions over QUIC datagrams.
    TunnelV1,
    /// Masqueraded egress.
    EgressV1,
    /// Layer 3 virtual networks.
    NetworkL3V1,
    /// Access sessions with destination rules.
    SessionV1,
    /// Heartbeat settings.
    SettingsV1,
}

impl Feature {
    /// Every feature this version knows.
    pub const ALL: [Self; 5] =
        [Self::TunnelV1, Self::EgressV1, Self::NetworkL3V1, Self::SessionV1, Self::SettingsV1];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TunnelV1 => "tunnel.v1",
            Self::EgressV1 => "egress.v1",
            Self::NetworkL3V1 => "network.l3.v1",
            Self::SessionV1 => "session.v1",
            Self::SettingsV1 => "settings.v1",
        }
    }

    /// The feature of a name, `None` for one this version does not have.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.as_str() == name)
    }
}

/// One piece of desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// What it asks for.
    pub body: EntryBody,
}

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// How the agent itself behaves.
    Settings(SettingsEntry),
    /// The tunnel listener and the overlay addresses of the appliance.
    Tunnel(TunnelEntry),
    /// The way out.
    Egress(EgressEntry),
    /// A virtual network.
    Network(NetworkEntry),
    /// A session to admit.
    Session(Box<SessionEntry>),
}

impl EntryBody {
    /// The features an appliance needs for this entry.
    pub fn features(&self) -> Vec<Feature> {
        match self {
            Self::Settings(_) => vec![Feature::SettingsV1],
            Self::Tunnel(_) => vec![Feature::TunnelV1],
            Self::Egress(_) => vec![Feature::EgressV1],
            Self::Network(_) => vec![Feature::NetworkL3V1],
            Self::Session(_) => vec![Feature::SessionV1],
        }
    }
}

/// How the agent behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsEntry {
    /// Seconds between heartbeats, 1 to 3600.
    pub heartbeat_seconds: u32,
}

/// The tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEntry {
    /// The UDP port clients dial.
    pub port: u16,
    /// The inner MTU, 1280 to 9000 bytes.
    pub mtu: u16,
    /// The appliance's own overlay addresses, with the prefix lengths of the access ranges.
    pub addresses: Vec<IpNet>,
}

/// The way out of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressEntry {
    /// Whether packets from the access ranges leave under the appliance's own addresses.
    pub masquerade: bool,
    /// The access ranges.
    pub ranges: Vec<IpNet>,
}

/// A virtual network: sessions that hold it reach one another, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkEntry {
    /// The number in datagram headers, 1 or above.
    pub id: NetworkId,
    /// The `VirtualNetwork`'s name.
    pub name: String,
    /// Its addresses.
    pub ranges: Vec<IpNet>,
    /// Its MTU, 1280 to 9000 bytes.
    pub mtu: u16,
}

/// Who holds a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionKind {
    /// A person's; one per user.
    Access,
    /// Another appliance's.
    Trunk,
}

/// A network inside a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionNetwork {
    /// Which.
    pub network: NetworkId,
    /// The addresses the peer holds in it; packets from any other source are dropped.
    pub addresses: Vec<IpNet>,
    /// Whether the appliance's side may open flows toward the peer.
    pub inbound: Inbound,
}

/// A session to admit. Its absence ends it.
#[derive(Clone, Debug)]
pub struct SessionEntry {
    /// Which.
    pub id: SessionId,
    /// Whose.
    pub kind: SessionKind,
    /// The peer's key.
    pub peer_key: PublicKey,
    /// Authenticates the first packet's connection id.
    pub secret: Secret,
    /// The networks it carries.
    pub networks: Vec<SessionNetwork>,
    /// Where packets from the peer may go on the access network; empty means nowhere.
    pub rules: Vec<DestinationRule>,
    /// The most the session may carry each way, in bits per second; `None` for no limit.
    pub rate_limit: Option<u64>,
}

impl PartialEq for SessionEntry {
    /// Entries are compared to find what changed, never to admit anybody, so the secret needs no constant time here.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.kind == other.kind
            && self.peer_key == other.peer_key
            && self.secret.expose() == other.secret.expose()
            && self.networks == other.networks
            && self.rules == other.rules
            && self.rate_limit == other.rate_limit
    }
}

impl Eq for SessionEntry {}

/// All that an appliance is asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplianceState {
    /// Entries by name.
    pub entries: BTreeMap<EntryId, EntryBody>,
}

impl ApplianceState {
    /// The settings, if any.
    pub fn settings(&self) -> Option<&SettingsEntry> {
        self.entries.values().find_map(|b| if let EntryBody::Settings(s) = b { Some(s) } else { None })
    }

    /// The tunnel, if any.
    pub fn tunnel(&self) -> Option<&TunnelEntry> {
        self.entries.values().find_map(|b| if let EntryBody::Tunnel(t) = b { Some(t) } else { None })
    }

    /// The egress, if any.
    pub fn egress(&self) -> Option<&EgressEntry> {
        self.entries.values().find_map(|b| if let EntryBody::Egress(e) = b { Some(e) } else { None })
    }

    /// The virtual networks.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkEntry> {
        self.entries.values().filter_map(|b| if let EntryBody::Network(n) = b { Some(n) } else { None })
    }

    /// The sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &SessionEntry> {
        self.entries.values().filter_map(|b| if let EntryBody::Session(s) = b { Some(&**s) } else { None })
    }
}
