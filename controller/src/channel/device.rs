//! The conversation with a device: it enrols once, lists servers, asks for sessions, and hears when they end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use horizon_controller_core::DeviceStanding;
use horizon_model::{DeviceId, KeyId, PublicKey, SessionId, TaggedSecret};
use horizon_wire::{
    convert,
    proto::{self, KeyUse, from_controller::Message as Say, to_controller::Message as Heard},
    refusal::Refusal,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Context, accept,
    appliance::internal,
    device_news,
    key_news::KeyTalk,
    opening::Remote,
    refusals,
    registry::{DeviceMail, DeviceSeat, Elsewhere, Granted},
    servers, sessions,
    unproven::Place,
    wire::{End, Wire},
};
use crate::{
    detect::{Arrived, Fact, Who},
    keys::Role,
    live::{Counted, Hint, Limit, Live},
    store::{DeviceRecord, EndReason, EndedBy, EnrolError, SessionStatus},
};

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
        key: KeyTalk::new(context.bells.clone()),
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
    /// What it hears of its personal key.
    key: KeyTalk,
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
            if self.seated.is_some() {
                wire.counts_as(Role::Device);
            }
            tokio::select! {
                () = sleep_until(patience), if self.unproven.is_some() => {
                    return Err(End::refuse(0, refusals::silent()));
                }
                said = wire.next() => {
                    let (request, message) = said?;
                    if let Heard::KeysetHeld(held) = &message {
                        wire.keyset_held(held.version);
                        wire.done(request).await?;
                        continue;
                    }
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
                () = self.key.rung() => self.key_news(wire).await?,
                Some(answered) = self.asked.join_next(), if !self.asked.is_empty() => match answered {
                    Ok((request, Ok(answer))) => {
                        self.vouch(wire, &answer).await?;
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

    /// Makes sure that the device can verify a ticket.
    async fn vouch(&self, wire: &mut Wire, answer: &Say) -> Result<(), End> {
        match answer {
            Say::Ticket(envelope) => match PublicKey::from_slice(&envelope.key) {
                Some(key) => wire.vouch(KeyUse::Ticket, &key).await,
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn open(&mut self, wire: &mut Wire, mail: DeviceMail) -> Result<(), End> {
        if mail.make_way {
            return Err(End::refuse(0, refusals::too_many_of_device()));
        }
        if mail.keys {
            wire.show_keysets().await?;
        }
        for note in mail.ended {
            let ended = proto::SessionEnded {
                session: note.session.as_bytes().to_vec(),
                reason: note.reason.to_string(),
            };
            wire.send(0, Say::SessionEnded(ended)).await?;
        }
        if let Some(session) = mail.check {
            let asked = proto::CheckSession { session: session.as_bytes().to_vec() };
            wire.send(0, Say::CheckSession(asked)).await?;
        }
        self.elsewhere = mail.elsewhere.or(self.elsewhere.take());
        Ok(())
    }

    /// Tells what is new about the device's key.
    async fn key_news(&mut self, wire: &mut Wire) -> Result<(), End> {
        let Some(seated) = &self.seated else { return Ok(()) };
        for news in self.key.news(self.context, &seated.record).await.map_err(internal(0))? {
            wire.send(0, news).await?;
        }
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
        self.key.attend(record.key.0);
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
        let user =
            Who { id: record.user, namespace: record.namespace.clone(), name: record.user_name.clone() };
        let arrived = Arrived { user, address: self.remote.address.ip() };
        self.context.detect.note(Fact::Arrived(Box::new(arrived)));
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
            Heard::WrappingKey(said) => {
                // Somebody who is not enrolled has nothing to be sealed to them.
                let seated = self.seated.as_ref()?;
                self.key.wrapping_key(self.context, &seated.record, &said).await.err().map(Err)
            }
            Heard::DeviceHello(hello) => {
                let seated = self.seated.as_ref()?;
                self.context.device_hello(self.remote, &seated.record, hello).await.err().map(Err)
            }
            Heard::SessionReport(report) => {
                let seated = self.seated.as_ref()?;
                self.context.session_report(&seated.record, &report).await.err().map(Err)
            }
            Heard::GetSettings(_) => Some(self.settings(None).await),
            Heard::PutSettings(put) => Some(self.settings(Some(put)).await),
            Heard::WrapSettingsKey(wrap) => self.wrap_settings_key(wrap.keys).await.err().map(Err),
            Heard::KeyTaken(taken) => Some(self.key_taken(&taken).await),
            Heard::ClaimHandover(claim) => Some(self.context.handed_over(self.remote, &claim).await),
            _ => Some(Err(refusals::wrong_order("this message"))),
        }
    }

    async fn key_taken(&mut self, taken: &proto::KeyTaken) -> Result<Say, Refusal> {
        let device = self.current().await?;
        self.context.key_taken(self.remote, &device, taken).await
    }

    /// The settings that follow the user, after the device's change of them if it makes one.
    async fn settings(&mut self, put: Option<proto::PutSettings>) -> Result<Say, Refusal> {
        let device = self.good().await?;
        self.context.user_settings(&device, put).await
    }

    /// What a device wraps is believed by the others of its user: it must be one of them now.
    async fn wrap_settings_key(&mut self, keys: Vec<proto::WrappedKey>) -> Result<(), Refusal> {
        let device = self.good().await?;
        self.context.wrap_settings_key(&device, keys).await
    }

    /// The device as it is now, if nothing speaks against it or its key.
    async fn good(&mut self) -> Result<DeviceRecord, Refusal> {
        let device = self.current().await?;
        match device.standing(self.context.now()) {
            DeviceStanding::Good => Ok(device),
            standing => Err(sessions::standing_refusal(standing)),
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
        device_news::check_info(self.context, self.remote, &info)?;
        let enrolled = match self.context.store.enrol_device(key, &secret, self.remote.key, &info, now).await
        {
            Ok(enrolled) => enrolled,
            Err(error) => {
                if matches!(error, EnrolError::Unknown) {
                    self.context.detect.wrong_key(self.remote.address.ip(), key.0);
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
        self.context.live.publish(Hint::StatusDirty(enrolled.key.0));
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
        let device = self.good().await?;
        let index = self.context.desired.index();
        let (store, live) = (&self.context.store, &*self.context.live);
        let servers =
            servers::list(store, live, &index, &device).await.map_err(|e| refusals::internal(&e))?;
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
