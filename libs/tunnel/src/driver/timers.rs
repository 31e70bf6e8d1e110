//! Deadlines in order, at most one for each subject.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use horizon_tunnel_core::ids::Slot;

/// Whom a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A connection, by its handle.
    Link(usize),
    /// A session's next attempt to dial.
    Dial(Slot),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    ordered: BTreeSet<(Instant, Subject)>,
    current: HashMap<Subject, Instant>,
}

impl Timers {
    /// Sets, moves or removes the deadline of a subject.
    pub(super) fn set(&mut self, subject: Subject, deadline: Option<Instant>) {
        let before = match deadline {
            Some(deadline) => self.current.insert(subject, deadline),
            None => self.current.remove(&subject),
        };
        if before == deadline {
            return;
        }
        if let Some(before) = before {
            self.ordered.remove(&(before, subject));
        }
        if let Some(deadline) = deadline {
            self.ordered.insert((deadline, subject));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.ordered.first().map(|(at, _)| *at)
    }

    /// Takes one subject whose deadline has passed.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Subject> {
        let (at, subject) = *self.ordered.first()?;
        if at > now {
            return None;
        }
        self.ordered.pop_first();
        self.current.remove(&subject);
        Some(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn fires_each_deadline_once_and_in_order() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(Subject::Link(1), Some(at(5)));
        timers.set(Subject::Link(2), Some(at(3)));
        timers.set(Subject::Link(1), Some(at(2)));
        timers.set(Subject::Link(2), Some(at(8)));
        timers.set(Subject::Link(3), Some(at(1)));
        timers.set(Subject::Link(3), None);
        assert_eq!(timers.pop(at(1)), None);
        assert_eq!(timers.pop(at(4)), Some(Subject::Link(1)));
        assert_eq!(timers.pop(at(7)), None);
        assert_eq!(timers.pop(at(8)), Some(Subject::Link(2)));
        assert_eq!(timers.pop(at(100)), None);
        assert_eq!(timers.next(), None);
    }
}
