//! What crosses the network on the control channel: protobuf messages and their framing, signed envelopes, the
//! organisation's root and KeySets, desired state as signed deltas, heartbeats under a ratcheting secret, and the strings
//! that people paste. Everything here is a function of its arguments; sockets, clocks and randomness are elsewhere.

pub mod audit;
pub mod challenge;
pub mod convert;
pub mod envelope;
pub mod frame;
pub mod handing;
pub mod heartbeat;
pub mod key;
pub mod keyset;
mod redact;
pub mod refusal;
pub mod rotation;
pub mod state;
pub mod token;
pub mod version;

pub use prost::Message;

/// The messages, generated from `proto/horizon/v1/control.proto`.
pub mod proto {
    #![allow(missing_docs, reason = "generated; proto/horizon/v1/control.proto has the comments")]
    #![allow(clippy::all, reason = "generated")]
    include!("generated/horizon.v1.rs");
}
