//! KeySets, and what a rotation makes of them; checkpoints of the audit trail, and the lines that keep them.
#![no_main]

use horizon_model::PublicKey;
use horizon_wire::keyset::{self, Anchor, KeySet, KeySetKey};
use horizon_wire::proto::{self, KeyPhase, KeyUse, SignedKeySet};
use horizon_wire::rotation::{Due, KeyClass, Reached, Step, due, needed, take};
use horizon_wire::{audit, key};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// A KeySet as whoever holds the root could have written it: any times, phases and keys.
fn any_set(raw: &proto::KeySet) -> Option<KeySet> {
    let keys = raw.keys.iter().take(16).filter_map(|k| {
        let key = PublicKey::from_slice(&k.key)?;
        Some(KeySetKey {
            usage: k.r#use(),
            key,
            not_before: k.not_before,
            not_after: k.not_after,
            phase: k.phase(),
        })
    });
    Some(KeySet {
        version: raw.version,
        root: PublicKey::from_slice(&raw.root_key)?,
        keys: keys.collect(),
        issued: raw.issued,
        revoked: raw.revoked.iter().take(16).filter_map(|key| PublicKey::from_slice(key)).collect(),
    })
}

fn rotate(set: &KeySet, now: i64) {
    for class in KeyClass::ALL {
        for reached in [Reached::Requested, Reached::Published(now), Reached::InUse(now)] {
            for (emergency, behind) in [(false, false), (false, true), (true, false)] {
                let Due::Take(step) = due(set, class, emergency, reached, behind, now, now) else { continue };
                let fresh = step.brings_key().then_some(PublicKey([0xaa; 32]));
                let Ok(next) = take(set, class, step, fresh, now) else { continue };
                assert!(next.issued >= set.issued && next.version > set.version, "a KeySet goes forward");
                assert!(needed(&next).contains(&next.root));
                if step == Step::Replace && class != KeyClass::Root {
                    let old = set.keys.iter().filter(|k| Some(k.usage) == class.usage());
                    assert!(
                        old.into_iter()
                            .all(|old| !next.keys.iter().any(|k| k.usage == old.usage && k.key == old.key))
                    );
                }
            }
        }
        let _ = set.current(class.usage().unwrap_or(KeyUse::Tls));
    }
    let _ = set.keys.iter().filter(|k| k.phase == KeyPhase::Next && set.allows(k.usage, &k.key, now)).count();
}

fuzz_target!(|data: &[u8]| {
    let Some((now, bytes)) = data.split_first_chunk::<8>() else { return };
    if let Ok(raw) = proto::KeySet::decode(bytes)
        && let Some(set) = any_set(&raw)
        && set.version < u64::MAX
    {
        rotate(&set, i64::from_be_bytes(*now));
    }
    if let Ok(signed) = SignedKeySet::decode(bytes) {
        assert!(keyset::read(&signed).is_err(), "no signature is found by chance");
        assert!(keyset::walk(&Anchor::Root(key::root_id(&PublicKey([7; 32]))), &[signed]).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(envelope) = audit::from_line(text)
    {
        assert!(audit::open_checkpoint(&envelope, |_| true).is_err());
        // One with nothing in it has no line.
        let again = audit::from_line(&audit::to_line(&envelope));
        assert_eq!(again, Some(envelope).filter(|kept| *kept != proto::Envelope::default()));
    }
});
