//! What a client is told about a session it was granted, or why it was not.

use std::net::SocketAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Capability, DeviceId, Failover, NetworkId, PublicKey, Secret, ServerId, SessionId};

/// Whether the far side may open flows toward the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inbound {
    /// Only answers to flows that the client opened.
    #[default]
    AnswersOnly,
    /// Any flow.
    Any,
}

/// A network as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketNetwork {
    /// The number in datagram headers.
    pub id: NetworkId,
    /// The `VirtualNetwork`'s name; empty for the access network.
    pub name: String,
    /// The client's own addresses in it, with the prefix length of the network.
    pub addresses: Vec<IpNet>,
    /// What is reached through it.
    pub routes: Vec<IpNet>,
    /// Whether the far side may open flows.
    pub inbound: Inbound,
}

/// The controller's signed word to a client: with whom, with which secret, under which addresses.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The session.
    pub session: SessionId,
    /// The server's identifier.
    pub server: ServerId,
    /// The server's name, for people.
    pub server_name: String,
    /// The device the ticket is for.
    pub device: DeviceId,
    /// The device's key, which the ticket is bound to.
    pub device_key: PublicKey,
    /// The appliance's key.
    pub appliance_key: PublicKey,
    /// Where the appliance listens, best first.
    pub addresses: Vec<SocketAddr>,
    /// Authenticates the first packet's connection id.
    pub secret: Secret,
    /// The networks of the session, the access network first.
    pub networks: Vec<TicketNetwork>,
    /// Resolvers to use while connected; empty leaves the client's own.
    pub dns: Vec<std::net::IpAddr>,
    /// What was granted.
    pub capabilities: Vec<Capability>,
    /// The inner MTU, in bytes.
    pub mtu: u16,
    /// When it was granted.
    pub issued: Timestamp,
    /// Whether the session may move to another server by itself.
    pub failover: Failover,
}

/// Another device of the same user holds the one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionConflict {
    /// The session that is live.
    pub session: SessionId,
    /// The name of the device that holds it.
    pub device_name: String,
    /// The server it is on.
    pub server_name: String,
    /// Since when.
    pub since: Timestamp,
}
