//! One peer's messages: within their rate, and never waiting for a peer that does not read.

use std::time::Duration;

use horizon_channel::{Peer, ReceiveError, Receiver, Sender};
use horizon_wire::{
    proto::{self, from_controller, to_controller},
    refusal::Refusal,
};
use jiff::Timestamp;
use tokio::time::timeout;

use super::refusals;
use crate::live::Limit;

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
}

impl Wire {
    pub(super) fn new(peer: Peer, messages_per_second: u32, patience: Duration) -> Self {
        const WINDOW: u32 = 2;
        let rate = Limit::new(messages_per_second.saturating_mul(WINDOW), Duration::from_secs(WINDOW.into()));
        let Peer { sender, receiver, connection, .. } = peer;
        Self { sender, receiver, connection, patience, rate, used_until: None }
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
