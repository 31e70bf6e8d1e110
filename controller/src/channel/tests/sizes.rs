//! How much room a conversation takes: there are a hundred thousand of them.

use std::sync::Arc;

use horizon_channel::Peer;
use tokio::time::Instant;

use crate::channel::{Context, opening};

/// The most that the task of a conversation may take, in bytes, besides what its connection takes.
const MOST: usize = 13 << 8;

fn size<F: Future>(_conversation: impl FnOnce(Arc<Context>, Peer, Instant) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn conversations_take_little_room() {
    let size = size(opening::serve);
    assert!(size <= MOST, "{size} bytes");
}
