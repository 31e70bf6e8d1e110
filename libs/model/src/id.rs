//! Identifiers. Each is a type of its own, so that a device can never be passed where a server is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The identifier in its 16-byte form (RFC 9562).
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the 16-byte form; `None` when the length is another.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

uuid_id! {
    /// One `Server` resource for as long as it exists. A recreated name gets another.
    ServerId
}
uuid_id! {
    /// One device of a user, from its enrolment on.
    DeviceId
}
uuid_id! {
    /// One personal key.
    KeyId
}
uuid_id! {
    /// One session between a client and an appliance. It outlives the QUIC connections that carry it.
    SessionId
}
uuid_id! {
    /// One start of one appliance process. Two live incarnations of one server are clones.
    Incarnation
}

/// A network inside a session: 0 is the access network (through the appliance's host), 1 and above are
/// virtual networks. It travels in every datagram header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub u16);

impl NetworkId {
    /// The network that leads through the appliance's host.
    pub const ACCESS: Self = Self(0);
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
