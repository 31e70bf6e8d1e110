//! Personal keys: added, fetched from a hand-over, handed on to the user.

use std::time::Instant;

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{KeyText, Message, Reply},
};
use horizon_model::KeyId;
use horizon_wire::token::{Handover, PersonalKey};
use tokio::sync::mpsc;

use super::{Actor, Internal, send};
use crate::service::device;

impl Actor {
    pub(super) fn add_key(&mut self, text: &KeyText, name: Option<&str>, to: mpsc::Sender<Message>) {
        let key = match PersonalKey::decode(text.expose()) {
            Ok(key) => key,
            Err(error) => {
                let remedy = "paste the whole string you were given; it starts with 'hzn-key-'";
                let failure =
                    Failure::new(FailureKind::Usage, format!("that is no personal key: {error}"), remedy);
                return send(&to, Message::Failed(failure));
            }
        };
        if let Err(failure) = self.machine.handle_enrol(Instant::now()) {
            return send(&to, Message::Failed(failure));
        }
        let (link, inner, info) = (self.out.link.clone(), self.inner.clone(), device::describe(name));
        tokio::spawn(async move {
            let result = link.enrol(key, info).await;
            // Nobody listens any more only when the service ends.
            let _ = inner.send(Internal::Enrolled { result, to }).await;
        });
    }

    /// Fetches a key that is handed over.
    pub(super) fn claim_key(&self, text: &KeyText, code: String, to: mpsc::Sender<Message>) {
        let hand = match Handover::decode(text.expose()) {
            Ok(hand) => hand,
            Err(error) => {
                let remedy = "paste the whole string you were given; it starts with 'hzn-hand-'";
                let message = format!("that is no hand-over of a key: {error}");
                return send(&to, Message::Failed(Failure::new(FailureKind::Usage, message, remedy)));
            }
        };
        let link = self.out.link.clone();
        tokio::spawn(async move {
            let message = match link.claim(hand, code).await {
                Ok(key) => Message::Done(Reply::Key { key: Some(KeyText::new(key.encode())) }),
                Err(failure) => Message::Failed(failure),
            };
            send(&to, message);
        });
    }

    /// The personal key that waits for its user.
    pub(super) fn waiting_key(&self) -> Message {
        match self.out.store.delivered() {
            Ok(key) => Message::Done(Reply::Key { key }),
            Err(error) => Message::Failed(Failure::failed(error.to_string(), "")),
        }
    }

    /// Forgets the personal key that waits, if it is this one: a newer one may have come meanwhile.
    pub(super) fn key_taken(&self, id: KeyId) -> Message {
        let forgotten = self.out.store.delivered().and_then(|waiting| {
            let same = waiting
                .and_then(|text| PersonalKey::decode(text.expose()).ok())
                .is_some_and(|key| key.id == id);
            if same { self.out.store.clear_delivered() } else { Ok(()) }
        });
        match forgotten {
            Ok(()) => Message::Done(Reply::Key { key: None }),
            Err(error) => Message::Failed(Failure::failed(error.to_string(), "")),
        }
    }
}
