//! TLS and QUIC settings of the control channel. Any key is accepted in the handshake: whose key it is, is the caller's
//! question.

use std::{sync::Arc, time::Duration};

use horizon_model::PublicKey;
use horizon_tls::{Credentials, Identity, Trust};
use horizon_wire::{key::SigningKey, version::CONTROL_ALPN};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;

/// Silence after which a connection is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the connecting side says that it is there; address translators forget UDP flows after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How much of a state may be under way to an appliance, in bytes.
const RECEIVE_WINDOW: u32 = 1 << 20;
/// How much of an appliance's messages may be under way to the controller. Small, because there are many appliances.
const CONTROLLER_RECEIVE_WINDOW: u32 = 64 << 10;

/// The key the other side proved to hold.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let presented = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    horizon_tls::presented_key(&presented).map(PublicKey)
}

pub(crate) fn client_config(identity: &SigningKey) -> Result<quinn::ClientConfig, rustls::Error> {
    let tls = credentials(identity)?.client(CONTROL_ALPN, Trust::AnyKey)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(general)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(RECEIVE_WINDOW, 0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

pub(crate) fn server_config(identity: &SigningKey) -> Result<quinn::ServerConfig, rustls::Error> {
    let tls = credentials(identity)?.server(CONTROL_ALPN, Trust::AnyKey)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(general)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(CONTROLLER_RECEIVE_WINDOW, 1)));
    Ok(config)
}

fn credentials(identity: &SigningKey) -> Result<Credentials, rustls::Error> {
    Credentials::new(&Identity::from_seed(identity.seed().expose()).map_err(general)?)
}

fn general(error: impl std::error::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

fn transport(window: u32, streams: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window.into())
        .receive_window(window.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("30 s fit")));
    transport
}
