//! How QUIC is set up: endpoint, transport parameters and connection ids.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{hkdf, hmac, rand};
use horizon_tunnel_core::{
    cid::{ISSUED_LEN, IssuedCid, IssuedKey, QUIC_V1},
    ids::Slot,
};
use quinn_proto::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, InvalidCid,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, ValidationTokenConfig, VarInt,
    congestion::CubicConfig,
    crypto::{self, HandshakeTokenKey},
};

use crate::{Identity, TransportSettings};

/// Datagrams that QUIC holds before they are sent. The rest waits in the session's queue, where it can be dropped.
const SEND_BUFFER: usize = 128 * 1024;
/// Datagrams that QUIC holds before they are read. The loop empties it after every batch of packets.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Packets that one acknowledgement may cover, and how long it may be delayed.
const ACK_EVERY: u32 = 64;
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Assumed before anything was measured. Lower than QUIC's 333 ms, so that a lost first packet is repeated soon.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Which loop serves a connection: there is one.
const SHARD: u8 = 0;

/// The slot that the next issued connection ids are for.
#[derive(Clone, Default)]
pub(crate) struct CurrentSlot(Arc<AtomicU32>);

impl CurrentSlot {
    pub(crate) fn set(&self, slot: Slot) {
        self.0.store(slot.0, Ordering::Relaxed);
    }
}

/// The key that checks connection ids issued here; the same after a restart, so that peers are told of it at once.
pub(crate) fn issued_key(identity: &Identity) -> IssuedKey {
    IssuedKey::new(&identity.derive("horizon tunnel connection ids"))
}

pub(crate) fn endpoint(
    identity: &Identity,
    settings: &TransportSettings,
    key: &IssuedKey,
    slot: &CurrentSlot,
) -> EndpointConfig {
    let reset = identity.derive("horizon tunnel stateless reset");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset[..])));
    let (key, slot) = (key.clone(), slot.clone());
    config
        .cid_generator(move || Box::new(Issuer { key: key.clone(), slot: slot.clone() }))
        .supported_versions(vec![QUIC_V1])
        .grease_quic_bit(false);
    let payload = settings.max_udp_payload.clamp(1200, 65527);
    if config.max_udp_payload_size(payload).is_err() {
        tracing::warn!(payload, "QUIC refused the largest UDP payload; its default holds");
    }
    config
}

pub(crate) fn transport(settings: &TransportSettings, segmentation: bool) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(settings.max_udp_payload);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(64 * 1024))
        .max_idle_timeout(IdleTimeout::try_from(settings.idle_timeout).ok())
        .keep_alive_interval(Some(settings.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(CubicConfig::default()))
        .datagram_send_buffer_size(SEND_BUFFER)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .enable_segmentation_offload(segmentation)
        .allow_spin(false);
    Arc::new(config)
}

/// The key of the tokens by which peers prove their addresses.
pub(crate) fn token_key(identity: &Identity) -> Arc<dyn HandshakeTokenKey> {
    let secret = identity.derive("horizon tunnel address tokens");
    Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&secret[..]))
}

/// A server configuration for one session, or for refusing.
pub(crate) fn server(
    crypto: Arc<dyn crypto::ServerConfig>,
    token_key: Arc<dyn HandshakeTokenKey>,
    transport: Arc<TransportConfig>,
) -> ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut config = ServerConfig::new(crypto, token_key);
    config.transport_config(transport).validation_token_config(tokens).migration(true);
    config
}

/// Makes connection ids that carry shard, slot and a keyed check.
struct Issuer {
    key: IssuedKey,
    slot: CurrentSlot,
}

impl ConnectionIdGenerator for Issuer {
    fn generate_cid(&mut self) -> ConnectionId {
        let cid = IssuedCid { shard: SHARD, slot: self.slot.0.load(Ordering::Relaxed) };
        ConnectionId::new(&self.key.issue(cid, random()))
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        self.key.verify(cid).map(|_| ()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        ISSUED_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Random bytes for nonces and jitter.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The system's generator does not fail once the system has started; a constant costs an attempt, not secrecy.
    if rand::fill(&mut bytes).is_err() {
        tracing::error!("the system gave no random numbers");
    }
    bytes
}

/// A random number in 0.0..1.0.
pub(crate) fn jitter() -> f64 {
    f64::from(u32::from_le_bytes(random())) / (f64::from(u32::MAX) + 1.0)
}
