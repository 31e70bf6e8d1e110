//! What an appliance reports: the state it applied, its sessions, and what their peers did that they may not.

use std::{collections::HashMap, time::Duration};

use horizon_model::{ApplianceReport, EntryId, EntryProblem, SessionId, Violation, ViolationKind};
use horizon_wire::{convert, proto};
use tokio::time::Instant;

use super::{
    appliance::{AGAIN, Appliance, internal, may_pass},
    refusals,
    wire::End,
};
use crate::{
    live::Hint,
    store::{AppliedState, NewEvent, Severity, Source, StoreError},
};

/// The time over which violations are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// The most sessions whose violations are counted at once; what goes beyond is counted anew.
const MAX_COUNTED: usize = 4096;

/// Violations of sessions since their minute began.
#[derive(Debug, Default)]
pub(super) struct ViolationCounts(HashMap<(SessionId, ViolationKind), Counted>);

#[derive(Debug)]
struct Counted {
    since: Instant,
    count: u64,
    told: bool,
}

impl ViolationCounts {
    /// Counts, and says whether this is the moment to raise an event: once a minute at most, when there were more than
    /// `threshold`.
    fn add(&mut self, violation: &Violation, threshold: u64, now: Instant) -> bool {
        if self.0.len() >= MAX_COUNTED {
            self.0.clear();
        }
        let fresh = || Counted { since: now, count: 0, told: false };
        let counted = self.0.entry((violation.session, violation.kind)).or_insert_with(fresh);
        if now.duration_since(counted.since) >= MINUTE {
            *counted = fresh();
        }
        counted.count = counted.count.saturating_add(violation.count);
        let tell = counted.count > threshold && !counted.told;
        counted.told |= tell;
        tell
    }
}

impl Appliance<'_> {
    /// Takes in a report.
    pub(super) async fn report(&mut self, report: proto::Report, request: u64) -> Result<(), End> {
        let report = convert::decode_report(report)
            .map_err(|e| End::refuse(request, refusals::malformed(&e.to_string())))?;
        self.take_in(report).await.map_err(internal(request))
    }

    /// Takes in a report, now or later.
    pub(super) async fn take_in(&mut self, report: ApplianceReport) -> Result<(), StoreError> {
        // What the appliance cannot have yet is not believed.
        if report.generation > self.newest_known() {
            return Ok(());
        }
        match self.note(&report).await {
            Err(error) if may_pass(&error) => {
                tracing::warn!(server = %self.server, %error, "a report could not be taken in; it is tried again");
                self.unsaved = Some(report);
                self.again = Some(Instant::now() + AGAIN);
                Ok(())
            }
            noted => noted,
        }
    }

    async fn note(&mut self, report: &ApplianceReport) -> Result<(), StoreError> {
        let epoch = self.sent.as_ref().map_or(0, |sent| sent.epoch);
        let applied = AppliedState {
            epoch,
            generation: report.generation,
            digest: report.digest,
            problems: report.problems.clone(),
            addresses: report.addresses.clone(),
        };
        let news = self.context.store.note_applied(self.server, self.seat.lease, &applied).await?;
        let noted = self
            .context
            .store
            .note_usage(self.server, self.seat.lease, &report.sessions, self.context.now())
            .await?;
        if noted.unknown > 0 {
            tracing::debug!(server = %self.server, sessions = noted.unknown, "a report names sessions that have ended");
        }
        self.raise(&report.violations).await;
        let current = self.sent.as_ref().is_some_and(|sent| {
            sent.generation == report.generation && Some(sent.entries.digest()) == report.digest
        });
        if current {
            // Of a state that it does not hold yet, or holds from before a backup was restored, nothing follows.
            self.note_behavior(&noted);
            self.looks.reported();
            self.context.metrics.apply_seconds.observe(self.sent_at.elapsed().as_secs_f64());
            self.has_applied(&report.problems).await?;
        }
        if news {
            self.context.live.publish(Hint::StatusDirty(self.server.0));
        }
        Ok(())
    }

    /// The newest generation that the appliance can have.
    fn newest_known(&self) -> u64 {
        self.sent.as_ref().map_or(self.held.1, |sent| sent.generation.max(self.held.1))
    }

    /// The appliance has applied the newest state: its sessions are active, except those it has problems with.
    pub(super) async fn has_applied(&mut self, problems: &[EntryProblem]) -> Result<(), StoreError> {
        let refused: HashMap<&EntryId, &str> =
            problems.iter().map(|p| (&p.entry, p.message.as_str())).collect();
        let why = |id: &SessionId| refused.get(&EntryId::session(*id)).map(|why| (*id, (*why).to_owned()));
        let refused: Vec<_> = self.sent_sessions.iter().filter_map(why).collect();
        let (context, held) = (self.context, &self.sent_sessions);
        let applied = context
            .store
            .note_sessions_applied(self.server, self.seat.lease, held, &refused, context.now())
            .await?;
        context.metrics.sessions_granted.inc_by(applied.activated.len() as u64);
        for ended in &applied.failed {
            context.tell_end(ended);
        }
        if !applied.activated.is_empty() || !applied.failed.is_empty() {
            context.sessions_moved();
        }
        self.confirmed = true;
        self.tell_applied();
        self.start_probe();
        Ok(())
    }

    /// Lets go of sessions that ended before they were in any state that was sent: no report will tell of them.
    pub(super) async fn release_unsent(&mut self) -> Result<(), StoreError> {
        if !self.confirmed {
            return Ok(());
        }
        let (context, held) = (self.context, &self.sent_sessions);
        let applied = context
            .store
            .note_sessions_applied(self.server, self.seat.lease, held, &[], context.now())
            .await?;
        if applied.released {
            self.tell_applied();
        }
        Ok(())
    }

    fn tell_applied(&self) {
        let generation = self.sent.as_ref().map_or(0, |sent| sent.generation);
        self.context.live.publish(Hint::StateApplied { server: self.server, generation });
    }

    /// Raises an event for what cannot happen by mistake at once, and for the rest when it is too much.
    async fn raise(&mut self, violations: &[Violation]) {
        if violations.is_empty() {
            return;
        }
        let index = self.context.desired.index();
        let tolerated = index.security_policy(&self.namespace).anomaly_thresholds.violations_per_minute;
        // What is said about sessions that are not its own says something about the appliance alone.
        for violation in violations.iter().filter(|v| self.sent_sessions.contains(&v.session)) {
            let (threshold, severity) = match violation.kind {
                ViolationKind::SpoofedSource | ViolationKind::WrongNetwork => (0, Severity::High),
                ViolationKind::Malformed => (tolerated.into(), Severity::Medium),
                ViolationKind::ForbiddenDestination | ViolationKind::UnsolicitedInbound => {
                    (tolerated.into(), Severity::Low)
                }
            };
            if !self.violations.add(violation, threshold, Instant::now()) {
                continue;
            }
            let event = NewEvent {
                kind: violation.kind.as_str(),
                severity,
                source: Source::Session(violation.session),
                address: None,
                description: format!(
                    "session {} on server {}: {} packets were dropped ({})",
                    violation.session,
                    self.name,
                    violation.count,
                    violation.kind.as_str()
                ),
                data: serde_json::json!({ "count": violation.count }),
            };
            self.context.record(&event).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn events_are_raised_once_a_minute_above_the_threshold() {
        let mut counts = ViolationCounts::default();
        let violation = Violation {
            session: SessionId(Uuid::from_u128(1)),
            kind: ViolationKind::ForbiddenDestination,
            count: 60,
        };
        let start = Instant::now();
        assert!(!counts.add(&violation, 100, start));
        assert!(counts.add(&violation, 100, start));
        assert!(!counts.add(&violation, 100, start));
        assert!(!counts.add(&violation, 100, start + MINUTE));
        assert!(counts.add(&violation, 100, start + MINUTE));
        assert!(counts.add(&Violation { kind: ViolationKind::SpoofedSource, ..violation }, 0, start));
    }
}
