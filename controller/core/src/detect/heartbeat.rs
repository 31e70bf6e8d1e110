//! Heartbeat irregularity: beats that come at other times than asked for, or a clock that jumps. A machine that is suspended,
//! copied or tampered with shows here before it shows elsewhere. The baseline lives as long as the connection.

use jiff::Timestamp;
use serde_json::json;

use super::{Detector, Finding, stats};

/// How many beats are remembered.
const MOST: usize = 64;
/// How many come before anything is said.
const LEARNING: usize = 12;
/// How many of the newest are looked at together.
const RECENT: usize = 6;
/// How far the newest may be from what was asked for, in thousandths of the interval, however regular they were before.
const TOLERATED: i64 = 350;
/// How many spreads that may be, in tenths.
const SPREADS: i64 = 80;
/// How far a clock may jump, in milliseconds.
const CLOCK: i64 = 30_000;
/// How many beats pass before the same is said again.
const QUIET: usize = MOST;

/// One beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// When it came.
    pub at: Timestamp,
    /// What time its sender says it is.
    pub sender: Timestamp,
    /// How often they were asked for, in milliseconds.
    pub interval: i64,
}

/// The beats of a connection so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    last: Option<Timestamp>,
    /// How far each was off, in thousandths of the interval.
    off: Vec<i64>,
    /// How far the sender's clock is ahead, in milliseconds.
    ahead: Vec<i64>,
    quiet: usize,
}

/// Takes in a beat.
pub fn observe(baseline: &mut Baseline, beat: Beat) -> Option<Finding> {
    let ahead = beat.sender.duration_since(beat.at).as_millis();
    let ahead = i64::try_from(ahead).unwrap_or(i64::MAX);
    let usual_ahead = stats::median(&baseline.ahead);
    stats::push(&mut baseline.ahead, ahead, MOST);
    let last = baseline.last.replace(beat.at)?;
    let interval = beat.interval.max(1);
    let between = i64::try_from(beat.at.duration_since(last).as_millis()).unwrap_or(i64::MAX);
    stats::push(&mut baseline.off, between.saturating_sub(interval).saturating_mul(1000) / interval, MOST);
    if baseline.quiet > 0 {
        baseline.quiet -= 1;
        return None;
    }
    if baseline.off.len() < LEARNING {
        return None;
    }
    let found = jumped(usual_ahead, ahead).or_else(|| irregular(&baseline.off));
    if found.is_some() {
        baseline.quiet = QUIET;
    }
    found
}

fn jumped(usual: Option<i64>, ahead: i64) -> Option<Finding> {
    let usual = usual?;
    let jump = ahead.saturating_sub(usual).saturating_abs();
    if jump <= CLOCK {
        return None;
    }
    let seconds = jump / 1000;
    Some(Finding {
        detector: Detector::HeartbeatIrregularity,
        confidence: if seconds > 3600 { 85 } else { 65 },
        feature: "clock".into(),
        magnitude: u32::try_from(seconds).unwrap_or(u32::MAX),
        baseline: json!({ "aheadMilliseconds": usual }),
        observed: json!({ "aheadMilliseconds": ahead }),
        words: format!("its clock jumped by {seconds} s"),
    })
}

fn irregular(off: &[i64]) -> Option<Finding> {
    let (before, recent) = off.split_at(off.len().saturating_sub(RECENT));
    let (middle, spread) = stats::median_and_deviation(before)?;
    let distances: Vec<i64> = recent.iter().map(|o| (o - middle).abs()).collect();
    // One late beat moves no median: several in a row must be off.
    let typical = stats::median(&distances)?;
    if typical <= TOLERATED || typical.saturating_mul(10) <= spread.saturating_mul(SPREADS) {
        return None;
    }
    Some(Finding {
        detector: Detector::HeartbeatIrregularity,
        confidence: if typical > 3 * TOLERATED { 80 } else { 60 },
        feature: "interval".into(),
        magnitude: u32::try_from(typical).unwrap_or(u32::MAX),
        baseline: json!({ "offPerMille": middle, "spreadPerMille": spread }),
        observed: json!({ "offPerMille": recent }),
        words: format!("its heartbeats come up to {} % off their time, several in a row", typical / 10),
    })
}
