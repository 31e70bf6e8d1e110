//! New country: a subject connects from a country where it never was.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding};

/// How often a subject must have been seen before a country can be new to it.
const LEARNING: u32 = 3;
/// After how long a country is forgotten, in days.
const FORGOTTEN_DAYS: i64 = 400;
/// The most countries that are remembered.
const MOST: usize = 64;
/// A subject that was in so many countries travels, and another one says little.
const TRAVELLER: usize = 6;

/// Where a subject was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    countries: BTreeMap<String, Timestamp>,
    seen: u32,
}

/// Takes in the country a subject is in, as its ISO 3166-1 code.
pub fn observe(baseline: &mut Baseline, country: &str, now: Timestamp) -> Option<Finding> {
    let oldest = now.checked_sub(SignedDuration::from_hours(24 * FORGOTTEN_DAYS)).unwrap_or(Timestamp::MIN);
    baseline.countries.retain(|_, last| *last >= oldest);
    let (seen, before) = (baseline.seen, baseline.countries.len());
    baseline.seen = seen.saturating_add(1);
    let usual: Vec<String> = baseline.countries.keys().cloned().collect();
    if before < MOST || baseline.countries.contains_key(country) {
        let known = baseline.countries.insert(country.to_owned(), now).is_some();
        if known || seen < LEARNING || before == 0 {
            return None;
        }
    }
    let settled = match seen {
        ..10 => 60,
        10..100 => 70,
        _ => 80,
    };
    let travels = if before >= TRAVELLER { 40 } else { 5 * u8::try_from(before - 1).unwrap_or(5) };
    Some(Finding {
        detector: Detector::NewCountry,
        confidence: settled - travels.min(settled),
        feature: country.to_owned(),
        magnitude: 0,
        baseline: json!({ "countries": usual, "seen": seen }),
        observed: json!({ "country": country }),
        words: format!("was seen in {country} for the first time; before in {}", usual.join(", ")),
    })
}
