//! The verification secret: what authenticates heartbeats and answers challenges, and how it moves on.

use horizon_model::{Incarnation, Secret, ServerId};
use horizon_wire::{challenge::Asked, heartbeat};
use thiserror::Error;

/// The secret in force and the one before it, which is kept until the next has been used.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Authenticates the next heartbeat.
    pub current: Secret,
    /// Authenticated the last acknowledged one.
    pub previous: Option<Secret>,
}

/// An acknowledgement that fits no heartbeat that waits for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an acknowledgement of heartbeat {0}, which is not the one that waits for it")]
pub struct AckError(pub u64);

/// The heartbeats of one attachment to a controller.
///
/// The order that survives every crash: sign with the secret in force; when acknowledged, derive the next, store both,
/// and only then use it. The controller stores first and accepts the one before too, so a lost acknowledgement or a
/// crash before storing leaves this side one step behind, which the controller accepts.
#[derive(Debug)]
pub struct Beats {
    secrets: Secrets,
    counter: u64,
    waiting: Option<u64>,
}

impl Beats {
    /// Starts with what is stored.
    pub fn new(secrets: Secrets) -> Self {
        Self { secrets, counter: 0, waiting: None }
    }

    /// The number of the next heartbeat: 1 for the first of an attachment.
    pub fn next_counter(&mut self) -> u64 {
        self.counter += 1;
        self.waiting = Some(self.counter);
        self.counter
    }

    /// The tag of a heartbeat.
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        heartbeat::sign(&self.secrets.current, payload)
    }

    /// The answer to a challenge.
    pub fn answer(&self, id: &[u8; 16], nonce: &[u8; 32], server: ServerId, run: Incarnation) -> Vec<u8> {
        heartbeat::answer(&self.secrets.current, id, nonce, server, run)
    }

    /// The tag of evidence.
    pub fn vouch(&self, asked: Asked<'_>, evidence: &[u8]) -> Vec<u8> {
        asked.tag(&self.secrets.current, evidence)
    }

    /// What to store after an acknowledgement. Nothing changes until [`Beats::stored`].
    pub fn acknowledged(&self, counter: u64, nonce: &[u8; 32]) -> Result<Secrets, AckError> {
        if self.waiting != Some(counter) {
            return Err(AckError(counter));
        }
        let current = heartbeat::ratchet(&self.secrets.current, nonce);
        Ok(Secrets { current, previous: Some(self.secrets.current.clone()) })
    }

    /// Goes on with secrets that are stored.
    pub fn stored(&mut self, secrets: Secrets) {
        self.secrets = secrets;
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A controller as the protocol describes it: it stores before it acknowledges, and accepts two secrets.
    struct Controller {
        current: Secret,
        previous: Option<Secret>,
    }

    impl Controller {
        fn beat(&mut self, payload: &[u8], tag: &[u8], nonce: &[u8; 32]) -> bool {
            let known = [Some(&self.current), self.previous.as_ref()];
            let Some(used) =
                known.into_iter().flatten().find(|s| heartbeat::verify(s, payload, tag)).cloned()
            else {
                return false;
            };
            self.current = heartbeat::ratchet(&used, nonce);
            self.previous = Some(used);
            true
        }
    }

    proptest! {
        /// Whatever is lost on the way, and whenever the appliance crashes, its next heartbeat is accepted.
        #[test]
        fn no_loss_and_no_crash_strands_the_appliance(fates in prop::collection::vec(0u8..4, 1..60)) {
            let start = Secret::new([7; 32]);
            let mut controller = Controller { current: start.clone(), previous: None };
            let mut disk = Secrets { current: start, previous: None };
            let mut beats = Beats::new(disk.clone());
            for (i, fate) in fates.into_iter().enumerate() {
                let nonce = [u8::try_from(i).unwrap(); 32];
                let counter = beats.next_counter();
                let payload = counter.to_be_bytes();
                let tag = beats.sign(&payload);
                match fate {
                    // The heartbeat is lost.
                    0 => continue,
                    // Its acknowledgement is lost.
                    1 => prop_assert!(controller.beat(&payload, &tag, &nonce)),
                    // The appliance crashes before it has stored.
                    2 => {
                        prop_assert!(controller.beat(&payload, &tag, &nonce));
                        beats = Beats::new(disk.clone());
                    }
                    _ => {
                        prop_assert!(controller.beat(&payload, &tag, &nonce));
                        disk = beats.acknowledged(counter, &nonce).unwrap();
                        beats.stored(disk.clone());
                    }
                }
            }
        }
    }

    #[test]
    fn only_the_heartbeat_that_waits_can_be_acknowledged() {
        let mut beats = Beats::new(Secrets { current: Secret::new([1; 32]), previous: None });
        assert_eq!(beats.acknowledged(1, &[0; 32]).err(), Some(AckError(1)));
        assert_eq!(beats.next_counter(), 1);
        let next = beats.acknowledged(1, &[0; 32]).unwrap();
        assert_eq!(next.previous.as_ref().map(|s| *s.expose()), Some([1; 32]));
        beats.stored(next);
        assert_eq!(beats.acknowledged(1, &[0; 32]).err(), Some(AckError(1)));
        assert_eq!(beats.next_counter(), 2);
    }
}
