//! Brute force: wrong secrets, many from one address, or many for one key.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding};

/// The most parties that are told apart.
const MOST: usize = 32;
/// From so many addresses at one key it is no mistake of its holder.
const MANY: usize = 5;
/// How many times the threshold makes it certain.
const CERTAIN: u32 = 3;

/// What somebody tried in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tries {
    /// How many times.
    pub count: u32,
    /// The other side: of an address, the key that was tried; of a key, the address.
    pub other: Option<String>,
}

/// When failures are brute force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// How many.
    pub failures: u32,
    /// Within how many milliseconds.
    pub window: i64,
}

/// The failures of an address or at a key. Their number fades: half of it is gone after half a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// In thousandths.
    level: u64,
    at: Option<Timestamp>,
    others: BTreeSet<String>,
    /// The level, in failures, that was last told.
    told: u32,
}

/// What is left of a level after a while: halved for each half window, evenly in between.
fn faded(level: u64, passed: i64, window: i64) -> u64 {
    let half = u64::try_from(window / 2).unwrap_or(1).max(1);
    let passed = u64::try_from(passed).unwrap_or(0);
    let halvings = passed / half;
    if halvings >= 63 {
        return 0;
    }
    let level = level >> halvings;
    level
        - u64::try_from(u128::from(level) * u128::from(passed % half) / u128::from(2 * half)).unwrap_or(level)
}

/// Takes in failures of an `address` or at a `key`, as `of` says.
pub fn observe(
    baseline: &mut Baseline,
    of: &str,
    tries: &Tries,
    threshold: Threshold,
    now: Timestamp,
) -> Option<Finding> {
    let passed = baseline.at.map_or(0, |at| now.as_millisecond().saturating_sub(at.as_millisecond()));
    baseline.level = faded(baseline.level, passed, threshold.window);
    if baseline.level == 0 {
        (baseline.told, baseline.others) = (0, BTreeSet::new());
    }
    baseline.at = Some(now);
    baseline.level = baseline.level.saturating_add(u64::from(tries.count) * 1000);
    if let Some(other) = &tries.other
        && baseline.others.len() < MOST
    {
        baseline.others.insert(other.clone());
    }
    let failures = u32::try_from(baseline.level / 1000).unwrap_or(u32::MAX);
    if failures < threshold.failures {
        // It calmed down: the next storm is told again.
        if failures < threshold.failures / 2 {
            baseline.told = 0;
        }
        return None;
    }
    // Told once, and again whenever it doubled.
    if baseline.told > 0 && failures < baseline.told.saturating_mul(2) {
        return None;
    }
    baseline.told = failures;
    let many = baseline.others.len() >= MANY;
    let certain = failures >= threshold.failures.saturating_mul(CERTAIN);
    let confidence = match (certain, many) {
        (true, _) => 95,
        (false, true) => 85,
        (false, false) => 70,
    };
    let minutes = threshold.window / 60_000;
    let others = match (of, baseline.others.len()) {
        (_, 0) => String::new(),
        ("key", 1) => ", from one address".to_owned(),
        (_, 1) => ", at one key".to_owned(),
        ("key", n) => format!(", from {n} addresses"),
        (_, n) => format!(", at {n} keys"),
    };
    Some(Finding {
        detector: Detector::BruteForce,
        confidence,
        feature: of.to_owned(),
        magnitude: failures,
        baseline: json!({ "failures": threshold.failures, "withinMilliseconds": threshold.window }),
        observed: json!({ "failures": failures, "others": baseline.others.len() }),
        words: format!("{failures} wrong secrets within about {minutes} min{others}"),
    })
}

/// Takes in bodies and texts of an address that the payload rules refused. They are counted as wrong secrets are.
pub fn observe_payloads(
    baseline: &mut Baseline,
    count: u32,
    threshold: Threshold,
    now: Timestamp,
) -> Option<Finding> {
    let tries = Tries { count, other: None };
    observe(baseline, "address", &tries, threshold, now).map(|finding| Finding {
        detector: Detector::MaliciousPayload,
        words: format!(
            "{} bodies or texts that are refused, within about {} min",
            finding.magnitude,
            threshold.window / 60_000
        ),
        ..finding
    })
}
