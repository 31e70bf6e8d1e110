//! The conversation with a device: it enrols once, lists servers, asks for sessions, and hears when they end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use horizon_controller_core::{DeviceStanding, GrantFacts, Purpose, ServerStanding, grant, servers_for};
use horizon_model::{DeviceId, KeyId, SessionId, TaggedSecret};
use horizon_wire::{
    convert,
    proto::{self, from_controller::Message as Say, to_controller::Message as Heard},
    refusal::Refusal,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Context, accept,
    appliance::internal,
    opening::Remote,
    refusals,
    registry::{DeviceMail, DeviceSeat, Elsewhere, Granted},
    sessions,
    unproven::Place,
    wire::{End, Wire},
};
use crate::{
    live::{Counted, Hint, Limit, Live},
    store::{DeviceRecord, EndReason, EndedBy, EnrolError, SessionStatus},
};

/// The most servers of one list.
const MAX_SERVERS: usize = 1024;
/// How long a device may take to enrol after the Welcome.
const UNPROVEN_PATIENCE: Duration = Duration::from_secs(30);

/// Talks to a device until one of the two ends it.
pub(super) async fn converse(
    context: &Arc<Context>,
    remote: Remote,
    wire: &mut Wire,
    unproven: Place,
) -> End {
    let _open = context.metrics.channel_open("device");
    let mut device = Device {
        context,
        remote,
        seated: None,
        unproven: Some(unproven),
        asked: JoinSet::new(),
        elsewhere: None,
    };
    match device.run(wire).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// A device that is enrolled, in its place.
struct Seated {
    record: DeviceRecord,
    seat: DeviceSeat,
    _online: Online,
}

/// Says that a device has a channel, for as long as it lives.
struct Online {
    live: Arc<dyn Live>,
    device: DeviceId,
}

impl Drop for Online {
    fn drop(&mut self) {
        self.live.device_online(self.device, false);
    }
}

type Answer = (u64, Result<Say, Refusal>);

struct Device<'a> {
    context: &'a Arc<Context>,
    remote: Remote,
    seated: Option<Seated>,
    /// Its place among those that have not proved who they are, while it is one.
    unproven: Option<Place>,
    /// The request for a session that is under way: one at most.
    asked: JoinSet<Answer>,
    /// Where the device is to go.
    elsewhere: Option<Elsewhere>,
}

async fn next_mail(seated: &Option<Seated>) -> DeviceMail {
    match seated {
        Some(seated) => seated.seat.mail().await,
        None => std::future::pending().await,
    }
}

impl Device<'_> {
    async fn run(&mut self, wire: &mut Wire) -> Result<Infallible, End> {
        self.sit_down().await.map_err(internal(0))?;
        let patience = Instant::now() + UNPROVEN_PATIENCE;
        loop {
            tokio::select! {
                () = sleep_until(patience), if self.unproven.is_some() => {
                    return Err(End::refuse(0, refusals::silent()));
                }
                said = wire.next() => {
                    let (request, message) = said?;
                    match self.hear(request, message).await {
                        Some(Ok(answer)) => {
                            wire.send(request, answer).await?;
                        }
                        // A device that is refused something stays: another server may be granted.
                        Some(Err(refusal)) => self.refuse(wire, request, refusal).await?,
                        None => {}
                    }
                }
                mail = next_mail(&self.seated) => self.open(wire, mail).await?,
                Some(answered) = self.asked.join_next(), if !self.asked.is_empty() => match answered {
                    Ok((request, Ok(answer))) => {
                        wire.send(request, answer).await?;
                    }
                    Ok((request, Err(refusal))) => self.refuse(wire, request, refusal).await?,
                    Err(error) => tracing::error!(%error, "a request for a session broke off"),
                },
            }
            // A request for a session is carried through before its device goes.
            if self.asked.is_empty()
                && let Some(addresses) = self.elsewhere.take()
            {
                let go = proto::GoElsewhere { addresses: addresses.to_vec() };
                wire.send(0, Say::GoElsewhere(go)).await?;
            }
        }
    }

    async fn open(&mut self, wire: &mut Wire, mail: DeviceMail) -> Result<(), End> {
        for note in mail.ended {
            let ended = proto::SessionEnded {
                session: note.session.as_bytes().to_vec(),
                reason: note.reason.to_string(),
            };
            wire.send(0, Say::SessionEnded(ended)).await?;
        }
        self.elsewhere = mail.elsewhere.or(self.elsewhere.take());
        Ok(())
    }

    async fn refuse(&self, wire: &mut Wire, request: u64, refusal: Refusal) -> Result<(), End> {
        let code = refusals::name(refusal.code);
        self.context.metrics.refused(code);
        tracing::info!(key = %self.remote.key, code, "refused a device: {}", refusal.message);
        wire.send(request, Say::Refused(refusal.into())).await?;
        Ok(())
    }

    /// Takes the device's place, if it is enrolled.
    async fn sit_down(&mut self) -> Result<(), crate::store::StoreError> {
        let Some(record) = self.context.store.device_by_key(self.remote.key).await? else {
            self.seated = None;
            return Ok(());
        };
        let device = record.id;
        match &mut self.seated {
            Some(seated) if seated.record.id == device => {
                seated.record = record;
                return Ok(());
            }
            // It belongs to another user now: what it had as the first one's is over.
            Some(before) => {
                for server in self.context.store.servers_with_sessions(&[], &[before.record.id]).await? {
                    self.context.live.publish(Hint::ServerChanged(server));
                }
            }
            None => {}
        }
        self.context.store.touch_device(device, self.context.now()).await?;
        self.unproven = None;
        let live = self.context.live.clone();
        live.device_online(device, true);
        let seat = self.context.registry.seat_device(device);
        // One that comes back hears of the end of the session that it has.
        if let Some((_, session)) = self.context.store.session_of_user(record.user).await?
            && session.device == device
        {
            self.context.registry.granted(device, Granted { session: session.id, server: session.server });
        }
        self.seated = Some(Seated { record, seat, _online: Online { live, device } });
        Ok(())
    }

    /// What a message is answered; `None` when the answer comes later.
    async fn hear(&mut self, request: u64, message: Heard) -> Option<Result<Say, Refusal>> {
        match message {
            Heard::EnrolDevice(enrol) => Some(self.enrol(&enrol).await),
            Heard::ListServers(_) => Some(self.list_servers().await),
            Heard::RequestSession(asked) => self.request_session(request, asked).await.err().map(Err),
            Heard::EndSession(end) => Some(self.end_session(&end).await),
            _ => Some(Err(refusals::wrong_order("this message"))),
        }
    }

    async fn enrol(&mut self, enrol: &proto::EnrolDevice) -> Result<Say, Refusal> {
        let now = self.context.now();
        let policy = accept::policy(&self.context.desired.index());
        let limit = Limit::per_minute(policy.rate_limits.enrolments_per_minute);
        if !self.context.live.allow(Counted::Enrolment(self.remote.address.ip()), limit, now) {
            return Err(refusals::too_many_tries("enrolments"));
        }
        self.context.check_lockout(self.remote)?;
        let malformed = |field: &str| refusals::malformed(&format!("the field '{field}' has another length"));
        let key = KeyId::from_slice(&enrol.key_id).ok_or_else(|| malformed("key_id"))?;
        let secret = TaggedSecret::from_slice(&enrol.secret).ok_or_else(|| malformed("secret"))?;
        let info = convert::decode_device(enrol).map_err(|e| refusals::malformed(&e.to_string()))?;
        let enrolled = match self.context.store.enrol_device(key, &secret, self.remote.key, &info, now).await
        {
            Ok(enrolled) => enrolled,
            Err(error) => {
                if matches!(error, EnrolError::Unknown) {
                    self.context.note_failure(self.remote, "an enrolment").await;
                }
                if !matches!(error, EnrolError::Store(_)) {
                    self.context.refused_secret(self.remote, "enrolment_refused", &error.to_string()).await;
                }
                return Err(refusals::enrolment(&error));
            }
        };
        if enrolled.fresh {
            tracing::info!(device = %enrolled.device, user = %enrolled.user_name, "a device was enrolled");
        }
        self.context.live.publish(Hint::StatusDirty(enrolled.user));
        self.context.live.publish(Hint::StatusDirty(key.0));
        self.sit_down().await.map_err(|e| refusals::internal(&e))?;
        Ok(Say::DeviceEnrolled(proto::DeviceEnrolled {
            device_id: enrolled.device.as_bytes().to_vec(),
            user: enrolled.user_name.to_string(),
        }))
    }

    /// The device as it is now: it may have been revoked since it connected.
    async fn current(&mut self) -> Result<DeviceRecord, Refusal> {
        self.sit_down().await.map_err(|e| refusals::internal(&e))?;
        self.seated.as_ref().map(|seated| seated.record.clone()).ok_or_else(refusals::not_enrolled)
    }

    async fn list_servers(&mut self) -> Result<Say, Refusal> {
        let device = self.current().await?;
        let standing = device.standing(self.context.now());
        let index = self.context.desired.index();
        if standing != DeviceStanding::Good {
            return Err(sessions::standing_refusal(standing));
        }
        let mut servers = Vec::new();
        for server in servers_for(&index, device.user).into_iter().take(MAX_SERVERS) {
            let Some((stored, spec)) = index.server_by_id(server) else { continue };
            let name = stored.resource.name().to_string();
            // A list is for people, and may be a moment old; a request is decided by the store.
            let read = async {
                let standing = self.context.store.server_standing(server).await;
                standing.map(|standing| standing.unwrap_or(ServerStanding::Unregistered))
            };
            let standing = self.context.live.cache().server_standing(server, read).await;
            let standing = standing.map_err(|e| refusals::internal(&e))?;
            let facts =
                GrantFacts { purpose: Purpose::NewSession, server: standing, device: DeviceStanding::Good };
            let granted = grant(&index, facts, device.user, server);
            let online = self.context.live.presence(server).is_some_and(|presence| presence.online);
            let reason = match &granted {
                Err(denial) => denial.to_string(),
                Ok(_) if !online => refusals::offline(&name).message,
                Ok(_) => String::new(),
            };
            let (capabilities, networks) = granted.map_or_else(
                |_| (spec.capabilities.clone(), Vec::new()),
                |g| {
                    (
                        g.capabilities,
                        g.networks.into_iter().map(|n| n.name).filter(|n| !n.is_empty()).collect(),
                    )
                },
            );
            servers.push(proto::ServerSummary {
                name,
                available: reason.is_empty(),
                reason,
                capabilities: convert::encode_capabilities(&capabilities),
                location: spec.location.to_string(),
                networks,
            });
        }
        Ok(Say::Servers(proto::Servers { servers }))
    }

    async fn request_session(&mut self, request: u64, asked: proto::RequestSession) -> Result<(), Refusal> {
        let device = self.current().await?;
        if !self.asked.is_empty() {
            return Err(refusals::wrong_order("a second request for a session while one is under way"));
        }
        let (context, client) = (self.context.clone(), self.remote.address.ip());
        self.asked
            .spawn(async move { (request, sessions::request(&context, &device, client, &asked).await) });
        Ok(())
    }

    async fn end_session(&mut self, end: &proto::EndSession) -> Result<Say, Refusal> {
        let device = self.current().await?;
        let session = SessionId::from_slice(&end.session)
            .ok_or_else(|| refusals::malformed("the field 'session' has another length"))?;
        let live = self.context.store.live_session(session).await.map_err(|e| refusals::internal(&e))?;
        // One that has ended is what was asked for; another device's is not found.
        if let Some(session) = live.filter(|session| session.device == device.id) {
            let reason = EndReason {
                status: SessionStatus::Terminated,
                by: EndedBy::Client,
                reason: "it was disconnected".into(),
            };
            self.context.end(&session, &reason).await.map_err(|e| refusals::internal(&e))?;
        }
        Ok(Say::Done(proto::Done {}))
    }
}
