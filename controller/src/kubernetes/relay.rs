//! The store's security events as events of Kubernetes, so that an administrator who looks with kubectl alone sees them.

use std::{sync::Arc, time::Duration};

use horizon_controller_core::{Index, status::Notice};
use jiff::{SignedDuration, Timestamp};

use super::{Events, Objects, objects::Key};
use crate::{
    engine::Engine,
    stop::Stop,
    store::{EventFilter, SecurityEvent, Store},
};

/// How often the store is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// What a new leader tells again, because the one before it may not have come to it.
const LOOK_BACK: SignedDuration = SignedDuration::from_secs(15);
/// The most events that are told at a time; when there are more, the store has the rest.
const MOST: u32 = 50;

/// Publishes the security events that are recorded while this replica leads, until it is to stop.
pub async fn relay_security_events(
    store: Store,
    engine: Engine,
    events: Events,
    objects: Objects,
    leads: impl Fn() -> bool + Send + Sync + 'static,
    mut stop: Stop,
) {
    let mut told: Option<i64> = None;
    loop {
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if !leads() {
            told = None;
            continue;
        }
        let recorded =
            match store.list_security_events(&EventFilter { limit: MOST, ..EventFilter::default() }).await {
                Ok(recorded) => recorded,
                Err(error) => {
                    tracing::warn!(%error, "security events could not be read; trying again");
                    continue;
                }
            };
        let index = engine.index();
        for event in news(&recorded, told, Timestamp::now()) {
            publish(event, &index, &events, &objects);
        }
        told = Some(recorded.first().map_or(0, |newest| newest.id));
    }
}

/// The events to be told, oldest first: those after the last that was told; for a new leader, those of the last moments.
fn news(recorded: &[SecurityEvent], told: Option<i64>, now: Timestamp) -> Vec<&SecurityEvent> {
    let is_new = |event: &&SecurityEvent| match told {
        Some(told) => event.id > told,
        None => event.time.saturating_add(LOOK_BACK).is_ok_and(|until| until >= now),
    };
    recorded.iter().filter(is_new).rev().collect()
}

fn publish(event: &SecurityEvent, index: &Arc<Index>, events: &Events, objects: &Objects) {
    let notice = Notice {
        reason: camel(&event.kind),
        warning: event.severity != "info",
        message: event.description.clone(),
    };
    let resource = event.source_id.as_deref().and_then(|id| id.parse().ok()).and_then(|id| index.by_uid(id));
    let object = resource.and_then(|resource| {
        let key = Key::from(&resource.id());
        objects.get(&key).map(|entry| (key, entry.uid))
    });
    match object {
        Some((key, uid)) => events.publish(&key, uid, notice),
        None => events.publish_own(notice),
    }
}

/// A word as the store has it in the form of a reason: `challenge_failed` as `ChallengeFailed`.
fn camel(word: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    word.split('_').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: i64, time: Timestamp) -> SecurityEvent {
        SecurityEvent {
            id,
            time,
            kind: "challenge_failed".into(),
            severity: "high".into(),
            component: "server".into(),
            source_id: None,
            source_ip: None,
            description: String::new(),
            data: serde_json::Value::Null,
            handled_at: None,
            handled_by: None,
            notes: None,
        }
    }

    #[test]
    fn each_event_is_told_once_by_a_leader_and_recent_ones_by_the_next() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        let recorded = [event(9, ago(1)), event(8, ago(10)), event(7, ago(100))];
        let ids = |told| news(&recorded, told, now).iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(
            (ids(Some(8)), ids(Some(9)), ids(Some(0)), ids(None)),
            (vec![9], vec![], vec![7, 8, 9], vec![8, 9])
        );
        assert_eq!(camel(&recorded[0].kind), "ChallengeFailed");
    }
}
