//! The dial-back: one datagram from the controller to the tunnel's port of an appliance, announced before over the channel,
//! shows whether clients outside can reach it.

use std::{net::SocketAddr, time::Duration};

use horizon_wire::{heartbeat, key::sha256, proto};
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::appliance::Appliance;
use crate::{
    live::Hint,
    store::{Answered, ChallengeId, ChallengeType, StoreError, random},
};

/// How long after its announcement the first datagram is sent, and how long between datagrams.
const SPACING: Duration = Duration::from_millis(300);
/// How many are sent, for some are lost.
const DATAGRAMS: u32 = 3;

/// A dial-back that is under way or over.
#[derive(Debug)]
pub(super) struct Probe {
    nonce: [u8; 16],
    address: SocketAddr,
    announced: bool,
    sent: u32,
    next: Instant,
    over: bool,
    /// The capability check that this is, in which the appliance learns the nonce from the datagram alone.
    check: Option<(ChallengeId, Timestamp)>,
}

impl Probe {
    /// When something is to be done about it.
    pub(super) fn deadline(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(24 * 3600);
        if self.over { Instant::now() + FAR } else { self.next }
    }
}

impl Appliance<'_> {
    /// Starts the dial-back, once in a conversation.
    pub(super) fn start_probe(&mut self) {
        if self.probe.is_none() {
            self.probe = self.new_probe(None);
        }
    }

    /// Checks the capability by a dial-back whose nonce is in the datagram alone. Not while another one is under way.
    pub(super) fn probe_capability(&mut self) {
        if self.sent.is_some() && self.probe.as_ref().is_none_or(|probe| probe.over) {
            self.probe = self.new_probe(Some((ChallengeId(Uuid::now_v7()), self.context.now())));
            self.context.metrics.challenges.inc();
        }
    }

    fn new_probe(&self, check: Option<(ChallengeId, Timestamp)>) -> Option<Probe> {
        let index = self.context.desired.index();
        let (_, spec) = index.server_by_id(self.server)?;
        let advertised = spec.tunnel.advertise.iter().find_map(|endpoint| endpoint.to_string().parse().ok());
        let address = advertised.unwrap_or(SocketAddr::new(self.remote.address.ip(), spec.tunnel.port));
        Some(Probe {
            nonce: random(),
            address,
            announced: false,
            sent: 0,
            next: Instant::now(),
            over: false,
            check,
        })
    }

    /// What is announced to the appliance, once.
    pub(super) fn announce_probe(&mut self) -> Option<proto::DialBack> {
        let probe = self.probe.as_mut().filter(|probe| !probe.announced)?;
        probe.announced = true;
        probe.next = Instant::now() + SPACING;
        let (nonce, digest) = match probe.check {
            Some(_) => (Vec::new(), sha256(&probe.nonce).0.to_vec()),
            None => (probe.nonce.to_vec(), Vec::new()),
        };
        Some(proto::DialBack { nonce, address: probe.address.to_string(), digest })
    }

    /// Sends the next datagram, or gives up.
    pub(super) async fn probe_on_time(&mut self, now: Instant) -> Result<(), StoreError> {
        let patience = self.context.settings.probe_patience;
        let Some(probe) = self.probe.as_mut().filter(|p| p.announced && !p.over && p.next <= now) else {
            return Ok(());
        };
        if probe.sent < DATAGRAMS {
            probe.sent += 1;
            probe.next = now + if probe.sent < DATAGRAMS { SPACING } else { patience };
            // A datagram that cannot be sent is as good as one that is lost.
            if let Err(error) = self.context.listener.send_probe(probe.address, &probe.nonce) {
                tracing::debug!(%error, "a dial-back could not be sent");
            }
            return Ok(());
        }
        probe.over = true;
        let words = format!(
            "nothing that the controller sent to UDP {} arrived: open or forward that port to the appliance, or set \
             tunnel.advertise to where it can be reached",
            probe.address
        );
        self.checked(false, &words).await?;
        self.note_probe(Some(&words)).await
    }

    /// The appliance saw the datagram.
    pub(super) async fn dial_back_seen(&mut self, seen: &proto::DialBackSeen) -> Result<(), StoreError> {
        let Some(probe) =
            self.probe.as_mut().filter(|p| p.announced && heartbeat::equal(&p.nonce, &seen.nonce))
        else {
            return Ok(());
        };
        probe.over = true;
        self.checked(true, "").await?;
        self.note_probe(None).await
    }

    /// Records the capability check that the dial-back was, once.
    async fn checked(&mut self, right: bool, detail: &str) -> Result<(), StoreError> {
        let Some((challenge, asked)) = self.probe.as_mut().and_then(|probe| probe.check.take()) else {
            return Ok(());
        };
        let answered = Answered {
            challenge,
            kind: ChallengeType::Capability,
            asked,
            right,
            detail: detail.to_owned(),
            tolerated: u16::MAX,
            newest_secret: false,
            arrival: None,
        };
        self.context
            .store
            .note_challenge(self.server, self.seat.lease, &answered, self.context.now())
            .await?;
        Ok(())
    }

    async fn note_probe(&self, why: Option<&str>) -> Result<(), StoreError> {
        if self.context.store.note_unreachable(self.server, self.seat.lease, why).await? {
            self.context.live.publish(Hint::StatusDirty(self.server.0));
        }
        Ok(())
    }
}
