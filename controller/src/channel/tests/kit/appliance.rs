//! An appliance that speaks the real protocol, without a host.

use horizon_channel::{Channel, RequestError};
use horizon_model::{ApplianceReport, Incarnation, PublicKey, Secret, ServerId, SessionId};
use horizon_wire::{
    Message as _, convert,
    envelope::{self, Context as Signed},
    heartbeat,
    key::SigningKey,
    proto::{self, KeyUse, Role, from_controller::Message as Said, to_controller::Message as Say},
    state::{self, Numbered},
    token::RegistrationToken,
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Controller, fresh_key, soon};

/// An appliance that does what it is told and keeps what it must.
pub(crate) struct Appliance {
    pub(crate) key: SigningKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) server: ServerId,
    pub(crate) secret: Secret,
    pub(crate) held: Numbered,
    pub(crate) counter: u64,
    pub(crate) channel: Channel,
    pub(crate) state_key: PublicKey,
}

pub(crate) fn register_message(token: &RegistrationToken) -> Say {
    Say::Register(proto::Register {
        key_name: token.key_name.clone(),
        secret: token.secret.expose().to_vec(),
        incarnation: vec![1; 16],
        hostname: "box".into(),
        version: "0.1.0".into(),
        capabilities: vec!["vpn".into(), "lan_emulation".into()],
        factors: hardware(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "c")]),
    })
}

pub(crate) fn hardware(values: &[(&str, &str)]) -> Vec<proto::Factor> {
    let factor = |(name, value): &(&str, &str)| proto::Factor {
        kind: "hardware_fingerprint".into(),
        name: (*name).into(),
        value: (*value).into(),
    };
    values.iter().map(factor).collect()
}

impl Appliance {
    /// Registers with a token of the key `berlin-1`, and attaches.
    pub(crate) async fn enrol(controller: &Controller) -> Self {
        let token = controller.token("berlin-1").await;
        Self::enrol_with(controller, &token).await
    }

    pub(crate) async fn enrol_with(controller: &Controller, token: &RegistrationToken) -> Self {
        let key = fresh_key();
        let channel = controller.dial(&key, Role::Appliance).await.unwrap();
        let Said::Registered(registered) =
            soon(channel.requests.request(register_message(token))).await.unwrap()
        else {
            panic!("not registered");
        };
        let mut appliance = Self {
            key,
            incarnation: Incarnation(Uuid::new_v4()),
            server: ServerId::from_slice(&registered.server_id).unwrap(),
            secret: Secret::from_slice(&registered.verification_secret).unwrap(),
            held: Numbered::default(),
            counter: 0,
            state_key: PublicKey([0; 32]),
            channel,
        };
        appliance.attach().await.unwrap();
        appliance
    }

    pub(crate) async fn attach(&mut self) -> Result<proto::Attached, RequestError> {
        self.state_key = self.channel.keyset.current(KeyUse::State).unwrap();
        self.counter = 0;
        let attach = proto::Attach {
            server_id: self.server.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            version: "0.1.0".into(),
            capabilities: vec!["vpn".into(), "lan_emulation".into()],
            epoch: self.held.epoch,
            generation: self.held.generation,
            digest: if self.held.generation == 0 {
                Vec::new()
            } else {
                self.held.entries.digest().0.to_vec()
            },
            addresses: vec!["192.0.2.7:7443".into()],
            witnesses: Vec::new(),
        };
        match soon(self.channel.requests.request(Say::Attach(attach))).await? {
            Said::Attached(attached) => Ok(attached),
            other => panic!("expected Attached, got {other:?}"),
        }
    }

    /// Connects again and attaches, as after a lost connection.
    pub(crate) async fn reconnect(
        &mut self,
        controller: &Controller,
    ) -> Result<proto::Attached, RequestError> {
        self.channel = controller.dial(&self.key, Role::Appliance).await.unwrap();
        self.attach().await
    }

    /// Dials another replica, where it can attach next. Returns the old channel, which still stands.
    pub(crate) async fn hand_over(&mut self, to: &Controller) -> Channel {
        let new = to.dial(&self.key, Role::Appliance).await.unwrap();
        std::mem::replace(&mut self.channel, new)
    }

    /// The same appliance over another channel, as a copy of its disk would be.
    pub(crate) fn copy(&self, channel: Channel) -> Self {
        Self {
            key: self.key.clone(),
            incarnation: self.incarnation,
            server: self.server,
            secret: self.secret.clone(),
            held: self.held.clone(),
            counter: self.counter,
            state_key: self.state_key,
            channel,
        }
    }

    /// Serves until it was challenged and answered.
    pub(crate) async fn take_challenge(&mut self) {
        loop {
            match self.next().await.expect("the controller ended the conversation") {
                Said::Challenge(challenge) => return self.answer(&challenge).await,
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The next message that the controller says unasked; `None` when it ended the conversation.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        soon(self.channel.inbox.recv()).await
    }

    pub(crate) async fn answer(&self, challenge: &proto::Challenge) {
        let id: [u8; 16] = challenge.id[..].try_into().unwrap();
        let nonce: [u8; 32] = challenge.nonce[..].try_into().unwrap();
        let tag = heartbeat::answer(&self.secret, &id, &nonce, self.server, self.incarnation);
        let response = proto::ChallengeResponse { id: challenge.id.clone(), tag, payload: Vec::new() };
        self.channel.requests.notify(Say::ChallengeResponse(response)).await.unwrap();
    }

    /// Serves until a state came and was applied and reported. Returns how many bytes its delta had.
    pub(crate) async fn take_state(&mut self) -> usize {
        loop {
            match self.next().await.expect("the controller ended the conversation") {
                Said::Challenge(challenge) => self.answer(&challenge).await,
                Said::State(envelope) => {
                    self.apply(&envelope);
                    self.report(ApplianceReport::default()).await;
                    return envelope.payload.len();
                }
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Serves until a session is in the state.
    pub(crate) async fn take_session(&mut self) -> SessionId {
        loop {
            self.take_state().await;
            if let Some(id) = self.sessions().first() {
                return *id;
            }
        }
    }

    /// Serves until no session is in the state.
    pub(crate) async fn lose_session(&mut self) {
        while !self.sessions().is_empty() {
            self.take_state().await;
        }
    }

    pub(crate) fn apply(&mut self, envelope: &proto::Envelope) {
        let payload = envelope::open(Signed::State, envelope, |key| *key == self.state_key).unwrap();
        self.held = state::apply(&self.held, self.server, payload).unwrap();
    }

    /// Reports what is held, with whatever else is given.
    pub(crate) async fn report(&self, extra: ApplianceReport) {
        let report = ApplianceReport {
            generation: self.held.generation,
            digest: Some(self.held.entries.digest()),
            addresses: vec!["192.0.2.7:7443".parse().unwrap()],
            ..extra
        };
        let message = Say::Report(convert::encode_report(&report));
        self.channel.requests.notify(message).await.unwrap();
    }

    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        let (state, problems) = self.held.entries.decode();
        assert!(problems.is_empty(), "{problems:?}");
        state.sessions().map(|session| session.id).collect()
    }

    pub(crate) fn beat_message(&mut self, factors: Vec<proto::Factor>) -> proto::Heartbeat {
        self.counter += 1;
        let body = proto::HeartbeatBody {
            server_id: self.server.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            counter: self.counter,
            sent: Timestamp::now().as_millisecond(),
            generation: self.held.generation,
            factors,
            ..Default::default()
        };
        let payload = body.encode_to_vec();
        proto::Heartbeat { tag: heartbeat::sign(&self.secret, &payload), payload }
    }

    /// Beats, and moves the secret on.
    pub(crate) async fn beat(&mut self, factors: Vec<proto::Factor>) {
        let beat = self.beat_message(factors);
        let Said::HeartbeatAck(ack) =
            soon(self.channel.requests.request(Say::Heartbeat(beat))).await.unwrap()
        else {
            panic!("no acknowledgement");
        };
        assert_eq!(ack.counter, self.counter);
        self.secret = heartbeat::ratchet(&self.secret, &ack.ratchet_nonce[..].try_into().unwrap());
    }
}
