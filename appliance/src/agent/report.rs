//! What the controller is told: what was reached, and what the sessions carried.

use std::{collections::HashMap, time::Duration};

use horizon_model::{ApplianceReport, Digest, EntryProblem, SessionId, SessionUsage, Violation};
use horizon_wire::convert::MAX_LIST;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Agent, REPORT};
use crate::{link::Held, outbox::MAX_VIOLATIONS, tunnel};

// Together with the violations, these fit the largest message that a controller takes.
/// The most sessions of one report; where there are more, reports take turns.
const MAX_REPORTED: usize = 1024;
/// The most bytes of one problem's message.
const MAX_MESSAGE_BYTES: usize = 256;
/// The most bytes of all problems of a report.
const MAX_PROBLEM_BYTES: usize = 96 * 1024;
/// What a problem takes on the wire besides its entry and its message, at most.
const PROBLEM_OVERHEAD: usize = 32;

/// What was told last, without what changes all the time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    generation: u64,
    problems: Vec<EntryProblem>,
    sessions: Vec<SessionUsage>,
    addresses: Vec<std::net::SocketAddr>,
}

impl Agent {
    pub(super) fn digest(&self) -> Option<Digest> {
        (self.numbered.generation > 0).then(|| self.numbered.entries.digest())
    }

    /// Has a report sent within `delay`.
    pub(super) fn report_within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.report_at = Some(self.report_at.map_or(at, |planned| planned.min(at)));
    }

    /// Reports at once, and of this session among others.
    pub(super) fn report_of(&mut self, session: SessionId) {
        // As if the last report had ended just before it.
        self.last_reported = session.0.as_u128().checked_sub(1).map(|n| SessionId(Uuid::from_u128(n)));
        self.report(true);
    }

    /// Reports if anything changed, or in any case.
    pub(super) fn report(&mut self, in_any_case: bool) {
        let snapshot = self.host.snapshot();
        let found = snapshot.map(|s| s.sessions).unwrap_or_default();
        let all: Vec<_> = found.iter().map(tunnel::usage).collect();
        self.publish_usage(&all);
        let turns = u32::try_from(all.len().div_ceil(MAX_REPORTED)).unwrap_or(u32::MAX).max(1);
        let sessions = turn(all, self.last_reported);
        self.last_reported = sessions.last().map(|s| s.session);
        let counted: HashMap<_, _> = found.iter().map(|s| (tunnel::model_id(s.id), s)).collect();
        let mut violations = Vec::new();
        for session in sessions.iter().map(|s| s.session) {
            for (kind, total) in counted.get(&session).into_iter().flat_map(|s| tunnel::violations(s)) {
                let told = self.violations.entry((session, kind)).or_default();
                // A session that was admitted anew counts anew.
                let count = total.checked_sub(*told).unwrap_or(total);
                if count > 0 && violations.len() < MAX_VIOLATIONS {
                    *told = total;
                    violations.push(Violation { session, kind, count });
                }
            }
        }
        let sessions_live = &self.desired.sessions;
        self.violations.retain(|(session, _), total| *total > 0 && sessions_live.contains_key(session));
        self.report_at = (!sessions_live.is_empty()).then(|| Instant::now() + REPORT / turns);
        let mut said = Reported {
            generation: self.numbered.generation,
            problems: fitting(self.problems()),
            sessions,
            addresses: self.advertised.clone(),
        };
        let report = ApplianceReport {
            generation: said.generation,
            digest: self.digest(),
            problems: said.problems.clone(),
            sessions: said.sessions.clone(),
            violations,
            addresses: said.addresses.clone(),
        };
        // The round-trip time changes all the time.
        said.sessions.iter_mut().for_each(|s| s.rtt_micros = 0);
        if in_any_case || !report.violations.is_empty() || said != self.reported {
            self.reported = said;
            self.outbox.report(report);
        }
    }

    fn publish_usage(&self, sessions: &[SessionUsage]) {
        let connected = sessions.iter().filter(|s| s.connected).count();
        self.held.send_if_modified(|held| {
            held.active_sessions = u32::try_from(connected).unwrap_or(u32::MAX);
            held.bytes_sent = sessions.iter().map(|s| s.bytes_sent).sum();
            held.bytes_received = sessions.iter().map(|s| s.bytes_received).sum();
            // Figures are for the next heartbeat; nobody needs to be woken for them.
            false
        });
    }

    /// Hands what is held to the channel.
    pub(super) fn publish(&self) {
        let digest = self.digest();
        self.held.send_if_modified(|held| {
            let now = Held {
                epoch: self.numbered.epoch,
                generation: self.numbered.generation,
                digest,
                addresses: self.advertised.clone(),
                heartbeat_seconds: self.desired.heartbeat_seconds,
                factors: self.factors.clone(),
                ..held.clone()
            };
            let changed = *held != now;
            *held = now;
            changed
        });
    }
}

/// As many as one report takes, beginning after the one that the last report ended with.
fn turn(mut all: Vec<SessionUsage>, last: Option<SessionId>) -> Vec<SessionUsage> {
    all.sort_unstable_by_key(|s| s.session);
    if all.len() > MAX_REPORTED {
        let start = all.partition_point(|s| Some(s.session) <= last);
        all.rotate_left(start);
        all.truncate(MAX_REPORTED);
    }
    all
}

/// As many problems as one report takes.
fn fitting(problems: Vec<EntryProblem>) -> Vec<EntryProblem> {
    let mut bytes = 0;
    let shortened = problems.into_iter().take(MAX_LIST).map(|mut problem| {
        problem.message.truncate(problem.message.floor_char_boundary(MAX_MESSAGE_BYTES));
        problem
    });
    let within = shortened.take_while(|problem| {
        bytes += problem.entry.as_str().len() + problem.message.len() + PROBLEM_OVERHEAD;
        bytes <= MAX_PROBLEM_BYTES
    });
    within.collect()
}

#[cfg(test)]
mod tests {
    use horizon_model::{EntryId, ProblemCode, ViolationKind};
    use horizon_wire::{Message, convert, frame::MAX_TO_CONTROLLER};
    use uuid::Uuid;

    use super::*;

    fn usage(id: u128) -> SessionUsage {
        SessionUsage {
            session: SessionId(Uuid::from_u128(id)),
            connected: true,
            remote: Some("[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap()),
            bytes_sent: u64::MAX,
            bytes_received: u64::MAX,
            rtt_micros: u64::MAX,
        }
    }

    #[test]
    fn every_session_has_its_turn() {
        let all: Vec<_> = (0..2500).rev().map(usage).collect();
        let (mut last, mut seen) = (None, std::collections::BTreeSet::new());
        for _ in 0..3 {
            let turn = turn(all.clone(), last);
            assert_eq!(turn.len(), MAX_REPORTED);
            last = turn.last().map(|s| s.session);
            seen.extend(turn.iter().map(|s| s.session));
        }
        assert_eq!(seen.len(), all.len());
        assert_eq!(turn(all[..3].to_vec(), last).len(), 3);
    }

    #[test]
    fn the_largest_report_is_one_that_a_controller_takes() {
        let problem = |message: &str| EntryProblem {
            entry: EntryId::new("x".repeat(EntryId::MAX_BYTES)).unwrap(),
            code: ProblemCode::UnknownFeature,
            message: message.to_owned(),
        };
        assert_eq!(fitting(vec![problem("short"); 500]).len(), 500);
        let session = usage(1).session;
        let violation = Violation { session, kind: ViolationKind::ForbiddenDestination, count: u64::MAX };
        let report = ApplianceReport {
            generation: u64::MAX,
            digest: Some(Digest([1; 32])),
            problems: fitting(vec![problem(&"\u{fffd}".repeat(1000)); 2000]),
            sessions: turn((0..10_000).map(usage).collect(), None),
            violations: vec![violation; MAX_VIOLATIONS],
            addresses: Vec::new(),
        };
        let length = convert::encode_report(&report).encoded_len();
        // The rest is for a few addresses and the frame.
        assert!(length + 2048 < MAX_TO_CONTROLLER, "{length}");
        assert!(convert::decode_report(convert::encode_report(&report)).is_ok());
    }
}
