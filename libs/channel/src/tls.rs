//! TLS and QUIC settings of the control channel. Any key is accepted in the handshake: whose key it is, is the caller's
//! question.
//!
//! What a controller derives for packets comes of a secret that every replica of it has: whichever of them gets a packet can tell
//! whether it is a sibling's, reset it, or see that an address was proved to a sibling.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{hkdf, hmac};
use horizon_model::{PublicKey, Secret};
use horizon_tls::{Credentials, Identity, Trust};
use horizon_wire::{challenge::BINDING_LABEL, key::SigningKey, version::CONTROL_ALPN};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;

/// Silence after which a connection is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the connecting side is silent before it says that it is there; address translators forget UDP flows after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How much of a state may be under way to an appliance, in bytes.
const RECEIVE_WINDOW: u32 = 1 << 20;
/// How much of an appliance's messages may be under way to the controller. Small, because there are many appliances.
const CONTROLLER_RECEIVE_WINDOW: u32 = 64 << 10;
/// How much that an appliance has not acknowledged is kept for it, in bytes.
const CONTROLLER_SEND_WINDOW: u64 = 2 << 20;
/// The least time between two stateless resets. A controller that takes a dead one's place is asked for many at once; each is
/// smaller than the packet that led to it.
const RESET_INTERVAL: Duration = Duration::from_micros(20);
/// Names the key for stateless resets (RFC 9000, section 10.3).
const RESET_LABEL: &[u8] = b"horizon control stateless reset v1";
/// Names the key for the tokens with which peers prove their address (RFC 9000, section 8.1).
const TOKEN_LABEL: &[u8] = b"horizon control address token v1";
/// Names the key that tells the controllers' connection ids from noise.
const ID_LABEL: &[u8] = b"horizon control connection id v1";

/// The key the other side proved to hold.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let presented = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    horizon_tls::presented_key(&presented).map(PublicKey)
}

/// What both ends of a connection, and nobody else, derive from it (RFC 8446, section 7.5). `None` before the handshake is
/// over.
pub fn binding(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, BINDING_LABEL, b"").ok()?;
    Some(out)
}

/// What a peer with this key connects with.
///
/// # Errors
/// When the crypto library cannot sign with the key.
pub fn client_config(identity: &SigningKey) -> Result<quinn::ClientConfig, rustls::Error> {
    let tls = credentials(identity)?.client(CONTROL_ALPN, Trust::AnyKey)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(general)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(RECEIVE_WINDOW, 0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

pub(crate) fn server_config(
    identity: &SigningKey,
    common: &Secret,
) -> Result<quinn::ServerConfig, rustls::Error> {
    let tls = credentials(identity)?.server(CONTROL_ALPN, Trust::AnyKey)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(general)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(CONTROLLER_RECEIVE_WINDOW, 1);
    // A controller sends little: looking for larger packets would cost more than they save.
    // And what is put together for one peer is one packet: buffers for more would be kept for every connection.
    transport
        .send_window(CONTROLLER_SEND_WINDOW)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false);
    config.transport_config(Arc::new(transport));
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, TOKEN_LABEL);
    config.token_key(Arc::new(salt.extract(common.expose())));
    Ok(config)
}

pub(crate) fn endpoint_config(common: &Secret) -> quinn::EndpointConfig {
    let derive = |label| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, common.expose()), label);
    let mut config =
        quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, derive(RESET_LABEL).as_ref())));
    let ids = derive(ID_LABEL).as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    config
        .min_reset_interval(RESET_INTERVAL)
        .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
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
