//! Version negotiation: both sides name the range they speak, the highest common version is used.

use thiserror::Error;

/// The oldest version of the control protocol this software speaks.
pub const MIN: u32 = 1;
/// The newest.
pub const MAX: u32 = 1;
/// The ALPN identifier (RFC 7301) of the control channel.
pub const CONTROL_ALPN: &[u8] = b"horizon-control/1";
/// What this software calls itself.
pub const SOFTWARE: &str = concat!("horizon/", env!("CARGO_PKG_VERSION"));

/// The ranges have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the peer speaks versions {peer_min} to {peer_max} of the control protocol, this software {MIN} to {MAX}: upgrade the older side"
)]
pub struct NoCommonVersion {
    peer_min: u32,
    peer_max: u32,
}

/// The highest version both speak.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, NoCommonVersion> {
    let version = peer_max.min(MAX);
    if peer_min > peer_max || version < peer_min.max(MIN) {
        return Err(NoCommonVersion { peer_min, peer_max });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_wins() {
        assert_eq!(negotiate(1, 1), Ok(1));
        assert_eq!(negotiate(1, 9), Ok(1));
        assert_eq!(negotiate(0, 1), Ok(1));
        for (min, max) in [(2, 3), (0, 0), (1, 0)] {
            assert!(negotiate(min, max).is_err(), "{min}..{max}");
        }
    }
}
