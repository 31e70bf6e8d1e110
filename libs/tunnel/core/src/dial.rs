//! When a dialling session tries which address: all of them, staggered (as RFC 8305 does), again and again with a
//! growing and jittered pause, for as long as the session exists.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Pause between the beginnings of two attempts of one round.
pub const STAGGER: Duration = Duration::from_millis(200);
/// How long an attempt may take.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause between rounds.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between rounds, before jitter.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How soon a lost connection is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// At once: the path broke or the peer restarts.
    Soon,
    /// After the longest pause: the peer said that the session is over or belongs to somebody newer.
    Later,
}

/// The schedule of one dialling session. The caller starts the attempts and reports how they end. `jitter` arguments
/// are random numbers in 0.0..1.0.
#[derive(Debug)]
pub struct Dialer {
    addresses: Vec<SocketAddr>,
    next: usize,
    due: Option<Instant>,
    failed_rounds: u32,
}

impl Dialer {
    /// A schedule that begins at once.
    pub fn new(now: Instant, addresses: Vec<SocketAddr>) -> Self {
        let due = (!addresses.is_empty()).then_some(now);
        Self { addresses, next: 0, due, failed_rounds: 0 }
    }

    /// When [`poll`](Self::poll) has something to say.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The address to try now, if any.
    pub fn poll(&mut self, now: Instant) -> Option<SocketAddr> {
        self.due.filter(|due| *due <= now)?;
        let address = self.addresses.get(self.next).copied();
        self.next += 1;
        self.due = (self.next < self.addresses.len()).then(|| now + STAGGER);
        address
    }

    /// An attempt ended without a connection; `in_flight` others of the round are still under way.
    pub fn failed(&mut self, now: Instant, in_flight: usize, jitter: f64) {
        if self.next < self.addresses.len() {
            self.due = Some(now);
        } else if in_flight == 0 {
            self.restart(now + self.pause(jitter));
            self.failed_rounds = self.failed_rounds.saturating_add(1);
        }
    }

    /// An attempt got as far as this end can see: nothing more is tried for now.
    pub fn hold(&mut self) {
        self.due = None;
        self.next = self.addresses.len();
    }

    /// The peer has confirmed the connection.
    pub fn connected(&mut self) {
        self.hold();
        self.failed_rounds = 0;
    }

    /// The connection was lost.
    pub fn lost(&mut self, now: Instant, patience: Patience, jitter: f64) {
        match patience {
            Patience::Soon => {
                self.failed_rounds = 0;
                self.restart(now + FIRST_PAUSE.mul_f64(jitter * 0.4));
            }
            Patience::Later => self.restart(now + jittered(LONGEST_PAUSE, jitter)),
        }
    }

    /// Takes new addresses. A round that is under way begins again with them; a connection stays.
    pub fn set_addresses(&mut self, now: Instant, addresses: Vec<SocketAddr>, connected: bool) {
        if self.addresses == addresses {
            return;
        }
        self.addresses = addresses;
        self.failed_rounds = 0;
        if !connected {
            self.restart(now);
        }
    }

    fn restart(&mut self, at: Instant) {
        self.next = 0;
        self.due = (!self.addresses.is_empty()).then_some(at);
    }

    fn pause(&self, jitter: f64) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failed_rounds.min(10)).min(LONGEST_PAUSE);
        jittered(pause, jitter)
    }
}

/// Between half and one and a half of `pause`.
fn jittered(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (0..count).map(|n| SocketAddr::from(([192, 0, 2, 1], 1000 + n))).collect()
    }

    #[test]
    fn a_round_is_staggered_and_a_failure_hastens_it() {
        let start = Instant::now();
        let all = addresses(3);
        let mut dialer = Dialer::new(start, all.clone());
        assert_eq!(dialer.poll(start), Some(all[0]));
        assert_eq!(dialer.poll(start), None);
        assert_eq!(dialer.poll(start + STAGGER), Some(all[1]));
        dialer.failed(start + STAGGER, 1, 0.5);
        assert_eq!(dialer.poll(start + STAGGER), Some(all[2]));
        assert_eq!(dialer.due(), None);
    }

    #[test]
    fn rounds_repeat_for_ever_with_growing_pauses() {
        let mut now = Instant::now();
        let mut dialer = Dialer::new(now, addresses(1));
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert!(dialer.poll(now).is_some());
            dialer.failed(now, 0, 0.5);
            pauses.push(dialer.due().unwrap() - now);
            now = dialer.due().unwrap();
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[11], LONGEST_PAUSE);
        assert!(dialer.poll(now).is_some());
        dialer.connected();
        assert_eq!(dialer.due(), None);
        dialer.lost(now, Patience::Soon, 1.0);
        assert!(dialer.due().unwrap() - now <= FIRST_PAUSE);
    }
}
