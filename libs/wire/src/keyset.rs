//! The organisation's root and its numbered KeySets.
//!
//! Tokens pin the id of a root. A root signs KeySets, which list the keys for TLS, state and tickets. Version N+1 is
//! signed by version N's root and by its own, so that any key, the root too, can rotate, and a peer that holds N can
//! walk to the newest version step by step.

use horizon_model::{PublicKey, RootId};
use prost::Message;
use thiserror::Error;

use crate::{
    envelope::Context,
    key::{self, SigningKey},
    proto::{self, KeyPhase, KeyUse},
};

/// The most keys a KeySet lists.
pub const MAX_KEYS: usize = 64;
/// The most KeySets a Welcome carries. A peer that needs more keeps the last of them and opens again.
pub const MAX_CHAIN: usize = 1024;
/// The most revoked keys a KeySet lists, the newest.
pub const MAX_REVOKED: usize = 32;
/// In the Hello of a peer that takes newer KeySets at any time.
pub const FEATURE: &str = "keysets.v1";

/// A key and what it may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySetKey {
    /// For what.
    pub usage: KeyUse,
    /// The key.
    pub key: PublicKey,
    /// From when, in milliseconds since the Unix epoch.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// What the controller does with it.
    pub phase: KeyPhase,
}

/// One version of the organisation's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// Its number, 1 or above.
    pub version: u64,
    /// The root that signed it.
    pub root: PublicKey,
    /// The keys.
    pub keys: Vec<KeySetKey>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub issued: i64,
    /// Keys that are in wrong hands, the newest last.
    pub revoked: Vec<PublicKey>,
}

/// Why a KeySet or a chain of them was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeySetError {
    /// It cannot be read.
    #[error("a KeySet cannot be read")]
    Malformed,
    /// Its own root did not sign it.
    #[error("KeySet {0} is not signed by the root it names")]
    BadSignature(u64),
    /// The root before it did not sign it.
    #[error("KeySet {0} is not signed by the root of the version before it")]
    BadPreviousSignature(u64),
    /// The chain skips or repeats a version.
    #[error("the chain of KeySets goes from version {from} to {to}")]
    Gap {
        /// The version reached.
        from: u64,
        /// The version offered next.
        to: u64,
    },
    /// No KeySet of the chain has the pinned root.
    #[error("the controller belongs to another organisation: its root is not {0}")]
    UnknownRoot(RootId),
    /// The controller is behind the peer.
    #[error(
        "the controller shows KeySet {offered}, and KeySet {held} was seen before: its keys were rolled back; restore \
         their newest backup there"
    )]
    RolledBack {
        /// The version the peer holds.
        held: u64,
        /// The newest that was offered.
        offered: u64,
    },
    /// The chain is empty or too long.
    #[error("the chain of KeySets has no or too many versions")]
    BadChain,
}

impl KeySet {
    /// Signs this KeySet, also with the root of the version before it if there is one.
    pub fn sign(&self, root: &SigningKey, previous: Option<&SigningKey>) -> proto::SignedKeySet {
        let payload = proto::KeySet {
            version: self.version,
            root_key: self.root.0.to_vec(),
            keys: self
                .keys
                .iter()
                .map(|k| proto::KeySetKey {
                    r#use: k.usage.into(),
                    key: k.key.0.to_vec(),
                    not_before: k.not_before,
                    not_after: k.not_after,
                    phase: k.phase.into(),
                })
                .collect(),
            issued: self.issued,
            revoked: self.revoked.iter().map(|key| key.0.to_vec()).collect(),
        }
        .encode_to_vec();
        let message = Context::KeySet.message(&payload);
        proto::SignedKeySet {
            signature: root.sign(&message),
            previous_signature: previous.map(|p| p.sign(&message)).unwrap_or_default(),
            payload,
        }
    }

    /// Whether `key` may be used for `usage` at `now` (milliseconds since the Unix epoch).
    pub fn allows(&self, usage: KeyUse, key: &PublicKey, now: i64) -> bool {
        self.keys
            .iter()
            .any(|k| k.usage == usage && k.key == *key && (k.not_before..=k.not_after).contains(&now))
    }

    /// The key that the controller uses. Of several from before there were phases, the last.
    pub fn current(&self, usage: KeyUse) -> Option<PublicKey> {
        let used =
            |k: &&KeySetKey| k.usage == usage && matches!(k.phase, KeyPhase::Current | KeyPhase::Unspecified);
        self.keys.iter().rfind(used).map(|k| k.key)
    }

    /// Whether a key is known to be in wrong hands.
    pub fn revokes(&self, key: &PublicKey) -> bool {
        self.revoked.contains(key)
    }
}

/// Where a peer's trust starts.
#[derive(Clone, Debug)]
pub enum Anchor {
    /// The root id of a token.
    Root(RootId),
    /// The newest KeySet the peer holds.
    KeySet(KeySet),
}

impl Anchor {
    /// The version to name in a Hello.
    pub fn version(&self) -> u64 {
        match self {
            Self::Root(_) => 0,
            Self::KeySet(k) => k.version,
        }
    }
}

/// Reads one signed KeySet and checks its own root's signature. That says nothing about the root.
pub fn read(signed: &proto::SignedKeySet) -> Result<KeySet, KeySetError> {
    let raw = proto::KeySet::decode(&signed.payload[..]).map_err(|_| KeySetError::Malformed)?;
    if raw.version == 0 || raw.keys.len() > MAX_KEYS || raw.revoked.len() > MAX_REVOKED {
        return Err(KeySetError::Malformed);
    }
    let root = PublicKey::from_slice(&raw.root_key).ok_or(KeySetError::Malformed)?;
    let keys = raw
        .keys
        .iter()
        .map(|k| {
            let key = PublicKey::from_slice(&k.key).ok_or(KeySetError::Malformed)?;
            let (not_before, not_after) = (k.not_before, k.not_after);
            Ok(KeySetKey { usage: k.r#use(), key, not_before, not_after, phase: k.phase() })
        })
        .collect::<Result<_, _>>()?;
    let revoked = raw.revoked.iter().map(|key| PublicKey::from_slice(key).ok_or(KeySetError::Malformed));
    let revoked = revoked.collect::<Result<_, _>>()?;
    if !key::verify(&root, &Context::KeySet.message(&signed.payload), &signed.signature) {
        return Err(KeySetError::BadSignature(raw.version));
    }
    Ok(KeySet { version: raw.version, root, keys, issued: raw.issued, revoked })
}

/// Walks a chain from the anchor to the newest KeySet. Versions before the anchor are passed over; a chain that ends before it
/// is a controller that fell back, and is refused.
pub fn walk(anchor: &Anchor, chain: &[proto::SignedKeySet]) -> Result<KeySet, KeySetError> {
    if chain.len() > MAX_CHAIN {
        return Err(KeySetError::BadChain);
    }
    let mut offered = None;
    let mut trusted = match anchor {
        Anchor::Root(_) => None,
        Anchor::KeySet(k) => Some(k.clone()),
    };
    for signed in chain {
        let next = read(signed)?;
        offered = Some(next.version);
        trusted = match (trusted, anchor) {
            (None, Anchor::Root(pinned)) => (key::root_id(&next.root) == *pinned).then_some(next),
            (Some(held), _) if next.version <= held.version => {
                // A second KeySet of a version that is already trusted would be a fork.
                if next.version == held.version && next != held {
                    return Err(KeySetError::Gap { from: held.version, to: next.version });
                }
                Some(held)
            }
            (Some(held), _) => {
                if next.version != held.version + 1 {
                    return Err(KeySetError::Gap { from: held.version, to: next.version });
                }
                let message = Context::KeySet.message(&signed.payload);
                if !key::verify(&held.root, &message, &signed.previous_signature) {
                    return Err(KeySetError::BadPreviousSignature(next.version));
                }
                Some(next)
            }
            (None, Anchor::KeySet(_)) => return Err(KeySetError::BadChain),
        };
    }
    match (trusted, anchor) {
        (Some(keyset), _) => match offered {
            Some(offered) if offered < keyset.version => {
                Err(KeySetError::RolledBack { held: keyset.version, offered })
            }
            _ => Ok(keyset),
        },
        (None, Anchor::Root(pinned)) => Err(KeySetError::UnknownRoot(*pinned)),
        (None, Anchor::KeySet(_)) => Err(KeySetError::BadChain),
    }
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(Secret::new([n; 32]))
    }

    fn keyset(version: u64, root: &SigningKey) -> KeySet {
        let tls = KeySetKey {
            usage: KeyUse::Tls,
            key: key(100 + version as u8).public(),
            not_before: 0,
            not_after: 1000,
            phase: KeyPhase::Current,
        };
        KeySet { version, root: root.public(), keys: vec![tls], issued: version as i64, revoked: Vec::new() }
    }

    #[test]
    fn a_chain_with_a_new_root_is_walked_from_any_anchor() {
        let (a, b) = (key(1), key(2));
        let chain = [
            keyset(1, &a).sign(&a, None),
            keyset(2, &b).sign(&b, Some(&a)),
            keyset(3, &b).sign(&b, Some(&b)),
        ];
        let newest = keyset(3, &b);
        assert_eq!(walk(&Anchor::Root(key::root_id(&a.public())), &chain), Ok(newest.clone()));
        assert_eq!(walk(&Anchor::Root(key::root_id(&b.public())), &chain), Ok(newest.clone()));
        assert_eq!(walk(&Anchor::KeySet(keyset(1, &a)), &chain[1..]), Ok(newest.clone()));
        assert_eq!(walk(&Anchor::KeySet(newest.clone()), &[]), Ok(newest));
    }

    #[test]
    fn forged_chains_are_refused() {
        let (a, b, thief) = (key(1), key(2), key(9));
        let first = keyset(1, &a).sign(&a, None);
        let pinned = Anchor::Root(key::root_id(&a.public()));
        // The thief names its own root, or the true root without its signature, or signs the step itself.
        assert!(matches!(
            walk(&pinned, &[keyset(1, &thief).sign(&thief, None)]),
            Err(KeySetError::UnknownRoot(_))
        ));
        assert_eq!(walk(&pinned, &[keyset(1, &a).sign(&thief, None)]), Err(KeySetError::BadSignature(1)));
        let stolen = [first.clone(), keyset(2, &thief).sign(&thief, Some(&thief))];
        assert_eq!(walk(&pinned, &stolen), Err(KeySetError::BadPreviousSignature(2)));
        let gap = [first.clone(), keyset(3, &b).sign(&b, Some(&a))];
        assert_eq!(walk(&pinned, &gap), Err(KeySetError::Gap { from: 1, to: 3 }));
        let mut other = keyset(1, &a);
        other.issued = 77;
        let fork = [first, other.sign(&a, None)];
        assert_eq!(walk(&pinned, &fork), Err(KeySetError::Gap { from: 1, to: 1 }));
        assert!(matches!(walk(&pinned, &[]), Err(KeySetError::UnknownRoot(_))));
    }

    #[test]
    fn nobody_goes_back_to_an_older_version() {
        let a = key(1);
        let chain: Vec<_> = (1..4).map(|v| keyset(v, &a).sign(&a, (v > 1).then_some(&a))).collect();
        let held = Anchor::KeySet(keyset(3, &a));
        assert_eq!(walk(&held, &chain), Ok(keyset(3, &a)));
        let back = KeySetError::RolledBack { held: 3, offered: 2 };
        assert_eq!(walk(&held, &chain[..2]), Err(back));
        assert!(back.to_string().contains("rolled back"));
    }

    #[test]
    fn keys_are_allowed_for_their_use_and_time_only() {
        let set = keyset(1, &key(1));
        let tls = key(101).public();
        assert!(set.allows(KeyUse::Tls, &tls, 500));
        assert!(!set.allows(KeyUse::State, &tls, 500));
        assert!(!set.allows(KeyUse::Tls, &tls, 1001));
        assert!(!set.allows(KeyUse::Tls, &key(5).public(), 500));
    }
}
