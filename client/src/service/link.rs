//! The control channel: set up when somebody asks something, held while a session lives, set up again with growing and
//! jittered pauses when it is lost, and closed when it has been idle for a while.

use std::{future::pending, time::Duration};

use horizon_channel::{Channel, ConnectError, ConnectOptions, RequestError, Requests};
use horizon_client_core::{
    backoff::Backoff,
    failure::{Failure, FailureKind},
    plan::MARK,
    status::{ControllerState, ControllerView},
};
use horizon_model::{DeviceId, DeviceInfo, SessionId};
use horizon_wire::{
    key::SigningKey,
    keyset::{Anchor, KeySet},
    proto::{self, Role, from_controller, to_controller},
    token::PersonalKey,
    version,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
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
const QUEUE: usize = 32;
/// First and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The most addresses that a controller may name in its place.
const MAX_ELSEWHERE: usize = 16;

/// What the controller says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkEvent {
    /// A session is over.
    Ended {
        /// Which.
        session: SessionId,
        /// Why.
        reason: String,
    },
}

/// The answer to a question, with the keys that tickets are verified against.
pub(super) type Answered = Result<(from_controller::Message, KeySet), Failure>;

enum Command {
    Ask { message: to_controller::Message, answer: oneshot::Sender<Answered>, again: bool },
    Tell(to_controller::Message),
    Enrol { key: PersonalKey, info: DeviceInfo, answer: oneshot::Sender<Result<Enrolment, Failure>> },
    Hold(bool),
}

/// Speaks to the task that keeps the channel. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<ControllerView>,
}

impl Link {
    /// Starts the task.
    pub(super) fn start(
        store: Store,
        key: SigningKey,
        enrolment: Option<Enrolment>,
        events: mpsc::Sender<LinkEvent>,
        random: fn() -> f64,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (show, view) = watch::channel(ControllerView::default());
        let backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let keeper = Keeper {
            commands: commands.downgrade(),
            store,
            key,
            enrolment,
            events,
            show,
            random,
            backoff,
            channel: None,
            held: false,
            due: None,
            elsewhere: Vec::new(),
        };
        tokio::spawn(keeper.run(inbox));
        Self { commands, view }
    }

    /// Asks the controller.
    pub(super) async fn ask(&self, message: to_controller::Message) -> Answered {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Ask { message, answer, again: false }).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Tells the controller something that has no answer, if it can be reached.
    pub(super) async fn tell(&self, message: to_controller::Message) {
        // Only a service that stops loses it, and then the controller finds out by itself.
        let _ = self.send(Command::Tell(message)).await;
    }

    /// Exchanges a personal key for an enrolment of this device.
    pub(super) async fn enrol(&self, key: PersonalKey, info: DeviceInfo) -> Result<Enrolment, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Enrol { key, info, answer }).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Keeps the channel up from now on, or lets it go when it is idle.
    pub(super) async fn hold(&self, held: bool) {
        let _ = self.send(Command::Hold(held)).await;
    }

    /// How the channel stands.
    pub(super) fn view(&self) -> ControllerView {
        self.view.borrow().clone()
    }

    async fn send(&self, command: Command) -> Result<(), Failure> {
        self.commands.send(command).await.map_err(|_| stopping())
    }
}

fn stopping() -> Failure {
    Failure::failed("the service is stopping", "")
}

struct Keeper {
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
    held: bool,
    /// When to try again (without a channel) or to let go (with one).
    due: Option<Instant>,
    elsewhere: Vec<String>,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
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
                () = wait(due) => self.timeout().await,
            }
        }
        if let Some(channel) = &self.channel {
            channel.requests.close("the client stops");
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Ask { message, answer, again } => match self.ready().await {
                Ok((requests, keyset)) => {
                    let commands = self.commands.clone();
                    tokio::spawn(async move {
                        let result = tokio::select! {
                            result = requests.request(message.clone()) => result,
                            () = silence(&requests) => Err(RequestError::Gone),
                        };
                        if let (Err(RequestError::Gone), false, Some(commands)) =
                            (&result, again, commands.upgrade())
                        {
                            // Another controller, or the same one after a restart, may answer: what is asked may be asked
                            // twice. If none does, the failure names those that were tried.
                            requests.close("no answer");
                            drop(commands.send(Command::Ask { message, answer, again: true }).await);
                        } else {
                            drop(answer.send(result.map(|m| (m, keyset)).map_err(refusal::not_answered)));
                        }
                    });
                }
                Err(failure) => drop(answer.send(Err(failure))),
            },
            Command::Tell(message) => match self.ready().await {
                Ok((requests, _)) => drop(requests.notify(message).await),
                Err(failure) => tracing::info!(%failure, "the controller was not told"),
            },
            Command::Enrol { key, info, answer } => {
                let result = self.enrol(&key, info).await;
                self.rest();
                drop(answer.send(result));
            }
            Command::Hold(held) => {
                self.held = held;
                self.rest();
            }
        }
    }

    /// A channel that stands, set up now if need be.
    async fn ready(&mut self) -> Result<(Requests, KeySet), Failure> {
        if self.channel.as_ref().is_some_and(|c| c.requests.close_reason().is_some()) {
            self.channel = None;
        }
        if self.channel.is_none() {
            self.connect().await?;
        }
        self.rest();
        let channel = self.channel.as_ref().ok_or_else(stopping)?;
        Ok((channel.requests.clone(), channel.keyset.clone()))
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let Some(enrolment) = &self.enrolment else {
            return Err(Failure::new(
                FailureKind::Usage,
                "this device is not enrolled",
                "add the personal key you were given: horizon key add",
            ));
        };
        let anchor = enrolment.anchor().ok_or_else(|| {
            Failure::failed("the stored KeySet is damaged", "add a personal key again: horizon key add")
        })?;
        self.show.send_if_modified(|v| {
            // While it is away every attempt stays "away", so that the reason remains visible.
            let changed = v.state == ControllerState::Idle;
            if changed {
                v.state = ControllerState::Connecting;
            }
            changed
        });
        let mut addresses = self.elsewhere.clone();
        addresses.extend(enrolment.controllers.iter().cloned());
        match self.dial(&addresses, &anchor).await {
            Ok(channel) => {
                self.keep_keyset(&channel);
                self.up(channel);
                Ok(())
            }
            Err(error) => {
                let failure = refusal::not_connected(error);
                self.away(&failure.message);
                Err(failure)
            }
        }
    }

    async fn dial(&self, addresses: &[String], anchor: &Anchor) -> Result<Channel, ConnectError> {
        let hello = proto::Hello {
            software: version::SOFTWARE.into(),
            role: Role::Device.into(),
            ..proto::Hello::default()
        };
        horizon_channel::connect(ConnectOptions {
            addresses,
            identity: &self.key,
            anchor,
            hello,
            fwmark: Some(MARK),
            timeout: CONNECT_TIMEOUT,
        })
        .await
    }

    async fn enrol(&mut self, key: &PersonalKey, info: DeviceInfo) -> Result<Enrolment, Failure> {
        let channel =
            self.dial(&key.controllers, &Anchor::Root(key.root)).await.map_err(refusal::not_connected)?;
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
        let user = horizon_wire::convert::text(enrolled.user, "user").map_err(|_| malformed())?;
        let keyset = channel.keyset_raw.clone().ok_or_else(malformed)?;
        let enrolment = Enrolment::new(key.controllers.clone(), &keyset, device, name, user);
        self.store.set_enrolment(&enrolment).map_err(|e| Failure::failed(e.to_string(), ""))?;
        if let Some(old) = self.channel.take() {
            old.requests.close("another key was added");
        }
        self.enrolment = Some(enrolment.clone());
        self.up(channel);
        Ok(enrolment)
    }

    fn keep_keyset(&mut self, channel: &Channel) {
        if let (Some(enrolment), Some(keyset)) = (&mut self.enrolment, &channel.keyset_raw)
            && enrolment.renew(keyset)
            && let Err(error) = self.store.set_enrolment(enrolment)
        {
            tracing::warn!(%error, "the newer KeySet was not kept");
        }
    }

    fn up(&mut self, channel: Channel) {
        tracing::info!(controller = %channel.remote, "control channel connected");
        self.elsewhere.clear();
        self.backoff.reset();
        let address = Some(channel.remote);
        self.show.send_replace(ControllerView {
            state: ControllerState::Connected,
            address,
            detail: String::new(),
        });
        self.channel = Some(channel);
    }

    fn away(&mut self, detail: &str) {
        let state = if self.held { ControllerState::Away } else { ControllerState::Idle };
        self.show.send_replace(ControllerView { state, address: None, detail: detail.to_owned() });
        if self.held {
            let pause = self.backoff.pause((self.random)());
            tracing::info!(detail, seconds = pause.as_secs_f32(), "the controller is away; trying again");
            self.due = Some(Instant::now() + pause);
        }
    }

    /// Sets the timer that fits: none while a held channel stands.
    fn rest(&mut self) {
        self.due = match (self.channel.is_some(), self.held) {
            (true, true) => None,
            (true, false) => Some(Instant::now() + IDLE),
            (false, true) => self.due.or_else(|| Some(Instant::now())),
            (false, false) => None,
        };
    }

    async fn timeout(&mut self) {
        self.due = None;
        match &self.channel {
            Some(channel) => {
                channel.requests.close("idle");
                self.channel = None;
                self.show.send_replace(ControllerView::default());
            }
            // A failure is on view and tried again.
            None => drop(self.connect().await),
        }
    }

    fn lost(&mut self) {
        let reason = self.channel.take().and_then(|c| c.requests.close_reason());
        let reason = reason.unwrap_or_else(|| "the connection to the controller is gone".into());
        self.due = None;
        self.away(&reason);
    }

    async fn unasked(&mut self, message: from_controller::Message) {
        match message {
            from_controller::Message::SessionEnded(ended) => {
                let Some(session) = SessionId::from_slice(&ended.session) else { return };
                let reason = ended.reason.chars().filter(|c| !c.is_control()).take(512).collect();
                // The receiver goes away only when the service stops.
                let _ = self.events.send(LinkEvent::Ended { session, reason }).await;
            }
            from_controller::Message::GoElsewhere(elsewhere) => {
                self.elsewhere = elsewhere.addresses.into_iter().take(MAX_ELSEWHERE).collect();
                if let Some(channel) = self.channel.take() {
                    channel.requests.close("going elsewhere, as asked");
                }
                self.show.send_replace(ControllerView::default());
                self.rest();
            }
            other => tracing::debug!(?other, "not for a device"),
        }
    }
}

/// Ends when the controller is found to be silent. One that lives lists servers at once, whatever else it is busy with.
async fn silence(requests: &Requests) {
    sleep(SUSPICION.0).await;
    let question = to_controller::Message::ListServers(proto::ListServers {});
    match timeout(SUSPICION.1, requests.request(question)).await {
        Ok(Ok(_) | Err(RequestError::Refused(_))) => pending().await,
        Ok(Err(_)) | Err(_) => {}
    }
}

async fn unasked(channel: Option<&mut Channel>) -> Option<from_controller::Message> {
    match channel {
        Some(channel) => channel.inbox.recv().await,
        None => pending().await,
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
