//! How the organisation's keys rotate: each step makes one KeySet of the one before it.
//!
//! A key of a class is published (peers learn it), then used, and the one before it stays listed until nothing that it signed
//! is under way any more; then it is left out. The root has no such phases: the KeySet that names a new one is signed by both.
//! An emergency does all of it in one step, and names the keys that nobody is to trust from then on.
//!
//! Which step is due follows from the KeySet, from how far the rotation came, from who holds what, and from the time.

use std::str::FromStr;

use horizon_model::PublicKey;
use thiserror::Error;

use crate::{
    keyset::{KeySet, KeySetKey, MAX_KEYS, MAX_REVOKED},
    proto::{KeyPhase, KeyUse},
};

/// How long a key is valid, in milliseconds: ten years. A rotation ends it earlier.
pub const VALIDITY: i64 = 10 * 365 * 24 * 3600 * 1000;
/// How much earlier than now its validity starts, in milliseconds, for machines whose clocks are slow.
pub const LENIENCE: i64 = 24 * 3600 * 1000;

/// What rotates as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyClass {
    /// The key by which peers know a controller.
    Tls,
    /// The key that signs the states of appliances.
    State,
    /// The key that signs tickets.
    Ticket,
    /// The root, which signs KeySets.
    Root,
}

/// It is no class of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the classes of keys are tls, state, ticket and root")]
pub struct NoClass;

impl KeyClass {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tls, Self::State, Self::Ticket, Self::Root];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::State => "state",
            Self::Ticket => "ticket",
            Self::Root => "root",
        }
    }

    /// The use that KeySets list its keys for; `None` for the root.
    pub fn usage(self) -> Option<KeyUse> {
        match self {
            Self::Tls => Some(KeyUse::Tls),
            Self::State => Some(KeyUse::State),
            Self::Ticket => Some(KeyUse::Ticket),
            Self::Root => None,
        }
    }
}

impl FromStr for KeyClass {
    type Err = NoClass;
    fn from_str(text: &str) -> Result<Self, NoClass> {
        Self::ALL.into_iter().find(|class| class.as_str() == text).ok_or(NoClass)
    }
}

/// What makes the next KeySet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new key is listed, and not used yet. A new root is used at once.
    Publish,
    /// The key that was published is used.
    Use,
    /// The keys that were used before are left out.
    Retire,
    /// A new key is used at once, and all others of the class are revoked.
    Replace,
}

impl Step {
    /// Whether it brings in a new key.
    pub fn brings_key(self) -> bool {
        matches!(self, Self::Publish | Self::Replace)
    }
}

/// Why a step cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// The KeySet is not as the step needs it.
    #[error("a {0} key cannot take this step now")]
    OutOfTurn(&'static str),
    /// The new key is an old one.
    #[error("the new key was in use before")]
    KnownKey,
    /// The KeySet is full.
    #[error("the KeySet already lists {MAX_KEYS} keys")]
    Full,
}

/// The KeySet after a step, not signed yet. `fresh` is the new key of a step that brings one in; `now` is in milliseconds since
/// the Unix epoch.
///
/// # Errors
/// When the KeySet is not as the step needs it.
pub fn take(
    from: &KeySet,
    class: KeyClass,
    step: Step,
    fresh: Option<PublicKey>,
    now: i64,
) -> Result<KeySet, StepError> {
    let out_of_turn = StepError::OutOfTurn(class.as_str());
    let fresh = fresh.filter(|_| step.brings_key());
    if step.brings_key() != fresh.is_some() {
        return Err(out_of_turn);
    }
    if let Some(key) = fresh
        && (from.root == key || from.revokes(&key) || from.keys.iter().any(|k| k.key == key))
    {
        return Err(StepError::KnownKey);
    }
    // The clock may have been set back.
    let mut next = KeySet { version: from.version + 1, issued: from.issued.max(now), ..from.clone() };
    let Some(usage) = class.usage() else {
        match (step, fresh) {
            (Step::Publish, Some(root)) => next.root = root,
            (Step::Replace, Some(root)) => {
                revoke(&mut next, from.root);
                next.root = root;
            }
            _ => return Err(out_of_turn),
        }
        return Ok(next);
    };
    let listed = |key, phase| KeySetKey {
        usage,
        key,
        not_before: now.saturating_sub(LENIENCE),
        not_after: now.saturating_add(VALIDITY),
        phase,
    };
    let has = |phase| from.keys.iter().any(|k| k.usage == usage && phase_of(k) == phase);
    match (step, fresh) {
        (Step::Publish, Some(key)) if !has(KeyPhase::Next) => {
            next.keys.push(listed(key, KeyPhase::Next));
        }
        (Step::Use, None) if has(KeyPhase::Next) => {
            for key in next.keys.iter_mut().filter(|k| k.usage == usage) {
                key.phase = match phase_of(key) {
                    KeyPhase::Next => KeyPhase::Current,
                    _ => KeyPhase::Previous,
                };
            }
        }
        (Step::Retire, None) if has(KeyPhase::Previous) => {
            next.keys.retain(|k| k.usage != usage || k.phase != KeyPhase::Previous);
        }
        (Step::Replace, Some(key)) => {
            for old in from.keys.iter().filter(|k| k.usage == usage) {
                revoke(&mut next, old.key);
            }
            next.keys.retain(|k| k.usage != usage);
            next.keys.push(listed(key, KeyPhase::Current));
        }
        _ => return Err(out_of_turn),
    }
    if next.keys.len() > MAX_KEYS { Err(StepError::Full) } else { Ok(next) }
}

fn phase_of(key: &KeySetKey) -> KeyPhase {
    match key.phase {
        KeyPhase::Unspecified => KeyPhase::Current,
        phase => phase,
    }
}

/// The oldest are forgotten: a key that is neither listed nor revoked is not trusted either.
fn revoke(set: &mut KeySet, key: PublicKey) {
    set.revoked.push(key);
    let over = set.revoked.len().saturating_sub(MAX_REVOKED);
    set.revoked.drain(..over);
}

/// The keys whose private halves are still needed: those that are used or will be.
pub fn needed(set: &KeySet) -> Vec<PublicKey> {
    let used = set.keys.iter().filter(|k| phase_of(k) != KeyPhase::Previous).map(|k| k.key);
    used.chain([set.root]).collect()
}

/// How far a rotation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It was asked for.
    Requested,
    /// Its key is published, since this time in milliseconds.
    Published(i64),
    /// Its key is used, since this time in milliseconds.
    InUse(i64),
}

impl Reached {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Published(_) => "published, not used yet",
            Self::InUse(_) => "used, the key before it is still trusted",
        }
    }
}

/// What is to be done for a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Take this step.
    Take(Step),
    /// Nothing before this time, in milliseconds, unless peers catch up.
    Wait(i64),
    /// It is over.
    Done,
}

/// What is due for a rotation of a class. `behind` is whether somebody who is connected holds an older KeySet than the newest;
/// `overlap` in milliseconds is for how long such are waited for, and for how long the old key stays.
pub fn due(
    set: &KeySet,
    class: KeyClass,
    emergency: bool,
    reached: Reached,
    behind: bool,
    overlap: i64,
    now: i64,
) -> Due {
    let has =
        |phase| class.usage().is_some_and(|u| set.keys.iter().any(|k| k.usage == u && k.phase == phase));
    match reached {
        Reached::Requested if emergency => Due::Take(Step::Replace),
        Reached::Requested if class == KeyClass::Root => Due::Take(Step::Publish),
        // What an earlier rotation began and did not end is ended first.
        Reached::Requested if has(KeyPhase::Next) => Due::Take(Step::Use),
        Reached::Requested if has(KeyPhase::Previous) => Due::Take(Step::Retire),
        Reached::Requested => Due::Take(Step::Publish),
        _ if class == KeyClass::Root => Due::Done,
        Reached::Published(since) => match has(KeyPhase::Next) {
            true if !behind || now >= since.saturating_add(overlap) => Due::Take(Step::Use),
            true => Due::Wait(since.saturating_add(overlap)),
            // An emergency overtook it.
            false => Due::Done,
        },
        Reached::InUse(since) => match has(KeyPhase::Previous) {
            true if now >= since.saturating_add(overlap) => Due::Take(Step::Retire),
            true => Due::Wait(since.saturating_add(overlap)),
            false => Due::Done,
        },
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
