//! Desired state as it travels: entries as exact bytes, digests over all of them, and signed deltas between two states.
//! A snapshot is a delta from the empty state.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use bytes::Bytes;
use horizon_model::{ApplianceState, Digest, EntryId, EntryProblem, ProblemCode, ServerId};
use prost::Message;
use thiserror::Error;

use crate::{convert, frame::MAX_FROM_CONTROLLER, proto};

/// The most entries a state has.
pub const MAX_ENTRIES: usize = 16_384;
/// The largest entry, in bytes: a session with every rule and port that it may have fits, whatever their texts.
pub const MAX_ENTRY_BYTES: usize = 128 * 1024;
/// The largest state, as [`Entries::size`] counts it: a snapshot of it fits one frame of a controller.
pub const MAX_STATE_BYTES: usize = MAX_FROM_CONTROLLER - 4096;
/// What an entry costs in a message besides its name and bytes: three tags and their lengths.
const ENTRY_OVERHEAD: usize = 16;

/// The entries of a state as exact bytes, by name. `Debug` shows the names only: entries hold the secrets of sessions.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entries(BTreeMap<EntryId, Bytes>);

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys().map(EntryId::as_str)).finish()
    }
}

impl Entries {
    /// The bytes of a state in model form.
    pub fn encode(state: &ApplianceState) -> Self {
        Self(state.entries.iter().map(|(id, body)| (id.clone(), convert::encode_entry(body))).collect())
    }

    /// The state these bytes ask for, and the entries this version must leave alone.
    pub fn decode(&self) -> (ApplianceState, Vec<EntryProblem>) {
        let mut state = ApplianceState::default();
        let mut problems = Vec::new();
        for (id, body) in &self.0 {
            match convert::decode_entry(body) {
                Ok(body) => {
                    state.entries.insert(id.clone(), body);
                }
                Err(e) => problems.push(EntryProblem {
                    entry: id.clone(),
                    code: match e {
                        convert::EntryError::UnknownFeature(_) => ProblemCode::UnknownFeature,
                        _ => ProblemCode::Invalid,
                    },
                    message: e.to_string(),
                }),
            }
        }
        (state, problems)
    }

    /// The entries, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&EntryId, &Bytes)> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes one entry takes in a snapshot, at most.
    pub fn size_of(id: &EntryId, body: &[u8]) -> usize {
        id.as_str().len() + body.len() + ENTRY_OVERHEAD
    }

    /// How many bytes all entries take in a snapshot, at most.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(id, body)| Self::size_of(id, body)).sum()
    }

    /// SHA-256 over the names and bytes of all entries, each with its length.
    pub fn digest(&self) -> Digest {
        let mut hash = Hash::new(&SHA256);
        for (id, body) in &self.0 {
            for part in [id.as_str().as_bytes(), body] {
                hash.update(&(part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        let mut out = [0; 32];
        out.copy_from_slice(hash.finish().as_ref());
        Digest(out)
    }
}

impl FromIterator<(EntryId, Bytes)> for Entries {
    fn from_iter<I: IntoIterator<Item = (EntryId, Bytes)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// A numbered state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    /// Raised when the controller was restored from a backup; states of an older epoch are refused.
    pub epoch: u64,
    /// Raised with every change; 0 is the empty state an appliance starts from.
    pub generation: u64,
    /// The entries.
    pub entries: Entries,
}

/// Why a delta was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeltaError {
    /// It cannot be read.
    #[error("the state cannot be read: {0}")]
    Malformed(&'static str),
    /// It is for another server.
    #[error("the state is for another server")]
    WrongAudience,
    /// It is older than what is in force.
    #[error("the state is stale: epoch {epoch}, generation {generation} is not above what is in force")]
    Stale {
        /// The epoch offered.
        epoch: u64,
        /// The generation offered.
        generation: u64,
    },
    /// It starts from a state that is not the one in force; the whole state is needed.
    #[error("the change starts from another state than the one in force")]
    WrongBase,
    /// The result is not what was announced.
    #[error("the state after the change is not the announced one")]
    WrongDigest,
}

/// The change that leads from `base` to `target`, for `audience`. With a base of generation 0 it is a snapshot.
pub fn compose(audience: ServerId, base: &Numbered, target: &Numbered) -> proto::StateDelta {
    let changed = |(id, body): &(&EntryId, &Bytes)| base.entries.0.get(*id) != Some(*body);
    proto::StateDelta {
        audience: audience.as_bytes().to_vec(),
        epoch: target.epoch,
        base_generation: base.generation,
        base_digest: base.entries.digest().0.to_vec(),
        generation: target.generation,
        digest: target.entries.digest().0.to_vec(),
        upserts: target
            .entries
            .iter()
            .filter(changed)
            .map(|(id, body)| proto::RawEntry { id: id.to_string(), body: body.to_vec() })
            .collect(),
        removes: base
            .entries
            .0
            .keys()
            .filter(|id| !target.entries.0.contains_key(*id))
            .map(ToString::to_string)
            .collect(),
    }
}

/// The state after a delta whose signature was verified.
pub fn apply(held: &Numbered, audience: ServerId, payload: &[u8]) -> Result<Numbered, DeltaError> {
    let delta =
        proto::StateDelta::decode(payload).map_err(|_| DeltaError::Malformed("not a state message"))?;
    if delta.audience != audience.as_bytes() {
        return Err(DeltaError::WrongAudience);
    }
    // A snapshot of the generation in force is no step back: it is what a resynchronisation brings.
    let snapshot = delta.base_generation == 0;
    let newer = delta.epoch > held.epoch
        || delta.epoch == held.epoch
            && (delta.generation > held.generation || snapshot && delta.generation == held.generation);
    if !newer || delta.generation == 0 {
        return Err(DeltaError::Stale { epoch: delta.epoch, generation: delta.generation });
    }
    let mut entries = if snapshot { Entries::default() } else { held.entries.clone() };
    if !snapshot && (delta.epoch, delta.base_generation) != (held.epoch, held.generation)
        || entries.digest().0[..] != delta.base_digest[..]
    {
        return Err(DeltaError::WrongBase);
    }
    for id in &delta.removes {
        let id = EntryId::new(id.as_str()).map_err(|_| DeltaError::Malformed("the name of an entry"))?;
        entries.0.remove(&id);
    }
    for entry in delta.upserts {
        if entry.body.len() > MAX_ENTRY_BYTES {
            return Err(DeltaError::Malformed("an entry is too large"));
        }
        let id = EntryId::new(entry.id).map_err(|_| DeltaError::Malformed("the name of an entry"))?;
        entries.0.insert(id, entry.body.into());
    }
    if entries.len() > MAX_ENTRIES {
        return Err(DeltaError::Malformed("too many entries"));
    }
    if entries.digest().0[..] != delta.digest[..] {
        return Err(DeltaError::WrongDigest);
    }
    Ok(Numbered { epoch: delta.epoch, generation: delta.generation, entries })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const ME: ServerId = ServerId(Uuid::from_u128(1));

    fn states() -> impl Strategy<Value = Entries> {
        prop::collection::btree_map("[a-d]{1,2}", prop::collection::vec(any::<u8>(), 0..40), 0..12)
            .prop_map(|m| m.into_iter().map(|(id, b)| (EntryId::new(id).unwrap(), b.into())).collect())
    }

    fn numbered(generation: u64, entries: Entries) -> Numbered {
        Numbered { epoch: 1, generation, entries }
    }

    proptest! {
        #[test]
        fn a_delta_leads_from_base_to_target(a in states(), b in states()) {
            let (base, target) = (numbered(4, a), numbered(5, b));
            let delta = compose(ME, &base, &target).encode_to_vec();
            prop_assert_eq!(apply(&base, ME, &delta), Ok(target.clone()));
            // Again, or onto something else: refused.
            let again = matches!(apply(&target, ME, &delta), Err(DeltaError::Stale { .. }));
            prop_assert!(again);
            prop_assert_eq!(apply(&numbered(3, target.entries.clone()), ME, &delta), Err(DeltaError::WrongBase));
            let snapshot = compose(ME, &Numbered::default(), &target).encode_to_vec();
            prop_assert_eq!(apply(&base, ME, &snapshot), Ok(target.clone()));
            prop_assert_eq!(apply(&target, ME, &snapshot), Ok(target));
        }

        #[test]
        fn perturbed_deltas_never_panic_and_never_half_apply(a in states(), b in states(), at in any::<usize>(), bit in 0u8..8) {
            let (base, target) = (numbered(4, a), numbered(5, b));
            let mut delta = compose(ME, &base, &target).encode_to_vec();
            let at = at % delta.len();
            delta[at] ^= 1 << bit;
            if let Ok(result) = apply(&base, ME, &delta) {
                // Only the number or the epoch can have changed: the entries are what the digest says.
                prop_assert_eq!(result.entries, target.entries);
            }
        }
    }

    #[test]
    fn the_largest_session_and_the_largest_state_fit() {
        use horizon_model::{
            DestinationRule, EntryBody, Inbound, NetworkId, PortRange, Protocol, PublicKey, Secret,
            SessionEntry, SessionId, SessionKind, SessionNetwork,
        };
        let prefix = "2001:db8:1234:5678:9abc:def0:1234:5678/128".parse().unwrap();
        let port = PortRange::new(10_000, 20_000).unwrap();
        let rule = DestinationRule { prefix, protocol: Protocol::Icmp, ports: vec![port; 2] };
        let network =
            |n| SessionNetwork { network: NetworkId(n), addresses: vec![prefix; 2], inbound: Inbound::Any };
        let id = SessionId(Uuid::from_u128(u128::MAX));
        let session = EntryBody::Session(Box::new(SessionEntry {
            id,
            kind: SessionKind::Trunk,
            peer_key: PublicKey([255; 32]),
            secret: Secret::new([255; 32]),
            networks: (0..64).map(|n| network(u16::MAX - n)).collect(),
            rules: vec![rule; 1024],
            rate_limit: Some(u64::MAX),
        }));
        let body = convert::encode_entry(&session);
        assert!(body.len() <= MAX_ENTRY_BYTES, "{}", body.len());

        let (mut entries, mut size) = (Entries::default(), 0);
        for n in 0.. {
            let id = EntryId::session(SessionId(Uuid::from_u128(n)));
            size += Entries::size_of(&id, &body);
            if size > MAX_STATE_BYTES {
                break;
            }
            entries.0.insert(id, body.clone());
        }
        assert!(entries.size() <= MAX_STATE_BYTES);
        let target = Numbered { epoch: u64::MAX, generation: u64::MAX, entries };
        let payload = compose(ME, &Numbered::default(), &target).encode_to_vec();
        let envelope = proto::Envelope { key: vec![1; 32], payload, signature: vec![1; 64] };
        let message = Some(proto::from_controller::Message::State(envelope));
        let frame = crate::frame::encode(&proto::FromController { request: u64::MAX, message });
        assert!(frame.len() <= MAX_FROM_CONTROLLER, "{}", frame.len());
    }

    #[test]
    fn what_is_shown_of_a_state_are_names() {
        let entries: Entries = [(EntryId::tunnel(), Bytes::from_static(b"secret"))].into_iter().collect();
        assert_eq!(format!("{entries:?}"), "{\"tunnel\"}");
    }

    #[test]
    fn stale_and_misaddressed_states_are_refused() {
        let target = numbered(5, Entries::default());
        let delta = compose(ME, &Numbered::default(), &target).encode_to_vec();
        assert_eq!(
            apply(&Numbered::default(), ServerId(Uuid::from_u128(2)), &delta),
            Err(DeltaError::WrongAudience)
        );
        let ahead = numbered(6, Entries::default());
        assert_eq!(apply(&ahead, ME, &delta), Err(DeltaError::Stale { epoch: 1, generation: 5 }));
        let restored = Numbered { epoch: 2, generation: 1, entries: Entries::default() };
        let delta = compose(ME, &Numbered::default(), &restored).encode_to_vec();
        assert_eq!(apply(&ahead, ME, &delta), Ok(restored));
    }
}
