//! What the controller says, and what becomes of it.

use std::net::{IpAddr, SocketAddr};

use horizon_appliance_core::{advertised, describe, resolve};
use horizon_model::{EntryId, EntryProblem, ProblemCode};
use horizon_wire::{
    envelope::{self, Context, EnvelopeError},
    proto::{self, KeyUse},
    state::{self, DeltaError, Numbered},
};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tokio::time::Instant;

use super::Agent;
use crate::{
    facts,
    link::{self, Heard},
    status::ControllerStatus,
};

/// Why a state was not taken. The one in force stays.
#[derive(Debug, Error)]
pub(super) enum StateError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error("there is no KeySet that could vouch for it")]
    NoKeySet,
}

impl Agent {
    pub(super) async fn hear(&mut self, heard: Heard) {
        let now = Timestamp::now();
        match heard {
            Heard::Attached { remote, keyset, server_name, public_address } => {
                self.keyset = Some(keyset);
                // What was refused, the controller sends again, or something better.
                self.unkept.take_if(|problem| problem.code == ProblemCode::Invalid);
                self.controller = ControllerStatus {
                    connected: true,
                    address: Some(remote),
                    since: Some(now),
                    last_heartbeat: self.controller.last_heartbeat,
                    ..ControllerStatus::default()
                };
                self.renamed(server_name);
                let seen = seen(&public_address);
                if self.public_address != seen {
                    self.public_address = seen;
                    self.observe_addresses().await;
                }
                self.report(true);
            }
            Heard::KeySet(keyset) => {
                tracing::info!(version = keyset.version, "the organisation has a newer KeySet");
                self.keyset = Some(keyset);
            }
            Heard::Failed { reason, retry_in } => {
                if self.controller.connected || self.controller.since.is_none() {
                    self.controller.since = Some(now);
                }
                self.controller.connected = false;
                self.controller.reason = Some(reason);
                let wait = SignedDuration::try_from(retry_in).unwrap_or_default();
                self.controller.next_attempt = now.checked_add(wait).ok();
            }
            Heard::State(envelope) => self.take_state(&envelope).await,
            Heard::DialBack(announced) => {
                if let Some(nonce) = self.probes.announce(announced, Instant::now()) {
                    self.outbox.seen(nonce);
                }
            }
            Heard::Check(session) => self.report_of(session),
            Heard::Acknowledged => {
                self.controller.last_heartbeat = Some(now);
                self.controller.refused = None;
            }
            Heard::Refused(refusal) => self.controller.refused = Some(refusal.to_string()),
        }
    }

    async fn take_state(&mut self, envelope: &proto::Envelope) {
        match self.check_state(envelope) {
            Ok(numbered) => {
                tracing::info!(epoch = numbered.epoch, generation = numbered.generation, "new state");
                // What cannot be kept is in force all the same: a session that is to end does not wait for free space.
                let kept = self.store.set_state(self.enrolment.server_id, &numbered);
                self.unkept = kept.err().map(|error| {
                    tracing::error!(%error, "after a restart, an older state is in force until a controller answers");
                    of_the_state(ProblemCode::System, error.to_string())
                });
                self.numbered = numbered;
                self.take_up();
                self.reconcile(false).await;
                self.observe_addresses().await;
                self.applied = Some(Timestamp::now());
                self.report(true);
            }
            Err(StateError::Delta(error @ (DeltaError::WrongBase | DeltaError::WrongDigest))) => {
                tracing::warn!(%error, "asking for the whole state");
                self.outbox.resync(error.to_string());
            }
            Err(error) => {
                tracing::warn!(%error, "a state was refused; the one in force stays");
                if matches!(error, StateError::Envelope(EnvelopeError::Untrusted(_))) {
                    // The key may be newer than the KeySet that is held.
                    self.outbox.reconnect();
                }
                let message = format!("a state was refused: {error}");
                self.controller.refused = Some(message.clone());
                // The controller learns that what it sent is not in force, and why.
                self.unkept = Some(of_the_state(ProblemCode::Invalid, message));
                self.report(true);
            }
        }
    }

    /// The state that a signed message leads to.
    fn check_state(&self, envelope: &proto::Envelope) -> Result<Numbered, StateError> {
        let keyset = self.keyset.as_ref().ok_or(StateError::NoKeySet)?;
        // A machine whose clock starts in the past must still find its way: a KeySet is valid when it was issued.
        let now = link::unix_millis().max(keyset.issued);
        let payload = envelope::open(Context::State, envelope, |key| keyset.allows(KeyUse::State, key, now))?;
        Ok(state::apply(&self.numbered, self.enrolment.server_id, payload)?)
    }

    /// Makes the state that is held the desired one.
    pub(super) fn take_up(&mut self) {
        let (state, unreadable) = self.numbered.entries.decode();
        let (desired, mut invalid) = resolve(&state, &self.options.tun);
        invalid.extend(unreadable);
        for problem in &invalid {
            tracing::warn!(entry = %problem.entry, "left out: {}", problem.message);
        }
        self.desired = desired;
        self.invalid = invalid;
        self.publish();
    }

    /// The addresses under which clients reach the tunnel. A change of the host's own is a reason to try the controller.
    pub(super) async fn observe_addresses(&mut self) {
        match self.host.addresses().await {
            Ok(host) if host != self.host_addresses => {
                tracing::debug!(?host, "the host's addresses changed");
                self.host_addresses = host;
                self.moved.notify_one();
                self.observe_facts().await;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot list the host's addresses"),
        }
        let list = match self.port() {
            0 => Vec::new(),
            port => advertised(&self.options.advertise, self.public_address, &self.host_addresses, port),
        };
        if list != self.advertised {
            self.advertised = list;
            self.report(true);
            self.publish();
        }
    }

    /// What tells this machine from another.
    pub(super) async fn observe_facts(&mut self) {
        self.factors = describe(&facts::collect(self.host.net(), &self.options.host).await);
        self.publish();
    }

    fn renamed(&mut self, server_name: String) {
        if server_name.is_empty() || self.enrolment.server_name == server_name {
            return;
        }
        self.enrolment.server_name = server_name;
        if let Err(error) = self.store.set_enrolment(&self.enrolment) {
            tracing::warn!(%error, "cannot keep the server's new name");
        }
    }
}

/// A problem of the state as a whole.
fn of_the_state(code: ProblemCode, message: String) -> EntryProblem {
    let entry = EntryId::new("state").unwrap_or_else(|_| EntryId::settings());
    EntryProblem { entry, code, message }
}

/// The address as the controller sees it, with or without a port.
fn seen(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
}
