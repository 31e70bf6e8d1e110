//! Questions to other replicas whether an appliance that is connected there lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;
use uuid::Uuid;

/// Who wants to know whether an appliance lives.
#[derive(Debug)]
pub(super) enum Asker {
    /// A task of this replica.
    Here(oneshot::Sender<bool>),
    /// Another replica, under the number of its question.
    There(Uuid),
}

impl Asker {
    /// Whether both are one question.
    pub(super) fn is_the_same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::There(a), Self::There(b)) if a == b)
    }
}

type Waiting = Mutex<HashMap<Uuid, oneshot::Sender<bool>>>;

/// The questions that wait for an answer: one at most for each appliance that arrives.
#[derive(Clone, Debug, Default)]
pub(super) struct Questions(Arc<Waiting>);

/// A question that waits; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) number: Uuid,
    pub(super) answer: oneshot::Receiver<bool>,
    all: Questions,
}

impl Questions {
    /// Puts a question under a number.
    pub(super) fn put(&self, number: Uuid) -> Question {
        let (reply, answer) = oneshot::channel();
        self.with(|waiting| waiting.insert(number, reply));
        Question { number, answer, all: self.clone() }
    }

    /// Takes an answer in. That of a question nobody waits for is none.
    pub(super) fn answered(&self, number: Uuid, proved: bool) {
        if let Some(reply) = self.with(|waiting| waiting.remove(&number)) {
            // Who asked may have gone just now.
            let _ = reply.send(proved);
        }
    }

    /// Each change of the map is one step, so it is whole whatever thread panics.
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<Uuid, oneshot::Sender<bool>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.all.with(|waiting| waiting.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_find_their_questions_once() {
        let questions = Questions::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (mut first, second) = (questions.put(a), questions.put(b));
        questions.answered(Uuid::from_u128(3), true);
        questions.answered(a, true);
        questions.answered(a, false);
        assert_eq!(first.answer.try_recv(), Ok(true));
        drop(second);
        assert!(questions.with(|waiting| waiting.is_empty()));
    }
}
