//! Simulated devices: the channel of the real ones, without tunnels. They all speak from one address.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use horizon_channel::{Channel, ConnectOptions, RequestError, connect};
use horizon_model::{PublicKey, Secret, SessionId, TaggedSecret};
use horizon_wire::{
    convert, envelope,
    key::SigningKey,
    keyset::Anchor,
    proto::{self, KeyUse, from_controller::Message as Said, to_controller::Message as Say},
    token::PersonalKey,
    version,
};
use jiff::Timestamp;

/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(60);

/// A device and its channel.
pub struct Device {
    channel: Channel,
}

impl Device {
    /// A new device that connects to the controllers of a personal key.
    pub async fn connect(key: &PersonalKey) -> Result<Self> {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).ok().context("no randomness")?;
        let identity = SigningKey::from_seed(Secret::new(seed));
        let hello = proto::Hello {
            software: version::SOFTWARE.to_owned(),
            role: proto::Role::Device.into(),
            ..proto::Hello::default()
        };
        let options = ConnectOptions {
            addresses: &key.controllers,
            identity: &identity,
            anchor: &Anchor::Root(key.root),
            hello,
            fwmark: None,
            timeout: CONNECT,
        };
        Ok(Self { channel: connect(options).await? })
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.channel.requests.close_reason().is_none()
    }

    /// Presents a personal key with a secret, its own or another.
    pub async fn enrol(&self, key: &PersonalKey, secret: &TaggedSecret) -> Result<(), RequestError> {
        let message = Say::EnrolDevice(proto::EnrolDevice {
            key_id: key.id.as_bytes().to_vec(),
            secret: secret.expose().to_vec(),
            name: "simulated".to_owned(),
            platform: "linux".to_owned(),
            os_version: "13".to_owned(),
            app_version: env!("CARGO_PKG_VERSION").to_owned(),
            hardware_fingerprint: String::new(),
        });
        self.channel.requests.request(message).await.map(drop)
    }

    /// Asks for a session on a server.
    pub async fn session(&self, server: &str) -> Result<SessionId> {
        let wish = proto::RequestSession { server: server.to_owned(), take_over: Vec::new() };
        let answer = self.channel.requests.request(Say::RequestSession(wish)).await?;
        let Said::Ticket(ticket) = answer else { bail!("no ticket but {answer:?}") };
        let now = Timestamp::now().as_millisecond();
        let trusted = |key: &PublicKey| self.channel.keyset.allows(KeyUse::Ticket, key, now);
        Ok(convert::decode_ticket(envelope::open(envelope::Context::Ticket, &ticket, trusted)?)?.session)
    }

    /// Waits until the controller says that a session ended.
    pub async fn ended(&mut self, session: SessionId) -> Result<()> {
        while let Some(said) = self.channel.inbox.recv().await {
            if let Said::SessionEnded(ended) = said
                && ended.session == session.as_bytes()
            {
                return Ok(());
            }
        }
        bail!("the channel ended before the session")
    }
}

/// A secret that is not a key's.
pub(super) fn wrong_secret() -> TaggedSecret {
    let mut random = [0; 32];
    // Nothing but zeros is wrong as well.
    let _ = aws_lc_rs::rand::fill(&mut random);
    TaggedSecret::new(&random, [0; TaggedSecret::TAG_BYTES])
}

/// The personal keys of these names, once a controller with this folder of data has delivered them.
pub(super) fn delivered(data: &Path, names: &[String], limit: Duration) -> Result<Vec<PersonalKey>> {
    let end = std::time::Instant::now() + limit;
    let mut keys = Vec::new();
    for name in names {
        let file = data.join("secrets").join(format!("personalkey.default.{name}"));
        let text = super::organisation::delivered(&file, end)?;
        keys.push(PersonalKey::decode(&text)?);
    }
    Ok(keys)
}
