//! What the controller says of the personal key: a new version of it, sealed to this device; that it was replaced; that it ends
//! soon. And keys that are handed over with a code.

use horizon_channel::Requests;
use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::KeyText,
    status::{KeyNotice, KeyState},
};
use horizon_model::{KeyId, TaggedSecret};
use horizon_tls::hpke::{Sealed, WrappingKey};
use horizon_wire::{
    handing,
    key::root_id,
    keyset::Anchor,
    proto::{self, KeyNews, from_controller, to_controller},
    token::{Handover, PersonalKey},
};
use jiff::Timestamp;

use super::{Keeper, LinkEvent, MAX_REASON, connect, refusal};

impl Keeper {
    fn wrapping(&self) -> WrappingKey {
        WrappingKey::of_device(self.key.seed().expose())
    }

    /// Says what is sealed to this device from now on. A controller that knows nothing of it says nothing.
    pub(super) fn publish_wrapping_key(&self, requests: Requests) {
        let key = self.wrapping().public();
        let message =
            proto::WrappingKey { key: key.to_vec(), signature: handing::sign_wrapping_key(&self.key, &key) };
        tokio::spawn(async move {
            if let Err(error) = requests.notify(to_controller::Message::WrappingKey(message)).await {
                tracing::debug!(%error, "the controller was not told what to seal keys to");
            }
        });
    }

    /// Keeps a new version of the key, and says so once it is kept.
    pub(super) fn new_key(&self, new: &proto::NewKey) {
        let Some(requests) = self.channel.as_ref().map(|channel| channel.requests.clone()) else { return };
        let Some((key, proof)) = self.open(new) else {
            return tracing::warn!("the controller sent a personal key that this device cannot open");
        };
        if let Err(error) = self.store.set_delivered(&KeyText::new(key.encode())) {
            return tracing::error!(%error, "a new personal key could not be kept; the old one works for now");
        }
        tracing::info!(key = %key.id, "a new personal key was kept; the one before ends by itself");
        let message = proto::KeyTaken { key_id: key.id.as_bytes().to_vec(), proof: proof.to_vec() };
        tokio::spawn(async move {
            // It is sent again with the next connection if this is lost.
            if let Err(error) = requests.request(to_controller::Message::KeyTaken(message)).await {
                tracing::info!(%error, "the controller was not told that the new key was kept");
            }
        });
    }

    fn open(&self, new: &proto::NewKey) -> Option<(PersonalKey, [u8; 32])> {
        let enrolment = self.enrolment.as_ref()?;
        let Anchor::KeySet(keyset) = enrolment.anchor()? else { return None };
        let id = KeyId::from_slice(&new.key_id)?;
        let sealed = Sealed { encapsulated: new.encapsulated.clone(), ciphertext: new.ciphertext.clone() };
        let place = handing::place(enrolment.device, id);
        let secret = TaggedSecret::from_slice(&self.wrapping().open(handing::KEY_INFO, &place, &sealed)?)?;
        let proof = handing::proof(&secret, enrolment.device, id);
        let controllers = enrolment.controllers.clone();
        Some((PersonalKey { controllers, root: root_id(&keyset.root), id, secret }, proof))
    }

    /// Passes on what the user should know.
    pub(super) async fn key_notice(&self, notice: proto::KeyNotice) {
        let state = match notice.news() {
            KeyNews::Replaced => KeyState::Replaced,
            KeyNews::Expires => KeyState::Expires,
            KeyNews::Rotates => KeyState::Rotates,
            KeyNews::Ended => KeyState::Ended,
            // What a later controller says beyond that is not understood.
            KeyNews::Fine | KeyNews::Unspecified => KeyState::Fine,
        };
        let notice = KeyNotice {
            state,
            message: notice.message.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect(),
            at: (notice.at != 0).then(|| Timestamp::from_millisecond(notice.at).ok()).flatten(),
        };
        // The receiver goes away only when the service stops.
        let _ = self.events.send(LinkEvent::Key(notice)).await;
    }

    /// Fetches a key that is handed over.
    pub(super) async fn claim(&self, hand: &Handover, code: String) -> Result<PersonalKey, Failure> {
        let anchor = Anchor::Root(hand.root);
        let channel = connect(&self.key, &hand.controllers, &anchor).await.map_err(refusal::not_connected)?;
        let wrapping = self.wrapping();
        let message = to_controller::Message::ClaimHandover(proto::ClaimHandover {
            id: hand.id.to_vec(),
            secret: hand.secret.expose().to_vec(),
            code,
            wrapping_key: wrapping.public().to_vec(),
        });
        let answer = channel.requests.request(message).await.map_err(refusal::not_answered)?;
        channel.requests.close("the key was handed over");
        let malformed = || Failure::failed("the controller's answer cannot be read", "update both sides");
        let from_controller::Message::HandedOver(handed) = answer else { return Err(malformed()) };
        let id = KeyId::from_slice(&handed.key_id).ok_or_else(malformed)?;
        let sealed = Sealed { encapsulated: handed.encapsulated, ciphertext: handed.ciphertext };
        let place = [hand.id.as_slice(), id.as_bytes()].concat();
        let secret = wrapping.open(handing::HANDOVER_INFO, &place, &sealed);
        let secret = secret.and_then(|secret| TaggedSecret::from_slice(&secret)).ok_or_else(|| {
            Failure::new(
                FailureKind::Failed,
                "the key that was handed over cannot be opened",
                "ask for a new hand-over",
            )
        })?;
        Ok(PersonalKey { controllers: hand.controllers.clone(), root: hand.root, id, secret })
    }
}
