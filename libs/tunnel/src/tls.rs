//! The handshakes of sessions: each session pins the key of its peer.

use std::sync::Arc;

use horizon_tls::{Credentials, Trust};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::Error;

/// The application protocol of this version of the data plane.
const ALPN: &[u8] = b"horizon-tunnel/1";

/// The accepting end of a session whose peer has `peer_key`.
pub(crate) fn server(credentials: &Credentials, peer_key: &[u8; 32]) -> Result<Arc<QuicServerConfig>, Error> {
    let config = credentials.server(ALPN, Trust::Key(*peer_key))?;
    QuicServerConfig::try_from(config).map(Arc::new).map_err(general)
}

/// The dialling end of a session whose peer has `peer_key`.
pub(crate) fn client(credentials: &Credentials, peer_key: &[u8; 32]) -> Result<Arc<QuicClientConfig>, Error> {
    let config = credentials.client(ALPN, Trust::Key(*peer_key))?;
    QuicClientConfig::try_from(config).map(Arc::new).map_err(general)
}

fn general(error: impl std::error::Error) -> Error {
    Error::General(error.to_string())
}
