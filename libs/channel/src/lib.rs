//! The control channel: QUIC connections between a controller and its appliances and devices, with Ed25519 raw public
//! keys on both sides (RFC 7250), one stream of frames each, and trust that starts at the organisation's root.
//!
//! A peer accepts any TLS key during the handshake. It then walks the KeySet chain of the controller's Welcome from the
//! root or KeySet it holds, and goes on only if the TLS key that was proved is listed there. Nothing secret is sent before.

mod client;
mod frames;
mod listener;
mod tls;

pub use client::{Channel, ConnectError, ConnectOptions, RequestError, Requests, connect};
pub use frames::{ReceiveError, Receiver, SendError, Sender};
pub use listener::{HandshakeError, Incoming, Listener, Peer};
pub use tls::{binding, client_config, peer_key};

/// The first bytes of a dial-back probe: not a QUIC packet (its fixed bit is clear), then a name. A 16-byte nonce follows.
pub const PROBE_PREFIX: [u8; 8] = *b"\0HZNPRB1";
