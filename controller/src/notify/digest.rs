//! From events to notifications. A storm of events is one message.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::store::{NewNotification, SecurityEvent, Urgency};

/// The most kinds of events that are told one by one at a look.
const MOST_SINGLE: usize = 3;
/// After so many notifications in an hour, what more comes is told together.
const MOST_AN_HOUR: u64 = 20;
/// How many examples of a kind are told.
const EXAMPLES: usize = 5;

/// How urgent an event is; `None` for those that are only recorded.
fn urgency(event: &SecurityEvent) -> Option<Urgency> {
    match event.severity.as_str() {
        "critical" => Some(Urgency::Critical),
        "high" => Some(Urgency::High),
        "medium" => Some(Urgency::Normal),
        "low" => Some(Urgency::Low),
        _ => None,
    }
}

/// Makes notifications of events that are at least so urgent. `recent`: how many were made in the last hour.
pub(super) fn compose(events: &[SecurityEvent], recent: u64, minimum: Urgency) -> Vec<NewNotification> {
    let mut kinds: BTreeMap<&str, (Urgency, Vec<&SecurityEvent>)> = BTreeMap::new();
    for event in events {
        let Some(urgency) = urgency(event).filter(|urgency| *urgency >= minimum) else { continue };
        let (worst, of_kind) = kinds.entry(&event.kind).or_insert((urgency, Vec::new()));
        *worst = urgency.max(*worst);
        of_kind.push(event);
    }
    let many = kinds.len() > MOST_SINGLE || recent >= MOST_AN_HOUR;
    // What is critical is told by itself whatever else happens.
    let (single, together): (Vec<_>, Vec<_>) =
        kinds.into_iter().partition(|(_, (urgency, _))| !many || *urgency == Urgency::Critical);
    let mut made: Vec<_> =
        single.into_iter().map(|(kind, (urgency, events))| one(kind, urgency, &events)).collect();
    if !together.is_empty() {
        made.push(digest(&together));
    }
    made
}

fn one(kind: &str, urgency: Urgency, events: &[&SecurityEvent]) -> NewNotification {
    let words = kind.replace('_', " ");
    let subject = match events {
        [event] => format!("Horizon: {words}: {}", short(&event.description)),
        more => format!("Horizon: {words}, {} times", more.len()),
    };
    let mut content = String::new();
    list(&mut content, events);
    NewNotification {
        kind: "security",
        urgency,
        key: kind.to_owned(),
        subject,
        content,
        occurrences: events.len() as u64,
        action_required: urgency >= Urgency::High,
    }
}

fn digest(kinds: &[(&str, (Urgency, Vec<&SecurityEvent>))]) -> NewNotification {
    let count: usize = kinds.iter().map(|(_, (_, events))| events.len()).sum();
    let urgency = kinds.iter().map(|(_, (urgency, _))| *urgency).max().unwrap_or(Urgency::Low);
    let mut content = String::new();
    for (kind, (_, events)) in kinds {
        // Writing to a string cannot fail.
        let _ = writeln!(content, "{}, {} times:", kind.replace('_', " "), events.len());
        list(&mut content, events);
        content.push('\n');
    }
    NewNotification {
        kind: "security",
        urgency,
        key: "digest".to_owned(),
        subject: format!("Horizon: {count} security events of {} kinds", kinds.len()),
        content,
        occurrences: count as u64,
        action_required: urgency >= Urgency::High,
    }
}

fn list(text: &mut String, events: &[&SecurityEvent]) {
    for event in events.iter().take(EXAMPLES) {
        let _ = writeln!(text, "{}  {}  {}", event.time, event.severity, clean(&event.description));
    }
    if events.len() > EXAMPLES {
        let _ = writeln!(text, "… and {} more: horizon-controller get events", events.len() - EXAMPLES);
    }
}

/// One line: what peers say ends up in descriptions.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn short(text: &str) -> String {
    const MOST: usize = 100;
    let text = clean(text);
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn event(kind: &str, severity: &str) -> SecurityEvent {
        SecurityEvent {
            id: 1,
            time: Timestamp::UNIX_EPOCH,
            kind: kind.into(),
            severity: severity.into(),
            component: "server".into(),
            source_id: None,
            source_ip: None,
            description: format!("{kind} happened\r\nBcc: everybody@example.org"),
            data: serde_json::Value::Null,
            handled_at: None,
            handled_by: None,
            notes: None,
        }
    }

    #[test]
    fn few_events_are_told_one_by_one() {
        let events = [event("clone", "critical"), event("locked_out", "medium"), event("noise", "info")];
        let made = compose(&events, 0, Urgency::Normal);
        let keys: Vec<_> = made.iter().map(|n| (n.key.as_str(), n.urgency, n.action_required)).collect();
        assert_eq!(keys, [("clone", Urgency::Critical, true), ("locked_out", Urgency::Normal, false)]);
        assert!(made.iter().all(|n| !n.subject.contains(['\r', '\n'])), "{made:?}");
        assert_eq!(compose(&events, 0, Urgency::Critical).len(), 1);
        assert_eq!(compose(&events[2..], 0, Urgency::Low), []);
    }

    #[test]
    fn a_storm_is_one_message() {
        let storm: Vec<_> = (0..500).map(|i| event(&format!("kind_{}", i % 40), "medium")).collect();
        let made = compose(&storm, 0, Urgency::Low);
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].occurrences, made[0].key.as_str()), (500, "digest"));
        // One kind many times is one, and names a few.
        let same: Vec<_> = (0..500).map(|_| event("brute_force", "high")).collect();
        let made = compose(&same, 0, Urgency::Low);
        assert_eq!((made.len(), made[0].occurrences), (1, 500));
        assert!(made[0].content.lines().count() == EXAMPLES + 1);
        // After many in an hour the rest comes together, but what is critical.
        let late = [event("a", "low"), event("b", "high"), event("c", "critical")];
        let keys: Vec<_> = compose(&late, MOST_AN_HOUR, Urgency::Low).into_iter().map(|n| n.key).collect();
        assert_eq!(keys, ["c", "digest"]);
    }
}
