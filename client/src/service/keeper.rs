//! Keeps the control channel: set up when somebody asks something, held while a session lives, set up again with growing
//! and jittered pauses when it is lost, and closed when it has been idle for a while.

mod news;

use std::{future::pending, net::SocketAddr, time::Duration};

use horizon_channel::{Channel, ConnectError, ConnectOptions, RequestError, Requests};
use horizon_client_core::{
    backoff::Backoff,
    failure::{Failure, FailureKind},
    plan::MARK,
    status::{ControllerState, ControllerView},
};
use horizon_model::{DeviceId, DeviceInfo, SessionId};
use horizon_wire::{
    convert,
    key::SigningKey,
    keyset::Anchor,
    proto::{self, Role, from_controller, to_controller},
    token::PersonalKey,
    version,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    device,
    link::{Command, LinkEvent, Question},
    refusal,
    store::{Enrolment, Store},
};

/// How long an attempt to reach a controller may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long an answer may take before the controller is asked whether it is there at all, and how long that may take.
const SUSPICION: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(2));
/// How long an unneeded channel is kept for the next question.
const IDLE: Duration = Duration::from_secs(60);
/// Questions that may wait while the channel is being set up.
const MAX_PARKED: usize = 64;
/// News that wait for a controller; beyond it the oldest are dropped, and the controller finds out by itself.
const MAX_UNTOLD: usize = 16;
/// First and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The most addresses that a controller may name in its place.
const MAX_ELSEWHERE: usize = 8;
/// The longest reason that is kept, in characters.
const MAX_REASON: usize = 512;

type Dialled = Result<Channel, ConnectError>;

/// The task's state.
pub(super) struct Keeper {
    /// To put a question to itself once more.
    commands: mpsc::WeakSender<Command>,
    store: Store,
    key: SigningKey,
    enrolment: Option<Enrolment>,
    events: mpsc::Sender<LinkEvent>,
    show: watch::Sender<ControllerView>,
    random: fn() -> f64,
    backoff: Backoff,
    channel: Option<Channel>,
    /// The attempt under way.
    dialling: Option<oneshot::Receiver<Dialled>>,
    /// Questions for the channel that is being set up.
    parked: Vec<Question>,
    /// What the controller is told when it can be reached.
    untold: Vec<to_controller::Message>,
    held: bool,
    /// When to try again (without a channel) or to let go (with one).
    due: Option<Instant>,
    elsewhere: Vec<String>,
    /// A controller that was found to be silent: it is tried last.
    silent: Option<SocketAddr>,
    /// Where a controller was last: its name may not be resolved while the session's resolvers are out of reach.
    known: Option<SocketAddr>,
}

impl Keeper {
    /// A task without a channel.
    pub(super) fn new(
        commands: mpsc::WeakSender<Command>,
        store: Store,
        key: SigningKey,
        enrolment: Option<Enrolment>,
        events: mpsc::Sender<LinkEvent>,
        show: watch::Sender<ControllerView>,
        random: fn() -> f64,
    ) -> Self {
        Self {
            commands,
            store,
            key,
            enrolment,
            events,
            show,
            random,
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
            channel: None,
            dialling: None,
            parked: Vec::new(),
            untold: Vec::new(),
            held: false,
            due: None,
            elsewhere: Vec::new(),
            known: None,
            silent: None,
        }
    }

    /// Runs until nobody can send commands any more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        loop {
            let due = self.due;
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                message = unasked(self.channel.as_mut()) => match message {
                    Some(message) => self.unasked(message).await,
                    None => self.lost(),
                },
                result = dialled(self.dialling.as_mut()) => self.dialled(result),
                () = wait(due) => self.timeout(),
            }
        }
        if let Some(channel) = &self.channel {
            channel.requests.farewell("the client stops").await;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Put(question) => self.take(question),
            Command::Enrol { key, info, answer } => {
                let result = self.enrol(&key, info).await;
                self.rest();
                // Whoever asked may have stopped waiting; the enrolment is kept all the same.
                drop(answer.send(result));
            }
            Command::Claim { hand, code, answer } => {
                let result = self.claim(&hand, code).await;
                drop(answer.send(result));
            }
            Command::Mention(message) => {
                if let Some(channel) = &self.channel {
                    let requests = channel.requests.clone();
                    // What is only worth something now is not kept for later.
                    tokio::spawn(async move { drop(requests.notify(message).await) });
                }
            }
            Command::Hold(held) => {
                self.held = held;
                self.rest();
            }
        }
    }

    /// Puts a question, or parks it until a channel stands.
    fn take(&mut self, question: Question) {
        if self.channel.as_ref().is_some_and(|c| c.requests.close_reason().is_some()) {
            self.lost();
        }
        match (&self.channel, question.answer) {
            (Some(channel), answer) => {
                let question = Question { answer, ..question };
                tokio::spawn(put(channel.requests.clone(), question, self.commands.clone()));
            }
            (None, Some(answer)) if self.parked.len() >= MAX_PARKED => {
                let busy = Failure::failed("too many questions wait for the controller", "try again later");
                drop(answer.send(Err(busy)));
            }
            (None, Some(answer)) => {
                self.parked.push(Question { answer: Some(answer), ..question });
                self.dial();
            }
            (None, None) => {
                if self.untold.len() >= MAX_UNTOLD {
                    self.untold.remove(0);
                }
                self.untold.push(question.message);
                self.dial();
            }
        }
        self.rest();
    }

    /// Begins to set up a channel, unless that is under way.
    fn dial(&mut self) {
        if self.dialling.is_some() {
            return;
        }
        let anchored = match &self.enrolment {
            None => Err(Failure::new(
                FailureKind::Usage,
                "this device is not enrolled",
                "add the personal key you were given: horizon key add",
            )),
            Some(enrolment) => enrolment.anchor().map(|anchor| (enrolment, anchor)).ok_or_else(|| {
                Failure::failed("the stored KeySet is damaged", "add a personal key again: horizon key add")
            }),
        };
        let (enrolment, anchor) = match anchored {
            Ok(found) => found,
            Err(failure) => return self.fail(&failure),
        };
        self.show.send_if_modified(|v| {
            // While it is away every attempt stays "away", so that the reason remains visible.
            let changed = v.state == ControllerState::Idle;
            if changed {
                v.state = ControllerState::Connecting;
            }
            changed
        });
        let addresses = order(&self.elsewhere, &enrolment.controllers, self.known, self.silent);
        let (done, dialling) = oneshot::channel();
        let key = self.key.clone();
        tokio::spawn(async move { drop(done.send(connect(&key, &addresses, &anchor).await)) });
        self.dialling = Some(dialling);
        self.due = None;
    }

    fn dialled(&mut self, result: Dialled) {
        self.dialling = None;
        match result {
            Ok(channel) => {
                if let (Some(enrolment), Some(keyset)) = (&mut self.enrolment, &channel.keyset_raw)
                    && enrolment.renew(keyset)
                    && let Err(error) = self.store.set_enrolment(enrolment)
                {
                    tracing::warn!(%error, "the newer KeySet was not kept");
                }
                self.up(channel);
            }
            Err(error) => {
                self.elsewhere.clear();
                let failure = refusal::not_connected(error);
                self.away(&failure.message);
                self.fail(&failure);
            }
        }
        self.rest();
    }

    fn fail(&mut self, failure: &Failure) {
        for question in self.parked.drain(..) {
            if let Some(answer) = question.answer {
                drop(answer.send(Err(failure.clone())));
            }
        }
    }

    async fn enrol(&mut self, key: &PersonalKey, info: DeviceInfo) -> Result<Enrolment, Failure> {
        let anchor = Anchor::Root(key.root);
        let channel = connect(&self.key, &key.controllers, &anchor).await.map_err(refusal::not_connected)?;
        let name = info.name.clone();
        let message = to_controller::Message::EnrolDevice(proto::EnrolDevice {
            key_id: key.id.as_bytes().to_vec(),
            secret: key.secret.expose().to_vec(),
            name: info.name,
            platform: info.platform,
            os_version: info.os_version,
            app_version: info.app_version,
            hardware_fingerprint: info.hardware_fingerprint,
        });
        let answer = channel.requests.request(message).await.map_err(refusal::not_answered)?;
        let malformed = || Failure::failed("the controller's answer cannot be read", "update both sides");
        let from_controller::Message::DeviceEnrolled(enrolled) = answer else { return Err(malformed()) };
        let device = DeviceId::from_slice(&enrolled.device_id).ok_or_else(malformed)?;
        let user = convert::text(enrolled.user, "user").map_err(|_| malformed())?;
        let keyset = channel.keyset_raw.clone().ok_or_else(malformed)?;
        let enrolment = Enrolment::new(key.controllers.clone(), &keyset, device, name, user);
        self.store.set_enrolment(&enrolment).map_err(|e| Failure::failed(e.to_string(), ""))?;
        if let Some(old) = self.channel.take() {
            old.requests.close("another key was added");
        }
        // News for another organisation are none of this one's business.
        self.untold.clear();
        self.dialling = None;
        self.known = None;
        self.enrolment = Some(enrolment.clone());
        self.up(channel);
        Ok(enrolment)
    }

    fn up(&mut self, channel: Channel) {
        tracing::info!(controller = %channel.remote, "control channel connected");
        self.elsewhere.clear();
        self.backoff.reset();
        let address = Some(channel.remote);
        self.known = address;
        self.silent = None;
        self.show.send_replace(ControllerView {
            state: ControllerState::Connected,
            address,
            detail: String::new(),
        });
        introduce(channel.requests.clone());
        self.publish_wrapping_key(channel.requests.clone());
        self.channel = Some(channel);
        for message in std::mem::take(&mut self.untold) {
            self.take(Question { message, answer: None, again: false });
        }
        for question in std::mem::take(&mut self.parked) {
            self.take(question);
        }
    }

    /// Whether the controller is tried again and again.
    fn wanted(&self) -> bool {
        self.held || !self.untold.is_empty()
    }

    fn away(&mut self, detail: &str) {
        let state = if self.held { ControllerState::Away } else { ControllerState::Idle };
        self.show.send_replace(ControllerView { state, address: None, detail: detail.to_owned() });
        if self.wanted() {
            let pause = self.backoff.pause((self.random)());
            tracing::info!(detail, seconds = pause.as_secs_f32(), "the controller is away; trying again");
            self.due = Some(Instant::now() + pause);
        }
    }

    /// Sets the timer that fits: none while a held channel stands or an attempt is under way.
    fn rest(&mut self) {
        self.due = match (&self.channel, &self.dialling) {
            (Some(_), _) if self.held => None,
            (Some(_), _) => Some(Instant::now() + IDLE),
            (None, Some(_)) => None,
            (None, None) if self.wanted() => self.due.or_else(|| Some(Instant::now())),
            (None, None) => None,
        };
    }

    fn timeout(&mut self) {
        self.due = None;
        match self.channel.take() {
            Some(channel) => {
                channel.requests.close("idle");
                self.show.send_replace(ControllerView::default());
            }
            None if self.enrolment.is_some() => self.dial(),
            None => {}
        }
    }

    fn lost(&mut self) {
        self.silent = self.channel.as_ref().map(|c| c.remote);
        let reason = self.channel.take().and_then(|c| c.requests.close_reason());
        let reason = reason.unwrap_or_else(|| "the connection to the controller is gone".into());
        self.due = None;
        self.away(&reason);
    }

    async fn unasked(&mut self, message: from_controller::Message) {
        match message {
            from_controller::Message::SessionEnded(ended) => {
                let Some(session) = SessionId::from_slice(&ended.session) else { return };
                let reason = ended.reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
                // The receiver goes away only when the service stops.
                let _ = self.events.send(LinkEvent::Ended { session, reason }).await;
            }
            from_controller::Message::CheckSession(asked) => {
                let Some(session) = SessionId::from_slice(&asked.session) else { return };
                let _ = self.events.send(LinkEvent::Check(session)).await;
            }
            from_controller::Message::NewKey(new) => self.new_key(&new),
            from_controller::Message::KeyNotice(notice) => self.key_notice(notice).await,
            from_controller::Message::GoElsewhere(elsewhere) => {
                self.elsewhere = elsewhere.addresses.into_iter().take(MAX_ELSEWHERE).collect();
                if let Some(channel) = self.channel.take() {
                    channel.requests.close("going elsewhere, as asked");
                }
                self.show.send_replace(ControllerView::default());
                self.due = None;
                self.rest();
            }
            from_controller::Message::Keysets(_) => self.keep_keyset().await,
            other => tracing::debug!(?other, "not for a device"),
        }
    }
}

impl Keeper {
    /// Keeps the newest KeySet that the controller showed, and says so.
    async fn keep_keyset(&mut self) {
        let Some(requests) = self.channel.as_ref().map(|channel| channel.requests.clone()) else { return };
        let (keyset, raw) = requests.keyset();
        if let (Some(enrolment), Some(raw)) = (&mut self.enrolment, &raw)
            && enrolment.renew(raw)
            && let Err(error) = self.store.set_enrolment(enrolment)
        {
            tracing::warn!(%error, "the newer KeySet was not kept");
            return;
        }
        if let Err(error) = requests.keyset_held(keyset.version).await {
            tracing::debug!(%error, "the controller was not told which KeySet was kept");
        }
    }
}

/// Says what this device is and where it runs. A controller that knows nothing of it says nothing.
fn introduce(requests: Requests) {
    let info = device::describe(None);
    let hello = proto::DeviceHello {
        os_version: info.os_version,
        app_version: info.app_version,
        hardware_fingerprint: info.hardware_fingerprint,
    };
    tokio::spawn(async move {
        if let Err(error) = requests.notify(to_controller::Message::DeviceHello(hello)).await {
            tracing::debug!(%error, "the controller was not told what this device is");
        }
    });
}

/// Where to look for a controller, best first: where the last one sent this device, where it was well, where the enrolment says;
/// and last where one has just fallen silent.
fn order(
    elsewhere: &[String],
    enrolled: &[String],
    known: Option<SocketAddr>,
    silent: Option<SocketAddr>,
) -> Vec<String> {
    let known = known.map(|address| address.to_string());
    let silent = silent.map(|address| address.to_string());
    let mut order: Vec<String> = Vec::new();
    for address in elsewhere.iter().chain(&known).chain(enrolled) {
        if !order.contains(address) {
            order.push(address.clone());
        }
    }
    order.sort_by_key(|address| Some(address) == silent.as_ref());
    order
}

async fn connect(key: &SigningKey, addresses: &[String], anchor: &Anchor) -> Dialled {
    let hello = proto::Hello {
        software: version::SOFTWARE.into(),
        role: Role::Device.into(),
        features: vec![horizon_wire::keyset::FEATURE.to_owned()],
        ..proto::Hello::default()
    };
    let options = ConnectOptions {
        addresses,
        identity: key,
        anchor,
        hello,
        fwmark: Some(MARK),
        timeout: CONNECT_TIMEOUT,
    };
    horizon_channel::connect(options).await
}

/// Puts a question. When the controller is found to be gone it is put once more, to whoever can be reached then: what is
/// asked may be asked twice.
async fn put(requests: Requests, question: Question, commands: mpsc::WeakSender<Command>) {
    let result = tokio::select! {
        result = requests.request(question.message.clone()) => result,
        () = silence(&requests) => Err(RequestError::Gone),
    };
    let gone = matches!(result, Err(RequestError::Gone));
    if gone {
        requests.close("no answer");
    }
    match (question.answer, commands.upgrade()) {
        (answer, Some(commands)) if gone && !question.again => {
            let question = Question { message: question.message, answer, again: true };
            // The service stops otherwise.
            drop(commands.send(Command::Put(question)).await);
        }
        (Some(answer), _) => {
            drop(answer.send(result.map(|m| (m, requests.keyset().0)).map_err(refusal::not_answered)))
        }
        (None, _) => {
            if let Err(error) = result {
                tracing::info!(%error, "the controller did not take the news");
            }
        }
    }
}

/// Ends when the controller is found to be silent. One that lives lists servers at once, whatever else it is busy with.
async fn silence(requests: &Requests) {
    sleep(SUSPICION.0).await;
    let question = to_controller::Message::ListServers(proto::ListServers {});
    if let Ok(Ok(_) | Err(RequestError::Refused(_))) = timeout(SUSPICION.1, requests.request(question)).await
    {
        pending().await
    }
}

async fn unasked(channel: Option<&mut Channel>) -> Option<from_controller::Message> {
    match channel {
        Some(channel) => channel.inbox.recv().await,
        None => pending().await,
    }
}

async fn dialled(dialling: Option<&mut oneshot::Receiver<Dialled>>) -> Dialled {
    match dialling {
        Some(dialling) => match dialling.await {
            Ok(result) => result,
            // The attempt's task ends with an answer unless it panicked.
            Err(_) => Err(ConnectError::Unreachable(Vec::new())),
        },
        None => pending().await,
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_that_fell_silent_is_tried_last() {
        let texts = |list: &[&str]| list.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        let enrolled = texts(&["10.0.0.1:7443", "10.0.0.2:7443"]);
        let (first, second) = ("10.0.0.1:7443".parse().ok(), "10.0.0.2:7443".parse().ok());
        assert_eq!(order(&[], &enrolled, None, None), enrolled);
        assert_eq!(order(&[], &enrolled, second, None), texts(&["10.0.0.2:7443", "10.0.0.1:7443"]));
        assert_eq!(order(&[], &enrolled, first, first), texts(&["10.0.0.2:7443", "10.0.0.1:7443"]));
        let away = texts(&["10.0.0.9:7443"]);
        assert_eq!(order(&away, &enrolled, second, None)[0], "10.0.0.9:7443");
    }
}
