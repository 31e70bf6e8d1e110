//! Scheduled tasks: the leader does what is due, and tries again what failed.

use std::{sync::Arc, time::Duration};

use horizon_controller_core::detect::{Detector, Finding, volume};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    channel::Desired,
    notify::Notify,
    replica::Leadership,
    stop::Stop,
    store::{
        LeaderEpoch, Look, NewEvent, NewNotification, Retention, Severity, Source, Store, StoreError,
        Subject, Summary, TaskSpec, Urgency,
    },
};

/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_secs(5);
/// The length of the windows in which traffic is counted.
const WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// How long after a window ended all reports about it have come.
const SETTLED: SignedDuration = SignedDuration::from_mins(2);
/// The most windows that are looked at when some were missed.
const MOST_WINDOWS: i64 = 6;
/// Up to where traffic was looked at.
const NOTE: &str = "traffic_window";
const DAY: SignedDuration = SignedDuration::from_hours(24);

pub(super) const UPKEEP: TaskSpec = TaskSpec {
    name: "upkeep",
    kind: "cleanup",
    description: "makes room in the database for what comes, and removes what is past its time",
    every: SignedDuration::from_mins(10),
    first: SignedDuration::from_secs(30),
    retries: 3,
};
pub(super) const TRAFFIC: TaskSpec = TaskSpec {
    name: "traffic-volume",
    kind: "security_scan",
    description: "looks whether users or servers moved far more than they usually do",
    every: WINDOW,
    first: SignedDuration::from_mins(1),
    retries: 3,
};
const REPORT: TaskSpec = TaskSpec {
    name: "security-report",
    kind: "report_generation",
    description: "tells administrators what happened in a day",
    every: DAY,
    first: DAY,
    retries: 5,
};
const TASKS: [TaskSpec; 3] = [UPKEEP, TRAFFIC, REPORT];

/// What tasks work with.
pub struct Schedule {
    /// The database.
    pub store: Store,
    /// The resources in force, for policies.
    pub desired: Arc<dyn Desired>,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// The ways to administrators.
    pub notify: Notify,
    /// For how long things are kept.
    pub retention: Retention,
}

/// Does what is due while this replica leads, until it is to stop.
pub async fn keep_schedule(schedule: Schedule, mut stop: Stop) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut declared = None;
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = look.tick() => {}
        }
        let Some(epoch) = schedule.leadership.leads() else { continue };
        if declared != Some(epoch) {
            match schedule.declare().await {
                Ok(()) => declared = Some(epoch),
                Err(error) => {
                    tracing::warn!(%error, "scheduled tasks could not be written down; trying again");
                    continue;
                }
            }
        }
        for task in &TASKS {
            tokio::select! {
                () = stop.requested() => return,
                () = schedule.attempt(task, epoch) => {}
            }
        }
    }
}

impl Schedule {
    async fn declare(&self) -> Result<(), StoreError> {
        for task in &TASKS {
            self.store.declare_task(task, Timestamp::now()).await?;
        }
        Ok(())
    }

    /// Does a task if it is due.
    pub(super) async fn attempt(&self, task: &TaskSpec, epoch: LeaderEpoch) {
        let now = Timestamp::now();
        match self.store.begin_task(task, epoch, now).await {
            Ok(true) => {}
            // Not due, or another replica leads.
            Ok(false) | Err(StoreError::Fenced) => return,
            Err(error) => {
                tracing::warn!(task = task.name, %error, "it could not be found out whether a task is due");
                return;
            }
        }
        let outcome = self.perform(task.name, epoch, now).await.map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            tracing::warn!(task = task.name, error, "a scheduled task failed");
        }
        let failed = outcome.as_ref().err().cloned();
        match self.store.finish_task(task, epoch, outcome, Timestamp::now()).await {
            Ok(true) => self.given_up(task, &failed.unwrap_or_default()).await,
            Ok(false) | Err(StoreError::Fenced) => {}
            Err(error) => {
                tracing::warn!(task = task.name, %error, "the outcome of a task could not be written down")
            }
        }
    }

    async fn given_up(&self, task: &TaskSpec, why: &str) {
        let event = NewEvent {
            kind: "task_failed",
            severity: Severity::Medium,
            source: Source::System,
            address: None,
            description: format!("the scheduled task {} failed {} times: {why}", task.name, task.retries + 1),
            data: serde_json::Value::Null,
        };
        if let Err(error) = self.store.record_event(&event, Timestamp::now()).await {
            tracing::error!(%error, "a security event could not be recorded: {}", event.description);
        }
    }

    async fn perform(&self, task: &str, epoch: LeaderEpoch, now: Timestamp) -> Result<String, StoreError> {
        match task {
            "upkeep" => {
                let done = self.store.maintain(now, &self.retention).await?;
                Ok(format!(
                    "{} partitions made, {} dropped, {} rows deleted, {} addresses forgotten",
                    done.made, done.dropped, done.deleted, done.forgotten
                ))
            }
            "traffic-volume" => self.traffic(epoch, now).await,
            _ => self.report(now).await,
        }
    }

    /// Looks at the windows that ended since the last time.
    async fn traffic(&self, epoch: LeaderEpoch, now: Timestamp) -> Result<String, StoreError> {
        let window = |number: i64| {
            Timestamp::from_second(number.saturating_mul(WINDOW.as_secs())).unwrap_or(Timestamp::MAX)
        };
        let end = now.checked_sub(SETTLED).unwrap_or(now).as_second().div_euclid(WINDOW.as_secs());
        let seen = self.store.note(NOTE).await?.and_then(|note| note.as_i64()).unwrap_or(end - 1);
        let (mut looked, mut found) = (0, 0);
        for number in seen.max(end - MOST_WINDOWS)..end {
            let (users, servers) = self.store.moved(window(number), window(number + 1)).await?;
            let users =
                users.into_iter().map(|u| (Subject::user(u.id, u.name.as_str()), u.namespace, u.bytes));
            let servers =
                servers.into_iter().map(|s| (Subject::server(s.id, s.name.as_str()), s.namespace, s.bytes));
            for (subject, namespace, bytes) in users.chain(servers) {
                let policy = self.desired.index().security_policy(&namespace).detection;
                let about = Look {
                    detector: Detector::TrafficVolume,
                    subject: &subject,
                    address: None,
                    policy: &policy,
                };
                let much =
                    |baseline: &mut volume::Baseline| -> Option<Finding> { volume::observe(baseline, bytes) };
                found += usize::from(self.store.take_in(about, much, now).await?.is_some());
                looked += 1;
            }
            // Should this leader end in between, the windows before this one are not looked at again.
            self.store.put_note(NOTE, Some(&(number + 1).into()), now, Some(epoch)).await?;
        }
        if seen >= end {
            self.store.put_note(NOTE, Some(&end.into()), now, Some(epoch)).await?;
        }
        Ok(format!("{looked} users and servers looked at, {found} out of the ordinary"))
    }

    async fn report(&self, now: Timestamp) -> Result<String, StoreError> {
        let from = now.checked_sub(DAY).unwrap_or(Timestamp::MIN);
        let summary = self.store.summarise(from, now).await?;
        let content = tell(&summary);
        self.store.keep_report(("Security of a day", "security"), (from, now), &content, now).await?;
        let notification = NewNotification {
            kind: "security",
            urgency: Urgency::Low,
            key: format!("report {}", now.as_second()),
            subject: format!(
                "Horizon: {} security events in a day, {} to be handled",
                summary.events.iter().map(|(_, _, count)| count).sum::<u64>(),
                summary.unhandled
            ),
            content,
            occurrences: 1,
            action_required: false,
        };
        self.notify.store(&self.store, &notification, now).await?;
        Ok("a report was made".to_owned())
    }
}

/// A summary as text.
fn tell(summary: &Summary) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a string cannot fail.
    if summary.events.is_empty() {
        text.push_str("No security events.\n");
    }
    for (severity, kind, count) in &summary.events {
        let _ = writeln!(text, "{count:>8}  {severity:<9} {kind}");
    }
    for (detector, count) in &summary.anomalies {
        let _ = writeln!(text, "{count:>8}  anomaly   {detector}");
    }
    let _ = writeln!(
        text,
        "\nBlocked: {}. Flags that stand: {}. Events to be handled: {}.",
        summary.blocked, summary.flags, summary.unhandled
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_told() {
        assert_eq!(
            tell(&Summary::default()),
            "No security events.\n\nBlocked: 0. Flags that stand: 0. Events to be handled: 0.\n"
        );
        let summary = Summary {
            events: vec![("high".into(), "clone".into(), 3)],
            anomalies: vec![("brute_force".into(), 2)],
            blocked: 1,
            flags: 4,
            unhandled: 5,
        };
        let text = tell(&summary);
        assert!(text.starts_with("       3  high      clone\n       2  anomaly   brute_force\n"), "{text}");
    }
}
