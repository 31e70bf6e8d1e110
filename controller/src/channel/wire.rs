//! One peer's messages: within their rate, and never waiting for a peer that does not read.

use std::{sync::Arc, time::Duration};

use horizon_channel::{Peer, ReceiveError, Receiver, Sender};
use horizon_model::PublicKey;
use horizon_wire::{
    frame::MAX_TO_CONTROLLER,
    proto::{self, KeyUse, from_controller, to_controller},
    refusal::Refusal,
};
use jiff::Timestamp;
use tokio::time::timeout;

use super::{refusals, witness::Checkpoint};
use crate::{
    keys::{Held, KeyRing, Keys, Role},
    live::Limit,
};

/// How long a refusal may take to reach the peer.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// Why a conversation is over.
#[derive(Debug)]
pub(super) enum End {
    /// The peer or the connection is gone.
    Gone(String),
    /// The controller ends it and says why.
    Refuse {
        /// The request that is answered by it; 0 for none.
        request: u64,
        /// Why.
        refusal: Box<Refusal>,
    },
}

impl End {
    pub(super) fn refuse(request: u64, refusal: Refusal) -> Self {
        Self::Refuse { request, refusal: Box::new(refusal) }
    }
}

/// A message with the request it is.
pub(super) type Said = (u64, to_controller::Message);

/// The stream of a peer.
pub(super) struct Wire {
    sender: Sender,
    receiver: Receiver,
    connection: quinn::Connection,
    patience: Duration,
    rate: Limit,
    used_until: Option<Timestamp>,
    /// The keys in use; none before the Welcome.
    ring: Option<KeyRing>,
    /// The newest that the peer was shown.
    shown: Option<Arc<Keys>>,
    /// Whether it takes newer ones at any time.
    takes_keysets: bool,
    /// Counts it among those that hold a KeySet.
    held: Option<Held>,
    /// The newest link of the audit trail that it witnessed.
    pub(super) witnessed: u64,
}

impl Wire {
    pub(super) fn new(peer: Peer, messages_per_second: u32, patience: Duration) -> Self {
        const WINDOW: u32 = 2;
        let rate = Limit::new(messages_per_second.saturating_mul(WINDOW), Duration::from_secs(WINDOW.into()));
        let Peer { sender, receiver, connection, .. } = peer;
        Self {
            sender,
            receiver,
            connection,
            patience,
            rate,
            used_until: None,
            ring: None,
            shown: None,
            takes_keysets: false,
            held: None,
            witnessed: 0,
        }
    }

    /// Where the peer is now.
    pub(super) fn remote(&self) -> std::net::SocketAddr {
        self.connection.remote_address()
    }

    /// The peer is an appliance of ours: its reports may be long.
    pub(super) fn takes_reports(&mut self) {
        self.receiver.set_limit(MAX_TO_CONTROLLER);
    }

    /// The peer is shown these KeySets in the Welcome.
    pub(super) fn shown(&mut self, ring: &KeyRing, keys: Arc<Keys>, takes_newer: bool) {
        (self.ring, self.shown, self.takes_keysets) = (Some(ring.clone()), Some(keys), takes_newer);
    }

    /// Counts the peer, which accepted the Welcome and proved who it is, among those that hold a KeySet.
    pub(super) fn counts_as(&mut self, role: Role) {
        if let (None, Some(ring), Some(shown)) = (&self.held, &self.ring, &self.shown) {
            self.held = Some(ring.holds(role, shown.keyset.version));
        }
    }

    /// The peer says which KeySet it has kept.
    pub(super) fn keyset_held(&mut self, version: u64) {
        let shown = self.shown.as_ref().map_or(0, |shown| shown.keyset.version);
        if let Some(held) = &mut self.held {
            held.set(version.min(shown));
        }
    }

    /// Shows the peer the newest KeySets, if it was not and takes them. One that does not learns of them when it returns.
    pub(super) async fn show_keysets(&mut self) -> Result<(), End> {
        let (Some(ring), Some(shown), true) = (&self.ring, &self.shown, self.takes_keysets) else {
            return Ok(());
        };
        let (keys, known) = (ring.now(), shown.keyset.version);
        if keys.keyset.version > known {
            let keysets = keys.chain_from(known).split_off(1);
            self.send(0, from_controller::Message::Keysets(proto::KeySets { keysets })).await?;
            self.shown = Some(keys);
        }
        Ok(())
    }

    /// Makes sure that the peer can verify what a key signed. One that is of an older version and holds an older KeySet is asked
    /// to connect anew.
    pub(super) async fn vouch(&mut self, usage: KeyUse, key: &PublicKey) -> Result<(), End> {
        self.show_keysets().await?;
        let now = Timestamp::now().as_millisecond();
        if self.shown.as_ref().is_none_or(|s| s.keyset.allows(usage, key, now.max(s.keyset.issued))) {
            return Ok(());
        }
        self.send(0, from_controller::Message::GoElsewhere(proto::GoElsewhere::default())).await?;
        // It goes by itself; closing at once could overtake what it was just told.
        let leaves = async { while let Ok(Some(_)) = self.receiver.next().await {} };
        let _ = timeout(REFUSAL_PATIENCE, leaves).await;
        Err(End::Gone(
            "it does not know the key that signs since, and learns it when it connects anew".into(),
        ))
    }

    /// A checkpoint of the audit trail for an appliance that was not given it, and can verify it.
    pub(super) fn checkpoint(&mut self, newest: &Checkpoint) -> Option<proto::Envelope> {
        let (link, envelope) = newest.after(self.witnessed)?;
        let (key, shown) = (PublicKey::from_slice(&envelope.key)?, self.shown.as_ref()?);
        if !shown.keyset.allows(
            KeyUse::State,
            &key,
            Timestamp::now().as_millisecond().max(shown.keyset.issued),
        ) {
            return None;
        }
        self.witnessed = link;
        Some(envelope)
    }

    /// The next message. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Said, End> {
        loop {
            let message = match self.receiver.next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(End::Gone("the peer said goodbye".into())),
                Err(ReceiveError::Connection(e)) => return Err(End::Gone(e.to_string())),
                Err(ReceiveError::Frame(e)) => {
                    return Err(End::refuse(0, refusals::malformed(&e.to_string())));
                }
            };
            match self.rate.count(self.used_until, Timestamp::now()) {
                Some(until) => self.used_until = Some(until),
                None => return Err(End::refuse(message.request, refusals::too_many_messages())),
            }
            // A message of a later version is none of ours.
            if let proto::ToController { request, message: Some(message) } = message {
                return Ok((request, message));
            }
        }
    }

    /// Sends a message, as the answer to a request or 0. Returns how many bytes it was.
    pub(super) async fn send(
        &mut self,
        request: u64,
        message: from_controller::Message,
    ) -> Result<usize, End> {
        let message = proto::FromController { request, message: Some(message) };
        match timeout(self.patience, self.sender.send(&message)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(e)) => Err(End::Gone(e.to_string())),
            Err(_) => Err(End::Gone("the peer does not read what it is sent".into())),
        }
    }

    /// Answers a request that has no other answer; nothing when none was asked for.
    pub(super) async fn done(&mut self, request: u64) -> Result<(), End> {
        if request != 0 {
            self.send(request, from_controller::Message::Done(proto::Done {})).await?;
        }
        Ok(())
    }

    /// Ends the conversation, with the reason where there is one.
    pub(super) async fn finish(mut self, end: End) {
        let End::Refuse { request, refusal } = end else {
            self.connection.close(0u32.into(), b"done");
            return;
        };
        if self.send(request, from_controller::Message::Refused((*refusal).into())).await.is_ok() {
            // The peer may never acknowledge; then the connection's own end is its answer.
            let _ = timeout(REFUSAL_PATIENCE, self.sender.finish()).await;
        }
        self.connection.close(1u32.into(), b"refused");
    }
}
