//! What the agent has to tell the controller, merged while no controller listens.

use std::sync::{Mutex, MutexGuard, PoisonError};

use horizon_model::{ApplianceReport, Violation};
use horizon_wire::{
    convert,
    proto::{self, to_controller::Message},
};
use tokio::sync::Notify;

/// The most violations that are kept apart, and that one report carries.
pub(crate) const MAX_VIOLATIONS: usize = 512;
/// The most answers to dial-back probes that wait.
const MAX_SEEN: usize = 16;

/// From the agent to the channel. A newer report takes the place of one that was not sent; violations add up.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    reconnect: bool,
    resync: Option<String>,
    report: Option<ApplianceReport>,
    seen: Vec<[u8; 16]>,
}

impl Outbox {
    /// Asks for the whole state.
    pub(crate) fn resync(&self, reason: String) {
        self.lock().resync = Some(reason);
        self.filled.notify_one();
    }

    /// Has the channel connect anew, which brings the organisation's newest keys.
    pub(crate) fn reconnect(&self) {
        self.lock().reconnect = true;
        self.filled.notify_one();
    }

    /// Tells what was reached.
    pub(crate) fn report(&self, mut report: ApplianceReport) {
        let mut waiting = self.lock();
        if let Some(unsent) = waiting.report.take() {
            add(&mut report.violations, unsent.violations);
        }
        waiting.report = Some(report);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Tells that a probe arrived.
    pub(crate) fn seen(&self, nonce: [u8; 16]) {
        let mut waiting = self.lock();
        if waiting.seen.len() < MAX_SEEN {
            waiting.seen.push(nonce);
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Waits until there is something to tell.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes everything, in the order in which it is to be sent; `None` when the channel is to connect anew first.
    pub(crate) fn take(&self) -> Option<Vec<Message>> {
        let mut waiting = self.lock();
        if std::mem::take(&mut waiting.reconnect) {
            return None;
        }
        let waiting = std::mem::take(&mut *waiting);
        let resync = waiting.resync.map(|reason| Message::Resync(proto::Resync { reason }));
        let report = waiting.report.map(|r| Message::Report(convert::encode_report(&r)));
        let seen = waiting.seen.into_iter();
        let seen = seen.map(|n| Message::DialBackSeen(proto::DialBackSeen { nonce: n.to_vec() }));
        Some(seen.chain(resync).chain(report).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(list: &mut Vec<Violation>, others: Vec<Violation>) {
    for other in others {
        if let Some(known) = list.iter_mut().find(|v| v.session == other.session && v.kind == other.kind) {
            known.count = known.count.saturating_add(other.count);
        } else if list.len() < MAX_VIOLATIONS {
            list.push(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use horizon_model::{SessionId, ViolationKind};
    use uuid::Uuid;

    use super::*;

    fn report(generation: u64, count: u64) -> ApplianceReport {
        let session = SessionId(Uuid::from_u128(1));
        let violations = vec![Violation { session, kind: ViolationKind::SpoofedSource, count }];
        ApplianceReport { generation, violations, ..ApplianceReport::default() }
    }

    #[test]
    fn reports_are_replaced_and_violations_add_up() {
        let outbox = Outbox::default();
        outbox.report(report(1, 2));
        outbox.seen([7; 16]);
        outbox.report(report(2, 3));
        outbox.resync("because".into());
        outbox.reconnect();
        assert_eq!(outbox.take(), None);
        let sent = outbox.take().unwrap();
        assert!(matches!(&sent[0], Message::DialBackSeen(s) if s.nonce == [7; 16]));
        assert!(matches!(&sent[1], Message::Resync(r) if r.reason == "because"));
        let Message::Report(report) = &sent[2] else { panic!("{sent:?}") };
        assert_eq!((report.generation, report.violations[0].count), (2, 5));
        assert_eq!(outbox.take(), Some(vec![]));
    }
}
