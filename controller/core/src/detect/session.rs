//! Session pattern: a person connects at hours when they never do, more often than ever, or for far longer, measured against
//! their own history alone.

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding, stats};

/// How many sessions a history has before anything is said.
const LEARNING: u32 = 20;
/// Over how many days they must lie.
const LEARNING_DAYS: usize = 7;
/// How many days are remembered.
const DAYS: usize = 60;
/// How many durations are remembered.
const DURATIONS: usize = 64;
/// The counts of hours are halved when they reach this sum, so that what is new weighs more.
const MOST_COUNTED: u32 = 400;
/// An hour is unusual when less than this part of the sessions began within an hour of it, in thousandths.
const RARE: u32 = 10;
/// How many spreads above the usual a number is unusual, in tenths.
const SPREADS: i64 = 60;
/// The same of how long a session lasts.
const LONGER: i64 = 35;
/// How many sessions more than usual a day must have at least.
const MORE: i64 = 6;

/// The sessions of a person so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    hours: Vec<u32>,
    sessions: u32,
    /// The number of the newest day, and how many sessions began in it.
    today: (i64, i64),
    /// How many began on each day before on which any did.
    days: Vec<i64>,
    /// How long they lasted, as sixteenths of the binary logarithm of their seconds.
    durations: Vec<i64>,
    /// The day for which many sessions were told.
    told: Option<i64>,
}

fn hour_and_day(at: Timestamp) -> (usize, i64) {
    let local = at.to_zoned(TimeZone::UTC);
    let hour = usize::try_from(local.hour()).unwrap_or(0) % 24;
    (hour, at.as_second().div_euclid(86_400))
}

/// Takes in the beginning of a session.
pub fn began(baseline: &mut Baseline, at: Timestamp) -> Option<Finding> {
    baseline.hours.resize(24, 0);
    let (hour, day) = hour_and_day(at);
    let learned = baseline.sessions >= LEARNING && baseline.days.len() >= LEARNING_DAYS;
    let all: u32 = baseline.hours.iter().sum();
    let near = |hour: usize| [hour + 23, hour, hour + 1].iter().map(|h| baseline.hours[h % 24]).sum::<u32>();
    let rare = learned && near(hour) * 1000 < all * RARE;

    if baseline.today.0 != day {
        if baseline.today.1 > 0 {
            stats::push(&mut baseline.days, baseline.today.1, DAYS);
        }
        baseline.today = (day, 0);
    }
    baseline.today.1 += 1;
    baseline.sessions = baseline.sessions.saturating_add(1);
    baseline.hours[hour] += 1;
    if all >= MOST_COUNTED {
        baseline.hours.iter_mut().for_each(|count| *count /= 2);
    }
    let count = baseline.today.1;
    let usual = stats::median(&baseline.days).unwrap_or(0);
    let many = learned
        && baseline.told != Some(day)
        && count >= usual + MORE
        && stats::tenths_above(count, &baseline.days, 1).is_some_and(|tenths| tenths >= SPREADS);
    let (confidence, feature) = match (rare, many) {
        (true, true) => (80, "hour+count".to_owned()),
        (false, true) => (60, "count".to_owned()),
        // Everybody is up late at times: said where it was confirmed before.
        (true, false) => (45, format!("hour{}", hour / 3)),
        (false, false) => return None,
    };
    if many {
        baseline.told = Some(day);
    }
    Some(Finding {
        detector: Detector::SessionPattern,
        confidence,
        feature,
        magnitude: if many { u32::try_from(count).unwrap_or(u32::MAX) } else { 0 },
        baseline: json!({ "sessions": baseline.sessions, "sessionsOfADay": usual }),
        observed: json!({ "hourUtc": hour, "sessionsToday": count }),
        words: match many {
            true => format!("began {count} sessions today, usually {usual}"),
            false => format!("began a session at {hour}:00 UTC, when they usually do not"),
        },
    })
}

/// Takes in the end of a session that lasted so many seconds.
pub fn ended(baseline: &mut Baseline, seconds: u64) -> Option<Finding> {
    let length = stats::log2_sixteenths(seconds);
    let usual = stats::median(&baseline.durations);
    // Half an octave: what varies less than that is not more exact.
    let tenths = stats::tenths_above(length, &baseline.durations, 8);
    let learned = baseline.sessions >= LEARNING && baseline.durations.len() >= LEARNING as usize;
    stats::push(&mut baseline.durations, length, DURATIONS);
    let (usual, tenths) = (usual?, tenths?);
    if !learned || tenths < LONGER || seconds < 4 * 3600 {
        return None;
    }
    let hours = seconds / 3600;
    Some(Finding {
        detector: Detector::SessionPattern,
        confidence: if tenths >= 2 * LONGER { 65 } else { 50 },
        feature: "duration".into(),
        magnitude: u32::try_from(hours).unwrap_or(u32::MAX),
        baseline: json!({ "log2SecondsSixteenths": usual }),
        observed: json!({ "seconds": seconds }),
        words: format!("had a session of {hours} h, far longer than usual"),
    })
}
