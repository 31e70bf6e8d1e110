//! What conversations tell.

use std::{collections::BTreeSet, net::IpAddr};

use horizon_controller_core::detect::Finding;
use horizon_crds::Name;
use horizon_model::{ServerId, SessionId};
use uuid::Uuid;

/// Somebody with a name in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who<Id> {
    /// The identifier.
    pub id: Id,
    /// The namespace, whose policy holds.
    pub namespace: Name,
    /// The name.
    pub name: Name,
}

/// An appliance that proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its server.
    pub server: Who<ServerId>,
    /// Where it is.
    pub address: IpAddr,
    /// What it says that it can do.
    pub capabilities: BTreeSet<String>,
    /// What its declaration lets it do.
    pub declared: BTreeSet<String>,
    /// The version of its program.
    pub version: String,
}

/// A device of a user that proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its user.
    pub user: Who<Uuid>,
    /// Where it is.
    pub address: IpAddr,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// An appliance connected.
    Attached(Box<Attached>),
    /// A device connected.
    Arrived(Box<Arrived>),
    /// A session of a user began.
    SessionBegan(Box<Who<Uuid>>),
    /// A session ended.
    SessionEnded(SessionId),
    /// The conversation with an appliance found something, for which it keeps what is usual itself.
    Found(Box<(Who<ServerId>, IpAddr, Finding)>),
}
