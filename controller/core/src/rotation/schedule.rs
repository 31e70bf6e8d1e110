//! When a key is rotated: a function of its policy, of when it was last rotated, and of a number that is the key's own.

use std::time::Duration;

use horizon_crds::{RotationPolicySpec, Weekday};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

/// The number of a key that says by how much of the jitter its rotation is put off: always the same for the same name (FNV-1a).
pub fn seed(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// When the next rotation begins of a key that began or was last rotated at `since`: after `every`, at the next time of day
/// and day of the week that the policy allows, put off by the key's share of the jitter.
pub fn next_run(policy: &RotationPolicySpec, since: Timestamp, seed: u64) -> Timestamp {
    let due = later(since, policy.every.get());
    let begin = if policy.at.is_none() && policy.weekdays.is_empty() { due } else { allowed(policy, due) };
    let share = match policy.jitter.as_millis() {
        0 => 0,
        most => seed % (most + 1),
    };
    later(begin, Duration::from_millis(share))
}

/// When the rotation that begins at `next` is announced.
pub fn notice_at(policy: &RotationPolicySpec, next: Timestamp) -> Timestamp {
    SignedDuration::try_from(policy.notice.get())
        .ok()
        .and_then(|ahead| next.checked_sub(ahead).ok())
        .unwrap_or(Timestamp::MIN)
}

/// The first moment from `due` on that the policy allows, within the eight days that follow.
fn allowed(policy: &RotationPolicySpec, due: Timestamp) -> Timestamp {
    let civil = due.to_zoned(TimeZone::UTC).datetime();
    let mut date = civil.date();
    // Without a time of day the first allowed day is entered at the time that was due, or at its beginning.
    let time = match policy.at {
        // Minutes of a day: both parts fit.
        Some(at) => civil::time((at.minutes() / 60) as i8, (at.minutes() % 60) as i8, 0, 0),
        None => civil::Time::midnight(),
    };
    for day in 0..=8 {
        let moment = date.to_datetime(time);
        let open = day == 0 && policy.at.is_none();
        if on_allowed_day(policy, date) && (open || moment >= civil) {
            return if open { due } else { to_timestamp(moment).unwrap_or(due) };
        }
        match date.tomorrow() {
            Ok(next) => date = next,
            Err(_) => return due,
        }
    }
    due
}

fn to_timestamp(moment: civil::DateTime) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(moment).ok()
}

fn on_allowed_day(policy: &RotationPolicySpec, date: civil::Date) -> bool {
    let day = match date.weekday() {
        civil::Weekday::Monday => Weekday::Monday,
        civil::Weekday::Tuesday => Weekday::Tuesday,
        civil::Weekday::Wednesday => Weekday::Wednesday,
        civil::Weekday::Thursday => Weekday::Thursday,
        civil::Weekday::Friday => Weekday::Friday,
        civil::Weekday::Saturday => Weekday::Saturday,
        civil::Weekday::Sunday => Weekday::Sunday,
    };
    policy.weekdays.is_empty() || policy.weekdays.contains(&day)
}

pub(super) fn later(from: Timestamp, span: Duration) -> Timestamp {
    from.saturating_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use horizon_crds::{Resource, TimeSpan};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::resource;

    fn policy(spec: &str) -> RotationPolicySpec {
        match resource("RotationPolicy", "p", &format!("target = \"personalKeys\"\n{spec}")) {
            Resource::RotationPolicy(document) => document.spec,
            _ => unreachable!(),
        }
    }

    #[test]
    fn rotations_begin_when_the_policy_says() {
        // 2026-01-01 is a Thursday.
        for (spec, since, next) in [
            ("every = \"30d\"\njitter = \"0s\"", "2026-01-01T10:00:00Z", "2026-01-31T10:00:00Z"),
            (
                "every = \"30d\"\njitter = \"0s\"\nat = \"02:30\"",
                "2026-01-01T10:00:00Z",
                "2026-02-01T02:30:00Z",
            ),
            (
                "every = \"30d\"\njitter = \"0s\"\nat = \"10:00\"",
                "2026-01-01T10:00:00Z",
                "2026-01-31T10:00:00Z",
            ),
            (
                "every = \"28d\"\njitter = \"0s\"\nweekdays = [\"thursday\"]",
                "2026-01-01T10:00:00Z",
                "2026-01-29T10:00:00Z",
            ),
            (
                "every = \"28d\"\njitter = \"0s\"\nweekdays = [\"wednesday\"]",
                "2026-01-01T10:00:00Z",
                "2026-02-04T00:00:00Z",
            ),
            (
                "every = \"28d\"\njitter = \"0s\"\nat = \"09:00\"\nweekdays = [\"thursday\"]",
                "2026-01-01T10:00:00Z",
                "2026-02-05T09:00:00Z",
            ),
        ] {
            let since = since.parse().unwrap();
            assert_eq!(next_run(&policy(spec), since, 7).to_string(), next, "{spec}");
        }
        assert_eq!(next_run(&policy("every = \"3650d\""), Timestamp::MAX, 1), Timestamp::MAX);
    }

    #[test]
    fn a_key_keeps_its_share_of_the_jitter() {
        assert_eq!(seed("ana-1"), seed("ana-1"));
        assert_ne!(seed("ana-1"), seed("ana-2"));
        assert_eq!(seed(""), 0xcbf2_9ce4_8422_2325, "the offset basis of FNV-1a");
        assert_eq!(seed("a"), 0xaf63_dc4c_8601_ec8c, "a published vector of FNV-1a");
        let policy = policy("every = \"30d\"\njitter = \"4h\"");
        let since = "2026-01-01T00:00:00Z".parse().unwrap();
        let starts: std::collections::BTreeSet<_> =
            (0..100).map(|n| next_run(&policy, since, seed(&format!("key-{n}")))).collect();
        assert!(starts.len() > 90, "they do not all begin at once");
    }

    proptest! {
        #[test]
        fn the_next_run_is_late_enough_bounded_and_allowed(
            every_days in 7u16..400, at in proptest::option::of(0u16..1440), days in 0usize..7, jitter in 0u32..600_000,
            since in 0i64..4_000_000_000_000, seed: u64,
        ) {
            const ALL: [Weekday; 7] = [
                Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday,
                Weekday::Saturday, Weekday::Sunday,
            ];
            let mut policy = policy("every = \"30d\"");
            policy.every = TimeSpan::from_days(every_days);
            policy.jitter = TimeSpan::from_secs(jitter);
            policy.at = at.map(|m| format!("{:02}:{:02}", m / 60, m % 60).parse().unwrap());
            policy.weekdays = ALL[..days].to_vec();
            let since = Timestamp::from_millisecond(since).unwrap();
            let next = next_run(&policy, since, seed);
            let due = later(since, policy.every.get());
            prop_assert!(next >= due);
            prop_assert!(next <= later(later(due, Duration::from_secs(8 * 86400)), policy.jitter.get()));
            prop_assert_eq!(next, next_run(&policy, since, seed));
            prop_assert!(notice_at(&policy, next) <= next);
            policy.jitter = TimeSpan::from_secs(0);
            let begin = next_run(&policy, since, seed).to_zoned(TimeZone::UTC).datetime();
            prop_assert!(on_allowed_day(&policy, begin.date()));
            if let Some(at) = policy.at {
                prop_assert_eq!(begin.hour() as u16 * 60 + begin.minute() as u16, at.minutes());
            }
        }
    }
}
