//! The controller's dial-back: which probe was announced, which arrived.

use std::time::Duration;

use horizon_appliance_core::Reachability;
use horizon_wire::{heartbeat::equal, key::sha256};
use tokio::time::Instant;

/// How long an announced probe may take, and how long one that came too early is remembered.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many nonces are remembered.
const MAX: usize = 8;

/// What is known before of the datagram that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announced {
    /// What it carries.
    Nonce([u8; 16]),
    /// The SHA-256 of that: only who gets the datagram can say it.
    Digest([u8; 32]),
}

impl Announced {
    fn fits(&self, nonce: &[u8; 16]) -> bool {
        match self {
            Self::Nonce(announced) => equal(announced, nonce),
            Self::Digest(digest) => equal(digest, &sha256(nonce).0),
        }
    }
}

/// What was announced, what arrived, and what it says of the tunnel's port.
#[derive(Debug, Default)]
pub(super) struct Probes {
    announced: Vec<(Announced, Instant)>,
    early: Vec<([u8; 16], Instant)>,
    state: Reachability,
}

impl Probes {
    pub(super) fn state(&self) -> Reachability {
        self.state
    }

    /// Takes an announcement; what the probe carried, when it was faster and is here.
    pub(super) fn announce(&mut self, announced: Announced, now: Instant) -> Option<[u8; 16]> {
        self.expire(now);
        if let Some(at) = self.early.iter().position(|(nonce, _)| announced.fits(nonce)) {
            self.state = Reachability::Reached;
            return Some(self.early.swap_remove(at).0);
        }
        if self.announced.len() < MAX {
            self.announced.push((announced, now + PATIENCE));
            self.state = Reachability::Awaited;
        }
        None
    }

    /// Takes a probe; `true` when it was announced.
    pub(super) fn arrived(&mut self, nonce: [u8; 16], now: Instant) -> bool {
        if let Some(at) = self.announced.iter().position(|(announced, _)| announced.fits(&nonce)) {
            self.announced.swap_remove(at);
            self.state = Reachability::Reached;
            return true;
        }
        if self.early.len() < MAX {
            self.early.push((nonce, now + PATIENCE));
        }
        false
    }

    /// When something is to be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let announced = self.announced.iter().map(|(_, until)| *until);
        announced.chain(self.early.iter().map(|(_, until)| *until)).min()
    }

    /// Gives up what took too long; `true` when an announced probe did not come.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        self.early.retain(|(_, until)| *until > now);
        let before = self.announced.len();
        self.announced.retain(|(_, until)| *until > now);
        let missed = self.announced.len() < before;
        if missed && self.state == Reachability::Awaited {
            self.state = Reachability::Missed;
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_probes_count_in_either_order() {
        let mut probes = Probes::default();
        let now = Instant::now();
        assert!(!probes.arrived([9; 16], now));
        assert_eq!(probes.state(), Reachability::Unknown);
        assert_eq!(probes.announce(Announced::Nonce([1; 16]), now), None);
        assert_eq!(probes.state(), Reachability::Awaited);
        assert!(probes.arrived([1; 16], now));
        assert!(!probes.arrived([1; 16], now), "a nonce counts once");
        assert!(!probes.arrived([2; 16], now));
        assert_eq!(probes.announce(Announced::Nonce([2; 16]), now), Some([2; 16]));
        assert_eq!(probes.state(), Reachability::Reached);
    }

    #[test]
    fn a_probe_may_be_announced_by_its_digest_alone() {
        let mut probes = Probes::default();
        let now = Instant::now();
        let announced = |nonce: [u8; 16]| Announced::Digest(sha256(&nonce).0);
        assert_eq!(probes.announce(announced([3; 16]), now), None);
        assert!(!probes.arrived([4; 16], now));
        assert!(probes.arrived([3; 16], now));
        assert_eq!(probes.announce(announced([4; 16]), now), Some([4; 16]));
    }

    #[test]
    fn a_probe_that_does_not_come_is_missed() {
        let mut probes = Probes::default();
        let now = Instant::now();
        probes.announce(Announced::Nonce([1; 16]), now);
        assert!(!probes.expire(now));
        assert!(probes.expire(probes.deadline().unwrap()));
        assert_eq!(probes.state(), Reachability::Missed);
        assert_eq!(probes.deadline(), None);
        // What strangers send takes no room for long.
        for n in 0..100 {
            probes.arrived([n; 16], now);
        }
        assert!(probes.early.len() <= MAX);
    }
}
