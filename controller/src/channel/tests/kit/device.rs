//! A device that speaks the real protocol, without a tunnel.

use horizon_channel::{Channel, RequestError, Requests};
use horizon_model::{KeyId, PublicKey, SessionId, TaggedSecret, Ticket};
use horizon_wire::{
    convert,
    envelope::{self, Context as Signed},
    key::SigningKey,
    proto::{self, KeyUse, Role, from_controller::Message as Said, to_controller::Message as Say},
};
use jiff::Timestamp;

use super::{Appliance, Controller, fresh_key, soon};
use crate::store::tests::kit::BASICS;

/// A device of a user.
pub(crate) struct Device {
    pub(crate) key: SigningKey,
    pub(crate) channel: Channel,
}

impl Device {
    pub(crate) async fn connect(controller: &Controller) -> Self {
        let key = fresh_key();
        let channel = controller.dial(&key, Role::Device).await.unwrap();
        Self { key, channel }
    }

    pub(crate) async fn enrolled(controller: &Controller, key: &(KeyId, TaggedSecret), name: &str) -> Self {
        let device = Self::connect(controller).await;
        device.enrol(key, name).await.unwrap();
        device
    }

    pub(crate) async fn enrol(
        &self,
        (key, secret): &(KeyId, TaggedSecret),
        name: &str,
    ) -> Result<Said, RequestError> {
        let message = proto::EnrolDevice {
            key_id: key.as_bytes().to_vec(),
            secret: secret.expose().to_vec(),
            name: name.into(),
            platform: "linux".into(),
            os_version: "13".into(),
            app_version: "0.1.0".into(),
            hardware_fingerprint: "sha256:00".into(),
        };
        soon(self.channel.requests.request(Say::EnrolDevice(message))).await
    }

    pub(crate) fn requests(&self) -> Requests {
        self.channel.requests.clone()
    }

    /// Asks for a session on a server, while the appliance serves.
    pub(crate) async fn request(
        &self,
        server: &str,
        take_over: Option<SessionId>,
    ) -> Result<Said, RequestError> {
        ask(self.requests(), server.to_owned(), take_over).await
    }

    pub(crate) fn ticket(&self, said: &Said) -> Ticket {
        let Said::Ticket(envelope) = said else { panic!("expected a ticket, got {said:?}") };
        let trusted = |key: &PublicKey| {
            self.channel.keyset.allows(KeyUse::Ticket, key, Timestamp::now().as_millisecond())
        };
        convert::decode_ticket(envelope::open(Signed::Ticket, envelope, trusted).unwrap()).unwrap()
    }

    /// The next end of a session that the device is told of.
    pub(crate) async fn session_ended(&mut self) -> proto::SessionEnded {
        match soon(self.channel.inbox.recv()).await.expect("the controller ended the conversation") {
            Said::SessionEnded(ended) => ended,
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub(crate) async fn ask(
    requests: Requests,
    server: String,
    take_over: Option<SessionId>,
) -> Result<Said, RequestError> {
    let take_over = take_over.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    soon(requests.request(Say::RequestSession(proto::RequestSession { server, take_over }))).await
}

/// A session of a device on a server, whose appliance takes it in.
pub(crate) async fn session(device: &Device, appliance: &mut Appliance, server: &str) -> Ticket {
    let asked = tokio::spawn(ask(device.requests(), server.to_owned(), None));
    let id = appliance.take_session().await;
    let ticket = device.ticket(&soon(asked).await.unwrap().unwrap());
    assert_eq!(ticket.session, id);
    ticket
}

/// A controller with the basics, the personal key of their user, and an appliance that has its first state.
pub(crate) async fn served() -> (Controller, (KeyId, TaggedSecret), Appliance) {
    let controller = Controller::start(BASICS).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    (controller, key, appliance)
}
