//! What the controller is told: what was reached, and what the sessions carried.

use std::time::Duration;

use horizon_model::{ApplianceReport, Digest, EntryProblem, SessionUsage, Violation};
use horizon_wire::convert::MAX_LIST;
use tokio::time::Instant;

use super::{Agent, REPORT};
use crate::{link::Held, tunnel};

/// The most sessions of one report; so many fit one message with room to spare.
const MAX_REPORTED: usize = 2048;

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

    /// Reports if anything changed, or in any case.
    pub(super) fn report(&mut self, in_any_case: bool) {
        let snapshot = self.host.snapshot();
        let found = snapshot.map(|s| s.sessions).unwrap_or_default();
        let sessions: Vec<_> = found.iter().take(MAX_REPORTED).map(tunnel::usage).collect();
        let mut violations = Vec::new();
        for session in &sessions {
            let Some(snapshot) = found.iter().find(|s| s.id == tunnel::session_id(session.session)) else {
                continue;
            };
            for (kind, total) in tunnel::violations(snapshot) {
                let told = self.violations.entry((session.session, kind)).or_default();
                // A session that was admitted anew counts anew.
                let count = total.checked_sub(*told).unwrap_or(total);
                *told = total;
                if count > 0 && violations.len() < MAX_LIST {
                    violations.push(Violation { session: session.session, kind, count });
                }
            }
        }
        let sessions_live = &self.desired.sessions;
        self.violations.retain(|(session, _), total| *total > 0 && sessions_live.contains_key(session));
        self.report_at = (!sessions_live.is_empty()).then(|| Instant::now() + REPORT);
        self.publish_usage(&sessions);
        let mut problems = self.problems();
        problems.truncate(MAX_LIST);
        let mut said = Reported {
            generation: self.numbered.generation,
            problems,
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
