//! Newer KeySets, as they come into force: who connects sees the new TLS key, and who is connected is shown the KeySet.

use std::sync::Arc;

use super::Context;

/// Works until the task is ended.
pub(super) async fn run(context: Arc<Context>) {
    let mut changes = context.keys.subscribe();
    // What changed while the listener was set up is looked at as well.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        let keys = changes.borrow_and_update().clone();
        if let Err(error) = context.listener.set_key(&keys.tls) {
            tracing::error!(%error, "the new TLS key cannot be used; the one before it is proved on");
        }
        for peer in context.registry.everybody() {
            peer.new_keys();
        }
    }
}
