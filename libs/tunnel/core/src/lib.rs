//! The decisions of Horizon's packet path, without any input or output.
//!
//! Everything here is a function of bytes, configuration and the time passed in. The shell (`horizon-tunnel`) owns the
//! sockets, the TUN device, QUIC and the clock; this crate says what a packet is, whether it may pass, where it goes,
//! how it is cut and joined, and which connection ids are genuine.

pub mod checksum;
pub mod cid;
pub mod dial;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod header;
pub mod icmp;
pub mod ids;
pub mod limit;
pub mod mss;
pub mod offload;
pub mod packet;
pub mod queue;
pub mod routes;
pub mod rules;
pub mod session;

#[cfg(test)]
mod test_packets;
