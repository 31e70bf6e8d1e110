//! What travels on the bus: hints and the like, several in one message. Compact JSON, small enough for a notification of
//! Postgres, after a tag that only who has the envelope key can make: every role of the database may notify, and who has
//! Redis may publish. What arrives is hostile until its tag is verified and it is read: a message that cannot be understood
//! is dropped, and so is the part of one that a newer controller may have written.

use std::{net::IpAddr, time::Duration};

use horizon_model::{DeviceId, ServerId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::tag::{BusKey, TAG};
use crate::{
    live::Hint,
    store::{ChannelLease, ReplicaId, Revision},
};

/// The largest message with its tag, in bytes: Postgres takes less than 8,000.
pub(super) const MAX_MESSAGE: usize = 7_500;
/// The longest reason of a session's end that travels, in bytes.
const MAX_REASON: usize = 512;
/// The longest lockout that is believed.
pub(super) const MAX_LOCKOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Over which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A channel of Redis.
    Redis = 0,
    /// A notification of the database.
    Database = 1,
}

impl Way {
    /// Ways have numbers of their own: what was said on one is nothing on the other.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Redis => b"redis",
            Self::Database => b"database",
        }
    }
}

/// One thing that replicas tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A hint for every listener.
    Hint(Hint),
    /// A server came or went at the sender.
    Server(ServerId),
    /// A device came or went at the sender.
    Device(DeviceId),
    /// Everything that is known of who is connected to the sender may be wrong.
    Roster,
    /// An address is locked out for so long.
    Lockout(IpAddr, Duration),
    /// A token is dead for so long.
    DeadToken(Uuid, Duration),
    /// What is cached under this name and id is no longer right.
    Cached(String, Uuid),
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
enum Written {
    #[serde(rename = "c")]
    ServerChanged(Uuid),
    #[serde(rename = "d")]
    StatusDirty(Uuid),
    #[serde(rename = "e")]
    SessionEnded(Uuid, Uuid, String),
    #[serde(rename = "h")]
    CheckSession(Uuid, Uuid),
    #[serde(rename = "a")]
    StateApplied(Uuid, u64),
    #[serde(rename = "r")]
    ResourcesChanged(i64),
    #[serde(rename = "m")]
    MakeWay(Uuid, i64),
    #[serde(rename = "q")]
    ProveAlive(Uuid, i64, Uuid),
    #[serde(rename = "y")]
    Alive(Uuid, Uuid, bool),
    #[serde(rename = "k")]
    KeysetsChanged,
    #[serde(rename = "b")]
    BlocksChanged,
    #[serde(rename = "all")]
    Everything,
    #[serde(rename = "s")]
    Server(Uuid),
    #[serde(rename = "v")]
    Device(Uuid),
    #[serde(rename = "roster")]
    Roster,
    #[serde(rename = "l")]
    Lockout(IpAddr, u64),
    #[serde(rename = "t")]
    DeadToken(Uuid, u64),
    #[serde(rename = "i")]
    Cached(String, Uuid),
}

impl From<&Item> for Written {
    fn from(item: &Item) -> Self {
        match item {
            Item::Hint(hint) => match hint {
                Hint::ServerChanged(server) => Self::ServerChanged(server.0),
                Hint::StatusDirty(uid) => Self::StatusDirty(*uid),
                Hint::SessionEnded { session, device, reason } => {
                    let cut = reason.floor_char_boundary(MAX_REASON);
                    Self::SessionEnded(session.0, device.0, reason[..cut].to_owned())
                }
                Hint::CheckSession { session, device } => Self::CheckSession(session.0, device.0),
                Hint::StateApplied { server, generation } => Self::StateApplied(server.0, *generation),
                Hint::ResourcesChanged(revision) => Self::ResourcesChanged(revision.0),
                Hint::PresenceChanged { server } => Self::Server(server.0),
                Hint::MakeWay { server, lease } => Self::MakeWay(server.0, lease.0),
                Hint::ProveAlive { server, lease, question } => {
                    Self::ProveAlive(server.0, lease.0, *question)
                }
                Hint::Alive { server, question, proved } => Self::Alive(server.0, *question, *proved),
                Hint::KeysetsChanged => Self::KeysetsChanged,
                Hint::BlocksChanged => Self::BlocksChanged,
                Hint::Everything => Self::Everything,
            },
            Item::Server(server) => Self::Server(server.0),
            Item::Device(device) => Self::Device(device.0),
            Item::Roster => Self::Roster,
            Item::Lockout(address, left) => {
                Self::Lockout(*address, u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
            }
            Item::DeadToken(token, left) => {
                Self::DeadToken(*token, u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
            }
            Item::Cached(name, id) => Self::Cached(name.clone(), *id),
        }
    }
}

impl Written {
    fn item(self) -> Item {
        match self {
            Self::ServerChanged(server) => Item::Hint(Hint::ServerChanged(ServerId(server))),
            Self::StatusDirty(uid) => Item::Hint(Hint::StatusDirty(uid)),
            Self::SessionEnded(session, device, reason) => {
                let cut = reason.floor_char_boundary(MAX_REASON);
                Item::Hint(Hint::SessionEnded {
                    session: SessionId(session),
                    device: DeviceId(device),
                    reason: reason[..cut].into(),
                })
            }
            Self::CheckSession(session, device) => {
                Item::Hint(Hint::CheckSession { session: SessionId(session), device: DeviceId(device) })
            }
            Self::StateApplied(server, generation) => {
                Item::Hint(Hint::StateApplied { server: ServerId(server), generation })
            }
            Self::ResourcesChanged(revision) => Item::Hint(Hint::ResourcesChanged(Revision(revision))),
            Self::MakeWay(server, lease) => {
                Item::Hint(Hint::MakeWay { server: ServerId(server), lease: ChannelLease(lease) })
            }
            Self::ProveAlive(server, lease, question) => Item::Hint(Hint::ProveAlive {
                server: ServerId(server),
                lease: ChannelLease(lease),
                question,
            }),
            Self::Alive(server, question, proved) => {
                Item::Hint(Hint::Alive { server: ServerId(server), question, proved })
            }
            Self::BlocksChanged => Item::Hint(Hint::BlocksChanged),
            Self::KeysetsChanged => Item::Hint(Hint::KeysetsChanged),
            Self::Everything => Item::Hint(Hint::Everything),
            Self::Server(server) => Item::Server(ServerId(server)),
            Self::Device(device) => Item::Device(DeviceId(device)),
            Self::Roster => Item::Roster,
            Self::Lockout(address, left) => {
                Item::Lockout(address, Duration::from_millis(left).min(MAX_LOCKOUT))
            }
            Self::DeadToken(token, left) => {
                Item::DeadToken(token, Duration::from_millis(left).min(MAX_LOCKOUT))
            }
            Self::Cached(name, id) => Item::Cached(name, id),
        }
    }
}

/// A message of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Who wrote it.
    pub(super) from: ReplicaId,
    /// One more than that of its message before on the same bus: a gap shows that some were lost.
    pub(super) number: u64,
    /// Whether it hears nothing over Redis.
    pub(super) deaf: bool,
    /// What it says.
    pub(super) items: Vec<Item>,
}

#[derive(Deserialize)]
struct Received {
    r: Uuid,
    n: u64,
    #[serde(default)]
    d: bool,
    h: Vec<Value>,
}

/// One item as it is written, to be put into messages by [`pack`].
pub(super) type Encoded = String;

/// Writes an item.
pub(super) fn encode(item: &Item) -> Encoded {
    // Numbers, identifiers and strings: there is nothing in them that JSON could not hold.
    serde_json::to_string(&Written::from(item)).unwrap_or_default()
}

/// Takes as many items from the front as fit into one message.
pub(super) fn pack(items: &[Encoded]) -> usize {
    const FRAME: usize = TAG + 128;
    let mut length = FRAME;
    items
        .iter()
        .take_while(|item| {
            length += item.len() + 1;
            length <= MAX_MESSAGE
        })
        .count()
}

/// A message of items that [`pack`] counted, for one way.
pub(super) fn write(
    key: &BusKey,
    way: Way,
    from: ReplicaId,
    number: u64,
    deaf: bool,
    items: &[Encoded],
) -> String {
    let text = format!(r#"{{"r":"{from}","n":{number},"d":{deaf},"h":[{}]}}"#, items.join(","));
    key.tagged(way.label(), &text)
}

/// Reads a message that came on a way. `None` when it is none, or was not written by a replica for this way.
pub(super) fn read(key: &BusKey, way: Way, text: &[u8]) -> Option<Message> {
    if text.len() > MAX_MESSAGE {
        return None;
    }
    let received: Received = serde_json::from_slice(key.verified(way.label(), text)?).ok()?;
    let written = received.h.into_iter().filter_map(|value| serde_json::from_value::<Written>(value).ok());
    Some(Message {
        from: ReplicaId(received.r),
        number: received.n,
        deaf: received.d,
        items: written.map(Written::item).collect(),
    })
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;
    use proptest::prelude::*;

    use super::*;

    fn key() -> BusKey {
        BusKey::new(&[Secret::new([42; 32])])
    }

    /// As a replica would have tagged it.
    fn heard(text: &str) -> Option<Message> {
        read(&key(), Way::Redis, key().tagged(Way::Redis.label(), text).as_bytes())
    }

    fn id() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    fn item() -> impl Strategy<Value = Item> {
        let server = || id().prop_map(ServerId);
        let lease = || any::<i64>().prop_map(ChannelLease);
        prop_oneof![
            server().prop_map(|s| Item::Hint(Hint::ServerChanged(s))),
            id().prop_map(|u| Item::Hint(Hint::StatusDirty(u))),
            (id(), id(), "\\PC{0,100}").prop_map(|(session, device, reason)| {
                Item::Hint(Hint::SessionEnded {
                    session: SessionId(session),
                    device: DeviceId(device),
                    reason: reason.into(),
                })
            }),
            (server(), any::<u64>())
                .prop_map(|(server, generation)| Item::Hint(Hint::StateApplied { server, generation })),
            any::<i64>().prop_map(|r| Item::Hint(Hint::ResourcesChanged(Revision(r)))),
            (server(), lease()).prop_map(|(server, lease)| Item::Hint(Hint::MakeWay { server, lease })),
            (server(), lease(), id()).prop_map(|(server, lease, question)| {
                Item::Hint(Hint::ProveAlive { server, lease, question })
            }),
            (server(), id(), any::<bool>()).prop_map(|(server, question, proved)| {
                Item::Hint(Hint::Alive { server, question, proved })
            }),
            Just(Item::Hint(Hint::BlocksChanged)),
            Just(Item::Hint(Hint::KeysetsChanged)),
            Just(Item::Hint(Hint::Everything)),
            Just(Item::Roster),
            server().prop_map(Item::Server),
            id().prop_map(|d| Item::Device(DeviceId(d))),
            (any::<IpAddr>(), 0u64..10_000_000)
                .prop_map(|(ip, ms)| Item::Lockout(ip, Duration::from_millis(ms))),
            (any::<u128>(), 0..86_400_000_u64)
                .prop_map(|(id, ms)| Item::DeadToken(Uuid::from_u128(id), Duration::from_millis(ms))),
            ("[a-z]{1,10}", id()).prop_map(|(name, id)| Item::Cached(name, id)),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_whole_and_fit(
            items in prop::collection::vec(item(), 0..300), from in id(), mut number in any::<u32>(), deaf in any::<bool>(),
        ) {
            let mut left: Vec<Encoded> = items.iter().map(encode).collect();
            let mut back = Vec::new();
            while !left.is_empty() {
                let fit = pack(&left);
                prop_assert!(fit > 0);
                let rest = left.split_off(fit);
                number = number.wrapping_add(1);
                let text = write(&key(), Way::Redis, ReplicaId(from), u64::from(number), deaf, &left);
                prop_assert!(text.len() <= MAX_MESSAGE);
                prop_assert!(read(&key(), Way::Database, text.as_bytes()).is_none());
                let message = read(&key(), Way::Redis, text.as_bytes()).unwrap();
                prop_assert_eq!((message.from.0, message.number, message.deaf), (from, u64::from(number), deaf));
                back.extend(message.items);
                left = rest;
            }
            prop_assert_eq!(back, items);
        }

        #[test]
        fn anything_else_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&key(), Way::Redis, &bytes).is_none());
            let _ = heard(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_damaged_message_is_not_read(
            items in prop::collection::vec(item(), 1..5), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let written: Vec<Encoded> = items.iter().map(encode).collect();
            let mut text =
                write(&key(), Way::Redis, ReplicaId(Uuid::nil()), 1, false, &written).into_bytes();
            let at = at.index(text.len());
            let same = text[at] == byte;
            text[at] = byte;
            prop_assert_eq!(read(&key(), Way::Redis, &text).is_some(), same);
            // Also one that was tagged as it is does not break the reader.
            if let Some(message) = heard(&String::from_utf8_lossy(&text[TAG..])) {
                prop_assert!(message.items.len() <= items.len());
            }
        }
    }

    #[test]
    fn what_a_newer_controller_adds_is_passed_over() {
        let text = r#"{"r":"00000000-0000-0000-0000-000000000001","n":7,"later":1,
            "h":[{"zz":[1,2]},{"r":5},"all",7,{"l":["192.0.2.1",18446744073709551615]}]}"#;
        let message = heard(text).unwrap();
        assert_eq!(
            message.items,
            [
                Item::Hint(Hint::ResourcesChanged(Revision(5))),
                Item::Hint(Hint::Everything),
                Item::Lockout("192.0.2.1".parse().unwrap(), MAX_LOCKOUT),
            ]
        );
        assert!(heard("").is_none());
        assert!(heard(&"[".repeat(7000)).is_none());
        assert!(heard(&format!("{text}{}", " ".repeat(MAX_MESSAGE))).is_none());
        let long = Hint::SessionEnded {
            session: SessionId(Uuid::nil()),
            device: DeviceId(Uuid::nil()),
            reason: "\u{1}ü".repeat(5000).into(),
        };
        assert_eq!(pack(&[encode(&Item::Hint(long))]), 1);
    }
}
