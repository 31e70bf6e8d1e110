//! Capability change: an appliance says that it can do something it could not before, or no longer can, or changes its mind
//! all the time.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding};

/// Over how long changes are counted.
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// So many changes within that are too many.
const FLAPPING: usize = 5;
/// The most changes that are remembered.
const MOST: usize = 16;

/// What an appliance says when it attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it can do.
    pub capabilities: BTreeSet<String>,
    /// What its declaration lets it do.
    pub declared: BTreeSet<String>,
    /// The version of its program.
    pub version: String,
}

/// What an appliance said last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    last: Option<(BTreeSet<String>, String)>,
    changes: Vec<Timestamp>,
}

/// Takes in a report.
pub fn observe(baseline: &mut Baseline, report: &Report, now: Timestamp) -> Option<Finding> {
    let now_said = (report.capabilities.clone(), report.version.clone());
    let (before, version) = baseline.last.replace(now_said)?;
    if before == report.capabilities {
        return None;
    }
    baseline.changes.retain(|at| now.duration_since(*at) <= DAY);
    if baseline.changes.len() >= MOST {
        baseline.changes.remove(0);
    }
    baseline.changes.push(now);
    let added: Vec<&str> = report.capabilities.difference(&before).map(String::as_str).collect();
    let lost: Vec<&str> = before.difference(&report.capabilities).map(String::as_str).collect();
    let undeclared: Vec<&str> = added.iter().copied().filter(|c| !report.declared.contains(*c)).collect();
    let flaps = baseline.changes.len() >= FLAPPING;
    // A newer program explains that it can do more, and what it no longer can; not what nobody declared.
    let updated = if version == report.version { 0 } else { 25 };
    let confidence = match (flaps, undeclared.is_empty(), added.is_empty()) {
        (true, ..) => 80,
        (false, false, _) => 90,
        (false, true, false) => 60 - updated,
        (false, true, true) => 55 - updated,
    };
    let list = |words: &[&str]| words.join("+");
    let feature = if flaps { "flapping".to_owned() } else { format!("+{}-{}", list(&added), list(&lost)) };
    let mut words = Vec::new();
    if !added.is_empty() {
        words.push(format!("says that it can do {} now", added.join(", ")));
    }
    if !lost.is_empty() {
        words.push(format!("no longer can do {}", lost.join(", ")));
    }
    if !undeclared.is_empty() {
        words.push(format!("nobody declared {}", undeclared.join(", ")));
    }
    if flaps {
        words.push(format!("it changed {} times within a day", baseline.changes.len()));
    }
    Some(Finding {
        detector: Detector::CapabilityChange,
        confidence,
        feature,
        magnitude: 0,
        baseline: json!({ "capabilities": before, "version": version }),
        observed: json!({ "capabilities": report.capabilities, "version": report.version }),
        words: words.join("; "),
    })
}
