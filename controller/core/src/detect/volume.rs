//! Traffic volume: far more than a person or a server usually moves in a window of time.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding, stats};

/// How many windows are remembered: six days of eight busy hours.
const MOST: usize = 288;
/// How many come before anything is said.
const LEARNING: usize = 36;
/// Less than this is never too much, in bytes.
const FLOOR: u64 = 256 << 20;
/// How many spreads above the usual is too much, in tenths.
const SPREADS: i64 = 60;
/// The least spread, in sixteenths of an octave: half of one.
const LEAST: i64 = 8;
/// How much of the highest so far it must be beyond as well, in sixteenths of an octave: the double.
const BEYOND: i64 = 16;
/// How many windows pass before it is said again, unless it doubles.
const QUIET: u32 = 36;

/// What a subject moved in the windows in which it moved anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Sixteenths of the binary logarithm of the bytes.
    windows: Vec<i64>,
    told: Option<i64>,
    quiet: u32,
}

/// Takes in what was moved in a window, in bytes.
pub fn observe(baseline: &mut Baseline, bytes: u64) -> Option<Finding> {
    if bytes == 0 {
        return None;
    }
    let volume = stats::log2_sixteenths(bytes);
    let learned = baseline.windows.len() >= LEARNING;
    let tenths = stats::tenths_above(volume, &baseline.windows, LEAST);
    let usual = stats::median(&baseline.windows);
    let mut sorted = baseline.windows.clone();
    sorted.sort_unstable();
    // All but the highest two hundredths: one wild window hides no other.
    let high = sorted.get(sorted.len().saturating_sub(1 + sorted.len() / 50)).copied();
    stats::push(&mut baseline.windows, volume, MOST);
    baseline.quiet = baseline.quiet.saturating_sub(1);
    if baseline.quiet == 0 {
        baseline.told = None;
    }
    let (usual, tenths, high) = (usual?, tenths?, high?);
    if !learned || bytes < FLOOR || tenths < SPREADS || volume < high + BEYOND {
        return None;
    }
    if baseline.told.is_some_and(|told| volume < told + 16) {
        return None;
    }
    (baseline.told, baseline.quiet) = (Some(volume), QUIET);
    let confidence = match tenths {
        ..80 => 60,
        80..120 => 75,
        120..200 => 85,
        _ => 92,
    };
    let shown =
        |sixteenths: i64| 1_u64.checked_shl(u32::try_from(sixteenths / 16).unwrap_or(0)).unwrap_or(u64::MAX);
    Some(Finding {
        detector: Detector::TrafficVolume,
        confidence,
        feature: "bytes".into(),
        magnitude: u32::try_from(bytes >> 20).unwrap_or(u32::MAX),
        baseline: json!({ "usualBytes": shown(usual), "windows": baseline.windows.len() - 1 }),
        observed: json!({ "bytes": bytes, "spreadsAbove": tenths / 10 }),
        words: format!(
            "moved {} MiB within ten minutes, usually about {} MiB",
            bytes >> 20,
            (shown(usual) >> 20).max(1)
        ),
    })
}
