//! The life of a personal key: the versions of its secret, one after the other. Every transition is here; the store reads
//! rows, has this decide, and writes what changed, so that whoever replays from the rows goes on where another broke off.

use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

use super::schedule::later;

/// Where a version of a secret stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionState {
    /// It was made, and nobody has shown to have it.
    Pending,
    /// It is in use.
    Active,
    /// Its successor exists, and both work.
    Rotating,
    /// It was replaced.
    Deactivated,
    /// It was replaced because it is believed to be in wrong hands.
    Compromised,
    /// Its key's time is over.
    Expired,
}

impl VersionState {
    /// As the database spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Rotating => "rotating",
            Self::Deactivated => "deactivated",
            Self::Compromised => "compromised",
            Self::Expired => "expired",
        }
    }

    /// Reads what [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Active, Self::Rotating, Self::Deactivated, Self::Compromised, Self::Expired]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Whether it has ended. What has ended stays so.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Deactivated | Self::Compromised | Self::Expired)
    }
}

/// A version of a key's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// 1 for the first, one more for each that follows.
    pub number: u32,
    /// Where it stands.
    pub state: VersionState,
    /// Until when it works beside its successor, while it does.
    pub overlap_end: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

impl Version {
    /// A version that was just made.
    pub const fn new(number: u32) -> Self {
        Self { number, state: VersionState::Pending, overlap_end: None, ended: None }
    }

    /// Whether its secret is accepted at a time. An overlap that is over counts whether or not anybody has written it down.
    pub fn works(&self, now: Timestamp) -> bool {
        !self.state.is_over() && self.overlap_end.is_none_or(|end| now < end)
    }

    fn end(&mut self, state: VersionState, now: Timestamp) {
        if !self.state.is_over() {
            *self = Self { state, ended: Some(now), ..*self };
        }
    }
}

/// How a key ends that is replaced at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is dead.
    Deactivated,
    /// It is dead, and believed to be in wrong hands.
    Compromised,
}

/// Why a scheduled rotation does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BeginError {
    /// The one before is not over.
    #[error("a rotation of the key is under way")]
    UnderWay,
    /// Nobody has the key yet, or its user still has to enter it.
    #[error("nobody uses the key's newest version yet")]
    Unused,
}

/// What a step changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// An old version ended: every receiver confirmed the new one.
    Confirmed,
    /// An old version ended: its overlap is over.
    OverlapOver,
}

/// The versions of a key, oldest first; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    versions: Vec<Version>,
    /// Whether the newest version waits for people to enter it.
    manual: bool,
}

impl Life {
    /// The life of a key that was never rotated. `used` says whether a device was enrolled with it.
    pub fn first(used: bool) -> Self {
        let state = if used { VersionState::Active } else { VersionState::Pending };
        Self { versions: vec![Version { state, ..Version::new(1) }], manual: false }
    }

    /// The life that rows tell of, in any order. `None` when there are none.
    pub fn of(mut versions: Vec<Version>, manual: bool) -> Option<Self> {
        versions.sort_by_key(|version| version.number);
        (!versions.is_empty()).then_some(Self { versions, manual })
    }

    /// The versions, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The newest version.
    pub fn newest(&self) -> Version {
        *self.versions.last().expect("there is a version from the beginning")
    }

    /// Whether people have to enter the newest version.
    pub fn manual_rotation_required(&self) -> bool {
        self.manual
    }

    /// The version that works beside the newest one, while there is one.
    pub fn rotating(&self) -> Option<Version> {
        self.versions.iter().find(|version| version.state == VersionState::Rotating).copied()
    }

    /// Whether the secret of a version is accepted at a time.
    pub fn works(&self, number: u32, now: Timestamp) -> bool {
        self.versions.iter().any(|version| version.number == number && version.works(now))
    }

    /// A device was enrolled with a version: it is in use, and if it is the newest, nobody waits for it any more.
    pub fn used(&mut self, number: u32) {
        let newest = self.newest().number;
        if let Some(version) = self.versions.iter_mut().find(|version| version.number == number) {
            if version.state == VersionState::Pending {
                version.state = VersionState::Active;
            }
            self.manual &= number != newest;
        }
    }

    /// Begins a scheduled rotation: the newest version goes on for `overlap` beside the one that is returned.
    ///
    /// # Errors
    /// When the one before is not over, or the key is not in use.
    pub fn begin(&mut self, overlap: Duration, now: Timestamp) -> Result<u32, BeginError> {
        if self.rotating().is_some() {
            return Err(BeginError::UnderWay);
        }
        let newest = self.newest().number;
        match self.versions.last_mut() {
            Some(old) if old.state == VersionState::Active => {
                *old =
                    Version { state: VersionState::Rotating, overlap_end: Some(later(now, overlap)), ..*old };
            }
            _ => return Err(BeginError::Unused),
        }
        self.versions.push(Version::new(newest + 1));
        Ok(newest + 1)
    }

    /// Replaces the key at once: whatever works is dead, and people have to enter the version that is returned.
    pub fn replace(&mut self, ending: Ending, now: Timestamp) -> u32 {
        let state = match ending {
            Ending::Deactivated => VersionState::Deactivated,
            Ending::Compromised => VersionState::Compromised,
        };
        let newest = self.newest().number;
        for version in &mut self.versions {
            version.end(state, now);
        }
        self.versions.push(Version::new(newest + 1));
        self.manual = true;
        newest + 1
    }

    /// A receiver confirmed a version, or time passed. `all_confirmed` says whether everybody who is to have the newest
    /// version has it. Ends what is to end.
    pub fn settle(&mut self, any_confirmed: bool, all_confirmed: bool, now: Timestamp) -> Change {
        let Some(old) = self.rotating() else { return Change::None };
        let over = old.overlap_end.is_none_or(|end| end <= now);
        if any_confirmed || over {
            self.used(self.newest().number);
        }
        if !(all_confirmed || over) {
            return Change::None;
        }
        for version in &mut self.versions {
            if version.state == VersionState::Rotating {
                version.end(VersionState::Deactivated, now);
            }
        }
        if all_confirmed { Change::Confirmed } else { Change::OverlapOver }
    }
}
