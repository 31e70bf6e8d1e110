//! Connection ids that let unknown packets be dropped before any QUIC cryptography.
//!
//! A dialling end chooses the first destination connection id as
//!
//! ```text
//!  0..8    locator: names the session to the other end, derived from the session secret
//!  8..12   nonce: differs with every attempt
//!  12..20  HMAC-SHA256 under the session secret over a label, locator and nonce, truncated
//! ```
//!
//! and every id that an end issues for itself is
//!
//! ```text
//!  0       shard: which loop serves the connection (one loop for now)
//!  1..4    slot, big endian
//!  4..8    nonce: wide enough that an id hardly ever comes again, for its reset token would come again with it
//!          (RFC 9000, section 10.3.2)
//!  8..12   HMAC-SHA256 under a key of that end over a label and the eight bytes before, truncated
//! ```
//!
//! so that a packet which belongs to nothing is told from one of a connection that was lost in a restart.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};

use crate::ids::Secret32;

/// Length of the first destination connection id of a dialling end.
pub const INITIAL_LEN: usize = 20;
/// Length of the connection ids that both ends issue.
pub const ISSUED_LEN: usize = 12;
/// QUIC version 1, the only one spoken.
pub const QUIC_V1: u32 = 1;
/// Smallest UDP payload that may carry a first packet (RFC 9000, section 14.1).
pub const MIN_INITIAL_DATAGRAM: usize = 1200;

/// Front of a controller's dial-back probe; a nonce follows and ends it. QUIC's fixed bit is clear (RFC 9000, section
/// 17.2), so no QUIC packet looks like it.
pub const PROBE_PREFIX: [u8; 8] = *b"\0HZNPRB1";
/// Length of a probe's nonce.
pub const PROBE_NONCE_LEN: usize = 16;

const LOCATOR_LABEL: &[u8] = b"horizon tunnel locator";
const INITIAL_LABEL: &[u8] = b"horizon tunnel initial";
const ISSUED_LABEL: &[u8] = b"horizon tunnel issued";

/// Names a session in a first packet without saying its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Locator([u8; 8]);

/// A session secret ready for making and checking first connection ids.
#[derive(Clone)]
pub struct InitialKey {
    key: hmac::Key,
    locator: Locator,
}

impl InitialKey {
    /// Prepares a session secret.
    pub fn new(secret: &Secret32) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        let locator = Locator(truncate(hmac::sign(&key, LOCATOR_LABEL).as_ref()));
        Self { key, locator }
    }

    /// The session's locator.
    pub fn locator(&self) -> Locator {
        self.locator
    }

    /// The first destination connection id of an attempt. `nonce` must be random.
    pub fn issue(&self, nonce: [u8; 4]) -> [u8; INITIAL_LEN] {
        let mut cid = [0; INITIAL_LEN];
        cid[..8].copy_from_slice(&self.locator.0);
        cid[8..12].copy_from_slice(&nonce);
        let mac: [u8; 8] = self.mac(&cid[..12]);
        cid[12..].copy_from_slice(&mac);
        cid
    }

    /// Whether a connection id was issued under this secret.
    pub fn verify(&self, cid: &[u8; INITIAL_LEN]) -> bool {
        cid[..8] == self.locator.0 && verify_slices_are_equal(&self.mac(&cid[..12]), &cid[12..]).is_ok()
    }

    fn mac(&self, body: &[u8]) -> [u8; 8] {
        sign(&self.key, INITIAL_LABEL, body)
    }
}

/// The key of one end for the connection ids it issues for itself.
#[derive(Clone)]
pub struct IssuedKey(hmac::Key);

/// What an issued connection id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IssuedCid {
    /// Which loop serves the connection.
    pub shard: u8,
    /// The session's slot there, below 2^24.
    pub slot: u32,
}

impl IssuedKey {
    /// Takes the key's bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Writes a connection id. Bits of `slot` above 2^24 are left out.
    pub fn issue(&self, cid: IssuedCid, nonce: [u8; 4]) -> [u8; ISSUED_LEN] {
        let mut out = [0; ISSUED_LEN];
        out[0] = cid.shard;
        out[1..4].copy_from_slice(&cid.slot.to_be_bytes()[1..]);
        out[4..8].copy_from_slice(&nonce);
        let check: [u8; 4] = sign(&self.0, ISSUED_LABEL, &out[..8]);
        out[8..].copy_from_slice(&check);
        out
    }

    /// Reads a connection id, if it was issued under this key.
    pub fn verify(&self, cid: &[u8]) -> Option<IssuedCid> {
        let cid: &[u8; ISSUED_LEN] = cid.try_into().ok()?;
        let check: [u8; 4] = sign(&self.0, ISSUED_LABEL, &cid[..8]);
        verify_slices_are_equal(&check, &cid[8..]).ok()?;
        Some(IssuedCid { shard: cid[0], slot: u32::from_be_bytes([0, cid[1], cid[2], cid[3]]) })
    }
}

/// What the unprotected front of a UDP payload shows (RFC 8999).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A packet with a short header, addressed to an issued id. QUIC's own table decides.
    Short,
    /// A handshake packet addressed to an id that claims to be issued here.
    Issued([u8; ISSUED_LEN]),
    /// A first packet, addressed to an id that claims to be made under the secret of the session at `locator`.
    First {
        /// Which session it claims.
        locator: Locator,
        /// The whole id, to be verified.
        cid: [u8; INITIAL_LEN],
    },
    /// A controller's dial-back probe with its nonce. Anybody can make one.
    Probe([u8; PROBE_NONCE_LEN]),
    /// None of these: to be dropped.
    Foreign,
}

impl Sighting {
    /// Looks at one UDP payload.
    pub fn of(payload: &[u8]) -> Self {
        Self::parse(payload).unwrap_or(Self::Foreign)
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let first = *payload.first()?;
        // The fixed bit is always set by these ends (RFC 9000, section 17; no greasing).
        if first & 0x40 == 0 {
            return payload.strip_prefix(&PROBE_PREFIX)?.try_into().ok().map(Self::Probe);
        }
        if first & 0x80 == 0 {
            return (payload.len() > ISSUED_LEN).then_some(Self::Short);
        }
        let version = u32::from_be_bytes(*payload.get(1..)?.first_chunk()?);
        let length = usize::from(*payload.get(5)?);
        let cid = payload.get(6..6 + length)?;
        if version != QUIC_V1 {
            return None;
        }
        if let Ok(cid) = cid.try_into() {
            return Some(Self::Issued(cid));
        }
        let cid: [u8; INITIAL_LEN] = cid.try_into().ok()?;
        let initial = first & 0x30 == 0;
        (initial && payload.len() >= MIN_INITIAL_DATAGRAM).then(|| Self::first(cid))
    }

    /// What a first connection id claims.
    pub fn first(cid: [u8; INITIAL_LEN]) -> Self {
        Self::First { locator: Locator(truncate(&cid)), cid }
    }
}

fn sign<const N: usize>(key: &hmac::Key, label: &[u8], body: &[u8]) -> [u8; N] {
    let mut context = hmac::Context::with_key(key);
    context.update(label);
    context.update(body);
    truncate(context.sign().as_ref())
}

/// The first `N` bytes of something longer.
fn truncate<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

#[cfg(test)]
#[path = "cid_tests.rs"]
mod tests;
