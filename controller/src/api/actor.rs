//! Who is at the other end of the socket.

use nix::unistd::{Uid, User, geteuid};
use tokio::net::UnixStream;

/// The account of the process at the other end, for the audit trail; `None` when it may not use the API. The socket's mode
/// already keeps others out; this also covers descriptors that were passed on.
pub(super) fn account(stream: &UnixStream) -> Option<String> {
    let uid = Uid::from_raw(stream.peer_cred().ok()?.uid());
    if !uid.is_root() && uid != geteuid() {
        tracing::warn!(%uid, "an account that may not use the API tried to");
        return None;
    }
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    Some(name.unwrap_or_else(|| format!("uid {uid}")))
}
