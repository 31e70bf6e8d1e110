//! The service's way to the controller: questions, news, and how the control channel stands.

use horizon_client_core::{
    failure::Failure,
    status::{ControllerView, KeyNotice},
};
use horizon_model::{DeviceInfo, SessionId};
use horizon_wire::{
    key::SigningKey,
    keyset::KeySet,
    proto::{from_controller, to_controller},
    token::{Handover, PersonalKey},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    keeper::Keeper,
    store::{Enrolment, Store},
};

/// Commands that may wait for the task that keeps the channel.
const QUEUE: usize = 32;

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
    /// The controller wants to know of a session at once.
    Check(SessionId),
    /// The user should know something about the personal key.
    Key(KeyNotice),
}

/// The answer to a question, with the keys that tickets are verified against.
pub(super) type Answered = Result<(from_controller::Message, KeySet), Failure>;

/// A question, and who waits for its answer; nobody does when it only tells something.
pub(super) struct Question {
    pub(super) message: to_controller::Message,
    pub(super) answer: Option<oneshot::Sender<Answered>>,
    /// Whether it was put once before, in vain.
    pub(super) again: bool,
}

/// What the task is asked to do.
pub(super) enum Command {
    Put(Question),
    Enrol {
        key: PersonalKey,
        info: DeviceInfo,
        answer: oneshot::Sender<Result<Enrolment, Failure>>,
    },
    Claim {
        hand: Handover,
        code: String,
        answer: oneshot::Sender<Result<PersonalKey, Failure>>,
    },
    /// Tells something that is worth nothing later: without a channel it is left out.
    Mention(to_controller::Message),
    Hold(bool),
}

/// Speaks to the task that keeps the channel. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<ControllerView>,
}

impl Link {
    /// Starts the task, which ends a moment after the last clone of the link is dropped. `random` gives numbers in 0.0..1.0.
    pub(super) fn start(
        store: Store,
        key: SigningKey,
        enrolment: Option<Enrolment>,
        events: mpsc::Sender<LinkEvent>,
        random: fn() -> f64,
    ) -> (Self, JoinHandle<()>) {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (show, view) = watch::channel(ControllerView::default());
        let keeper = Keeper::new(commands.downgrade(), store, key, enrolment, events, show, random);
        let task = tokio::spawn(keeper.run(inbox));
        (Self { commands, view }, task)
    }

    /// Asks the controller.
    pub(super) async fn ask(&self, message: to_controller::Message) -> Answered {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Put(Question { message, answer: Some(answer), again: false })).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Tells the controller something; later, if it cannot be reached now.
    pub(super) async fn tell(&self, message: to_controller::Message) {
        // Only a service that stops loses it, and then the controller finds out by itself.
        let _ = self.send(Command::Put(Question { message, answer: None, again: false })).await;
    }

    /// Tells the controller something that is worth nothing later, if it can be reached now.
    pub(super) async fn mention(&self, message: to_controller::Message) {
        let _ = self.send(Command::Mention(message)).await;
    }

    /// Exchanges a personal key for an enrolment of this device.
    pub(super) async fn enrol(&self, key: PersonalKey, info: DeviceInfo) -> Result<Enrolment, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Enrol { key, info, answer }).await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Fetches a personal key that is handed over with a code.
    pub(super) async fn claim(&self, hand: Handover, code: String) -> Result<PersonalKey, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Claim { hand, code, answer }).await?;
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
