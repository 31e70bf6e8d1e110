//! Registration with a token. Repeating it with the same token and key gives the same answer.

use std::{fs, path::PathBuf, time::Duration};

use horizon_appliance_core::{Secrets, describe};
use horizon_channel::{ConnectError, ConnectOptions, RequestError, connect};
use horizon_hostnet::{Net, NetError};
use horizon_model::{Incarnation, Secret, ServerId};
use horizon_wire::{
    convert,
    keyset::Anchor,
    proto::{self, from_controller::Message as Said, to_controller::Message as Say},
    token::{RegistrationToken, TokenError},
};
use thiserror::Error;

use crate::{
    facts::{self, HostFacts},
    link,
    store::{Enrolment, Store, StoreError},
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the appliance was not enrolled.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The token.
    #[error("the registration token cannot be used: {0}")]
    Token(#[from] TokenError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It belongs to another server or organisation.
    #[error(
        "this appliance is enrolled as {0} already; to make it another server, run the same with --force"
    )]
    Other(String),
    /// No controller.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The controller refused.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The network cannot be looked at.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The system has no randomness.
    #[error("the system has no randomness to make a key from")]
    Randomness,
    /// The controller does not follow the protocol.
    #[error("the controller answered with another message than was asked for; is it of another version?")]
    Unexpected,
}

/// Registers the appliance under a token, and keeps what `run` needs.
pub async fn enrol(
    state_dir: PathBuf,
    token: &str,
    force: bool,
    host: &HostFacts,
) -> Result<Enrolment, EnrolError> {
    let token = RegistrationToken::decode(token)?;
    let store = Store::open(&state_dir)?;
    let _lock = store.lock()?;
    let former = store.enrolment()?;
    let same = |e: &Enrolment| e.root == token.root && e.key_name == token.key_name;
    if let Some(former) = former.as_ref().filter(|f| !same(f) && !force) {
        return Err(EnrolError::Other(former.server_name.clone()));
    }
    let identity = store.key_or(random()?)?;
    let factors = describe(&facts::collect(&Net::open()?, host).await);
    let anchor = Anchor::Root(token.root);
    let channel = Box::pin(connect(ConnectOptions {
        addresses: &token.controllers,
        identity: &identity,
        anchor: &anchor,
        hello: link::hello(),
        fwmark: None,
        timeout: TIMEOUT,
    }))
    .await?;
    let register = proto::Register {
        key_name: token.key_name.clone(),
        secret: token.secret.expose().to_vec(),
        incarnation: Incarnation(uuid::Uuid::new_v4()).as_bytes().to_vec(),
        hostname: hostname(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: convert::encode_capabilities(&link::CAPABILITIES),
        factors: convert::encode_factors(&factors),
    };
    let Said::Registered(registered) = channel.requests.request(Say::Register(register)).await? else {
        return Err(EnrolError::Unexpected);
    };
    let keyset = channel.keyset_raw.clone();
    channel.requests.farewell("registered").await;
    let server_id = ServerId::from_slice(&registered.server_id).ok_or(EnrolError::Unexpected)?;
    let current = Secret::from_slice(&registered.verification_secret).ok_or(EnrolError::Unexpected)?;
    let again = former.as_ref().is_some_and(|f| same(f) && f.server_id == server_id);
    if !again {
        store.forget_enrolment()?;
    }
    // A secret that has moved on since is the better one: the answer repeats what was first handed out.
    if !again || force || store.secrets()?.is_none() {
        store.set_secrets(&Secrets { current, previous: None })?;
    }
    if let Some(keyset) = &keyset {
        store.set_keyset(keyset)?;
    }
    let enrolment = Enrolment {
        server_id,
        server_name: registered.server_name,
        controllers: token.controllers,
        root: token.root,
        key_name: token.key_name,
    };
    // Last, so that an enrolment on disk is a whole one.
    store.set_enrolment(&enrolment)?;
    Ok(enrolment)
}

fn random() -> Result<Secret, EnrolError> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| EnrolError::Randomness)?;
    Ok(Secret::new(seed))
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().filter(|c| !c.is_control()).take(64).collect()
}
