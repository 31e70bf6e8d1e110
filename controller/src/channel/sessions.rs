//! From the wish for a session to its ticket: policy, the user's one lease, the appliance's word.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use horizon_controller_core::{
    Denial, DeviceStanding, Grant, GrantFacts, Index, Purpose, ServerStanding, grant, ticket_networks,
};
use horizon_crds::Name;
use horizon_model::{ServerId, SessionConflict, SessionId, Ticket};
use horizon_wire::{
    convert,
    envelope::{self, Context as Signed},
    proto::{self, RefusalCode, from_controller::Message as Say},
    refusal::Refusal,
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, timeout_at},
};

use super::{
    Context, refusals,
    registry::Granted,
    takeover::{self, Held, Release, Takeover},
};
use crate::{
    detect::{Fact, Who},
    live::Hint,
    store::{
        ChannelLease, DeviceRecord, EndReason, EndedBy, NewSession, ServerRecord, SessionOutcome, SessionRow,
        SessionStatus, StoreError,
    },
};

/// How long a name in `tunnel.advertise` may take to be resolved.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the store is asked what hints should say.
const LOOK: Duration = Duration::from_millis(500);
/// The most addresses of a ticket.
const MAX_ADDRESSES: usize = 16;

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn internal(error: StoreError) -> Refusal {
    refusals::internal(&error)
}

/// What a device is told that may not connect.
pub(super) fn standing_refusal(standing: DeviceStanding) -> Refusal {
    refusals::denied(&match standing {
        DeviceStanding::KeyExpired => Denial::KeyExpired,
        DeviceStanding::KeyRevoked => Denial::KeyRevoked,
        DeviceStanding::KeyReplaced => Denial::KeyReplaced,
        DeviceStanding::Blocked => Denial::DeviceBlocked,
        DeviceStanding::Forgotten => Denial::DeviceForgotten,
        DeviceStanding::Suspicious => Denial::DeviceSuspicious,
        DeviceStanding::Revoked | DeviceStanding::Good => Denial::DeviceRevoked,
    })
}

/// A session for a device: its ticket, or whose session is in the way, or why not.
pub(super) async fn request(
    context: &Context,
    device: &DeviceRecord,
    client: IpAddr,
    asked: &proto::RequestSession,
) -> Result<Say, Refusal> {
    let index = context.desired.index();
    let name: Name = asked.server.parse().map_err(|_| no_server(&asked.server))?;
    let server = index.server_named(&device.namespace, &name).ok_or_else(|| no_server(&name))?;
    let record = context.store.server(server).await.map_err(internal)?;
    let standing = record.as_ref().map_or(ServerStanding::Unregistered, ServerRecord::standing);
    let facts = GrantFacts {
        purpose: Purpose::NewSession,
        server: standing,
        device: device.standing(context.now()),
        traits: Some(&device.traits),
    };
    let granted = grant(&index, facts, device.user, server).map_err(|denial| refusals::denied(&denial))?;
    if appliance_gone(context, server).await.map_err(internal)?.is_some() {
        return Err(refusals::offline(&name));
    }
    // The rest is for what the sessions that are there may still be granted.
    if context.registry.state_bytes(server) > context.settings.state_bytes / 8 * 7 {
        return Err(refusals::state_full(&name));
    }
    let agreed = match &asked.take_over[..] {
        [] => None,
        bytes => {
            Some(SessionId::from_slice(bytes).ok_or_else(|| refusals::malformed("the field 'take_over'"))?)
        }
    };
    // Subscribed before anything is asked of an appliance: its answer cannot be missed.
    let mut hints = context.live.subscribe();
    if let Some(conflict) = clear_the_way(context, device, agreed, &mut hints).await? {
        return Ok(conflict);
    }
    let wish = NewSession { device, grant: &granted, client };
    let session = loop {
        let outcome = context.store.request_session(&wish, context.now()).await;
        match outcome.map_err(|error| refusals::session(&error, &name))? {
            SessionOutcome::Conflict { conflict, .. } => return Ok(conflict_message(&conflict)),
            // It ended a moment ago, or the replica that was to wait for its appliance died.
            SessionOutcome::Unreleased { conflict, server } => {
                let gone = appliance_gone(context, server).await.map_err(internal)?;
                match takeover::release(gone, context.settings.takeover_grace) {
                    Release::Await => await_release(context, device, &conflict, server, &mut hints).await?,
                    Release::GiveUp => give_up(context, device, &conflict).await?,
                    Release::Wait(left) => {
                        return Err(refusals::takeover_waits(&conflict.server_name, left.as_secs() + 1));
                    }
                }
            }
            SessionOutcome::Requested { session, replaced } => {
                if let Some(old) = replaced {
                    context.live.publish(Hint::ServerChanged(old.server));
                }
                break session;
            }
        }
    };
    // Wherever its appliance is connected.
    context.live.publish(Hint::ServerChanged(server));
    wait_for_appliance(context, &session, &name, &mut hints).await?;
    let ticket = ticket(context, &index, device, &granted, &session).await?;
    let payload = convert::encode_ticket(&ticket);
    tracing::info!(session = %session.id, server = %name, user = %device.user_name, "a session was granted");
    let user = Who { id: device.user, namespace: device.namespace.clone(), name: device.user_name.clone() };
    context.detect.note(Fact::SessionBegan(Box::new(user)));
    context.live.publish(Hint::StatusDirty(server.0));
    Ok(Say::Ticket(envelope::seal(Signed::Ticket, &context.keys.now().ticket, payload)))
}

fn no_server(name: &str) -> Refusal {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    let remedy = "list the servers you may use: `horizon servers`";
    Refusal::new(RefusalCode::NotFound, format!("there is no server '{shown}'"), remedy)
}

fn conflict_message(conflict: &SessionConflict) -> Say {
    Say::Conflict(convert::encode_conflict(conflict))
}

/// Ends the session of another device, if its user agreed to that. Returns the conflict to be asked about.
async fn clear_the_way(
    context: &Context,
    device: &DeviceRecord,
    agreed: Option<SessionId>,
    hints: &mut Receiver<Hint>,
) -> Result<Option<Say>, Refusal> {
    let Some((conflict, session)) = context.store.session_of_user(device.user).await.map_err(internal)?
    else {
        return Ok(None);
    };
    let gone = appliance_gone(context, session.server).await.map_err(internal)?;
    let held = Held { session: session.id, device: session.device, appliance_gone: gone };
    match takeover::decide(Some(held), device.id, agreed, context.settings.takeover_grace) {
        Takeover::None => Ok(None),
        Takeover::Ask => Ok(Some(conflict_message(&conflict))),
        Takeover::Wait(left) => Err(refusals::takeover_waits(&conflict.server_name, left.as_secs() + 1)),
        Takeover::End => {
            let reason = EndReason {
                status: SessionStatus::Terminated,
                by: EndedBy::Client,
                reason: format!("device '{}' took the connection over", device.name),
            };
            if !context.end(&session, &reason).await.map_err(internal)? {
                return Ok(None);
            }
            await_release(context, device, &conflict, session.server, hints).await?;
            Ok(None)
        }
        Takeover::EndUnconfirmed => {
            give_up(context, device, &conflict).await?;
            Ok(None)
        }
    }
}

/// Waits until the appliance of a session that ended has confirmed that it admits it no more.
async fn await_release(
    context: &Context,
    device: &DeviceRecord,
    conflict: &SessionConflict,
    server: ServerId,
    hints: &mut Receiver<Hint>,
) -> Result<(), Refusal> {
    // Half of it, so that the whole request is answered before its device stops waiting.
    let deadline = Instant::now() + context.settings.session_patience / 2;
    let about = Granted { session: conflict.session, server };
    while !context.store.session_released(conflict.session).await.map_err(internal)? {
        if !next_hint(hints, about, deadline).await {
            // The next request is not held up by it any more.
            give_up(context, device, conflict).await?;
            return Err(refusals::takeover_waits(&conflict.server_name, 1));
        }
    }
    Ok(())
}

/// Ends a session without the word of its appliance, which may still admit it.
async fn give_up(
    context: &Context,
    device: &DeviceRecord,
    conflict: &SessionConflict,
) -> Result<(), Refusal> {
    let reason =
        format!("device '{}' took the connection over while the appliance did not answer", device.name);
    let ended = context.store.end_unconfirmed(conflict.session, &reason, context.now()).await;
    if let Some(ended) = ended.map_err(internal)? {
        context.tell_end(&ended);
    }
    Ok(())
}

/// How long a server's appliance has been gone; `None` while it is connected, to this replica or another.
async fn appliance_gone(context: &Context, server: ServerId) -> Result<Option<Duration>, StoreError> {
    let presence = context.live.presence(server);
    if presence.is_some_and(|presence| presence.online) {
        return Ok(None);
    }
    // Of one that came to another replica just now, the store may know more.
    let newer = |held: ChannelLease| presence.is_none_or(|presence| presence.lease < held);
    let holder = context.store.channel_of(server).await?;
    if holder.is_some_and(|holder| holder.replica_alive && newer(holder.lease)) {
        return Ok(None);
    }
    let beat = context.store.server(server).await?.and_then(|record| record.last_heartbeat);
    let last = presence.map(|presence| presence.last_seen).max(beat);
    let gone =
        last.map(|last| context.now().duration_since(last)).and_then(|gone| Duration::try_from(gone).ok());
    Ok(Some(context.certain(gone.unwrap_or(Duration::MAX))))
}

/// Waits until something may have changed about a session or its server, or for a little while: hints are lost at times.
/// Returns whether the deadline has not passed.
async fn next_hint(hints: &mut Receiver<Hint>, about: Granted, deadline: Instant) -> bool {
    let look = Instant::now() + LOOK;
    loop {
        match timeout_at(deadline.min(look), hints.recv()).await {
            Ok(Ok(Hint::StateApplied { server, .. })) if server == about.server => return true,
            Ok(Ok(Hint::SessionEnded { session, .. })) if session == about.session => return true,
            Ok(Ok(Hint::Everything) | Err(RecvError::Lagged(_))) => return true,
            Ok(Ok(_)) => {}
            Ok(Err(RecvError::Closed)) => return false,
            Err(_) => return look < deadline,
        }
    }
}

/// Waits until the appliance has taken the session in. A session that it has not is ended.
async fn wait_for_appliance(
    context: &Context,
    session: &SessionRow,
    name: &Name,
    hints: &mut Receiver<Hint>,
) -> Result<(), Refusal> {
    let deadline = Instant::now() + context.settings.session_patience;
    let about = Granted { session: session.id, server: session.server };
    loop {
        let in_time = next_hint(hints, about, deadline).await;
        match context.store.live_session(session.id).await.map_err(internal)? {
            Some(row) if row.status == SessionStatus::Active => {
                // From now on its device is told of its end.
                context.registry.granted(session.device, about);
                return Ok(());
            }
            Some(_) if in_time => {}
            Some(row) => {
                let why = "the appliance did not answer in time";
                let reason =
                    EndReason { status: SessionStatus::Failed, by: EndedBy::Broker, reason: why.to_owned() };
                context.end(&row, &reason).await.map_err(internal)?;
                return Err(refusals::not_taken_in(name, why));
            }
            None => {
                let why = context.store.session_end(session.id).await.map_err(internal)?.unwrap_or_default();
                return Err(refusals::not_taken_in(name, &why));
            }
        }
    }
}

async fn ticket(
    context: &Context,
    index: &Index,
    device: &DeviceRecord,
    granted: &Grant,
    session: &SessionRow,
) -> Result<Ticket, Refusal> {
    let record = context.store.server(session.server).await.map_err(internal)?;
    let record = record.ok_or_else(|| refusals::offline(&granted.server_name))?;
    let appliance_key = record.public_key.ok_or_else(|| refusals::offline(&granted.server_name))?;
    Ok(Ticket {
        session: session.id,
        server: session.server,
        server_name: granted.server_name.to_string(),
        device: device.id,
        device_key: device.public_key,
        appliance_key,
        addresses: addresses(index, &record).await,
        secret: session.secret.clone(),
        networks: ticket_networks(granted, &session.facts()),
        dns: granted.dns.clone(),
        capabilities: granted.capabilities.clone(),
        mtu: granted.mtu,
        issued: context.now(),
        failover: granted.failover,
    })
}

/// Where clients should try to reach the appliance: where the declaration says; where the controller sees it, if its port
/// was found open there; where it says itself; and where the controller sees it, as a last try.
async fn addresses(index: &Index, record: &ServerRecord) -> Vec<SocketAddr> {
    let mut list: Vec<SocketAddr> = Vec::new();
    let Some((_, spec)) = index.server_by_id(record.server) else { return list };
    for endpoint in &spec.tunnel.advertise {
        let resolved =
            tokio::time::timeout(RESOLVE_PATIENCE, tokio::net::lookup_host(endpoint.to_string())).await;
        // A name that cannot be resolved here may leave other ways.
        list.extend(resolved.ok().and_then(Result::ok).into_iter().flatten());
    }
    let seen = record.public_address.map(|address| SocketAddr::new(address, spec.tunnel.port));
    if record.unreachable.is_none() {
        list.extend(seen);
    }
    list.extend(&record.addresses);
    list.extend(seen);
    let mut known = std::collections::HashSet::new();
    list.retain(|address| known.insert(*address));
    list.truncate(MAX_ADDRESSES);
    list
}
