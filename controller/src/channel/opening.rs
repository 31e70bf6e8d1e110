//! The first words: versions are agreed on, the KeySets are shown, and the peer's role decides who talks to it.

use std::{net::SocketAddr, sync::Arc};

use horizon_channel::Peer;
use horizon_controller_core::payload::Rules;
use horizon_model::PublicKey;
use horizon_wire::{
    challenge, keyset,
    proto::{self, Role, from_controller},
    refusal::Refusal,
    version,
};
use ipnet::IpNet;
use tokio::time::Instant;

use super::{
    Context, accept, appliance, device, refusals,
    unproven::Place,
    wire::{End, Wire},
};
use crate::{
    detect::Door,
    store::{NewEvent, Severity, Source},
};

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    /// The key that was proved in TLS.
    pub(super) key: PublicKey,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// When its first packet was taken.
    pub(super) since: Instant,
    /// What binds a statement to the connection, with a peer that answers every type of challenge.
    pub(super) binding: Option<[u8; 32]>,
}

/// Talks to a peer until one of the two ends it.
pub(super) async fn serve(context: Arc<Context>, peer: Peer, since: Instant) {
    let capable = peer.hello.features.iter().any(|feature| feature == challenge::FEATURE);
    let binding = capable.then(|| horizon_channel::binding(&peer.connection)).flatten();
    let remote = Remote { key: peer.key, address: peer.remote, since, binding };
    let hello = peer.hello.clone();
    // What happens once is boxed, and so is one of the two kinds of conversation: the task is as large as its largest part.
    let mut wire = Wire::new(peer, context.settings.messages_per_second, context.settings.send_patience);
    let (mut stop, mut blocked) = (context.stop.clone(), context.blocked.subscribe());
    let now_blocked = async {
        // The sender lives as long as the context.
        let inside = |networks: &Vec<IpNet>| networks.iter().any(|n| n.contains(&remote.address.ip()));
        blocked.wait_for(inside).await.map(|_| ())
    };
    let end = tokio::select! {
        end = converse(&context, remote, hello, &mut wire) => end,
        Ok(()) = now_blocked => End::refuse(0, refusals::blocked()),
        () = context.blocks.blocked(remote.address.ip()) => End::refuse(0, refusals::blocked()),
        () = stop.requested() => End::Gone("the controller stops".into()),
    };
    match &end {
        End::Gone(why) => tracing::debug!(key = %remote.key, why, "a conversation is over"),
        End::Refuse { refusal, .. } => {
            context.metrics.refused(refusals::name(refusal.code));
            tracing::info!(key = %remote.key, code = refusals::name(refusal.code), "refused a peer: {}", refusal.message);
        }
    }
    Box::pin(wire.finish(end)).await;
}

async fn converse(context: &Arc<Context>, remote: Remote, hello: proto::Hello, wire: &mut Wire) -> End {
    let role = hello.role();
    let unproven = match Box::pin(welcome(context, remote, hello, wire)).await {
        Ok(unproven) => unproven,
        Err(end) => return end,
    };
    match role {
        Role::Appliance => appliance::converse(context, remote, wire, unproven).await,
        _ => Box::pin(device::converse(context, remote, wire, unproven)).await,
    }
}

/// Agrees on a version, and shows the KeySets.
async fn welcome(
    context: &Arc<Context>,
    remote: Remote,
    hello: proto::Hello,
    wire: &mut Wire,
) -> Result<Place, End> {
    let negotiated = match version::negotiate(hello.min_version, hello.max_version) {
        Ok(version) => version,
        Err(e) => {
            let remedy = "upgrade the side with the older version";
            return Err(End::refuse(0, Refusal::new(proto::RefusalCode::Version, e.to_string(), remedy)));
        }
    };
    let now = context.now();
    let unproven = match context.unproven.enter(remote.address.ip(), context.settings.unproven()) {
        Some(place) => place,
        None if context.store.knows_key(remote.key).await.unwrap_or(false) => {
            context.unproven.enter_known(remote.address.ip())
        }
        None => return Err(End::refuse(0, refusals::too_many_unproven())),
    };
    if hello.role() == Role::Unspecified {
        return Err(End::refuse(0, refusals::malformed("the Hello names no role")));
    }
    let keys = context.keys.now();
    wire.shown(&context.keys, keys.clone(), hello.features.iter().any(|f| f == keyset::FEATURE));
    let welcome = proto::Welcome {
        version: negotiated,
        keysets: keys.chain_from(hello.keyset_version),
        newest_keyset: keys.keyset.version,
        now: now.as_millisecond(),
        software: version::SOFTWARE.into(),
    };
    wire.send(0, from_controller::Message::Welcome(welcome)).await?;
    Ok(unproven)
}

impl Context {
    /// Refuses whoever is about to prove a secret from an address that failed to too often.
    pub(super) fn check_lockout(&self, remote: Remote) -> Result<(), Refusal> {
        let now = self.now();
        match self.live.locked_out_until(remote.address.ip(), now) {
            Some(until) => {
                self.detect.wrong_secret(remote.address.ip());
                Err(refusals::locked_out(until.duration_since(now).as_secs()))
            }
            None => Ok(()),
        }
    }

    /// Records that somebody was refused who presented a secret.
    pub(super) async fn refused_secret(&self, remote: Remote, kind: &'static str, why: &str) {
        // A storm of them is told by detection: here each is a row.
        let (due, left_out) = self.refusals_told.due(self.now());
        if !due {
            return;
        }
        let event = NewEvent {
            kind,
            severity: Severity::Low,
            source: Source::Unknown,
            address: Some(remote.address.ip()),
            description: why.to_owned(),
            data: serde_json::json!({ "publicKey": remote.key.to_string(), "leftOut": left_out }),
        };
        self.record(&event).await;
    }

    /// Counts a failure to prove a secret; whoever fails too often is locked out.
    pub(super) async fn note_failure(&self, remote: Remote, what: &str) {
        let now = self.now();
        self.detect.wrong_secret(remote.address.ip());
        let lockout = accept::lockout(&accept::policy(&self.desired.index()));
        if !self.live.note_failure(remote.address.ip(), lockout, now) {
            return;
        }
        let event = NewEvent {
            kind: "locked_out",
            severity: Severity::Medium,
            source: Source::Unknown,
            address: Some(remote.address.ip()),
            description: format!(
                "{} failed attempts from one address; the last was {what}",
                lockout.threshold
            ),
            data: serde_json::Value::Null,
        };
        self.record(&event).await;
    }

    /// Holds what a peer says of itself against the payload rules.
    pub(super) fn check_texts(&self, remote: Remote, texts: &[(&str, &str)]) -> Result<(), Refusal> {
        let rules = Rules::from(&accept::policy(&self.desired.index()).payload);
        for (field, text) in texts {
            if let Err(hit) = rules.text(text) {
                let refusal = refusals::payload(field, &hit.to_string());
                self.detect.refused_payload(remote.address.ip(), Door::Channel, hit);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Records a security event; that it cannot be recorded stops nothing else.
    pub(super) async fn record(&self, event: &NewEvent) {
        if let Err(error) = self.store.record_event(event, self.now()).await {
            tracing::error!(%error, kind = event.kind, "a security event could not be recorded: {}", event.description);
        }
    }
}
