//! What is out of the ordinary. Each detector keeps a baseline of what is usual for a subject, takes in one fact at a time,
//! and says what of it is not usual. What becomes of that, [`judge`] and [`respond`] decide: administrators have the last
//! word, and it holds for the subject from then on.

pub mod blocks;
pub mod capability;
pub mod country;
pub mod force;
pub mod heartbeat;
pub mod session;
pub mod stats;
#[cfg(test)]
mod traces;
pub mod travel;
pub mod volume;

use std::{collections::BTreeMap, fmt};

use horizon_crds::DetectionSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The detectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detector {
    /// Two places too far apart for the time between them.
    ImpossibleTravel,
    /// A country where the subject never was.
    NewCountry,
    /// Heartbeats that come otherwise than they did, or a clock that jumps.
    HeartbeatIrregularity,
    /// An appliance that can do something else than before.
    CapabilityChange,
    /// Many wrong secrets.
    BruteForce,
    /// Much that the payload rules refuse.
    MaliciousPayload,
    /// Sessions at other hours, more of them, or longer ones.
    SessionPattern,
    /// Far more traffic than usual.
    TrafficVolume,
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ImpossibleTravel,
        Self::NewCountry,
        Self::HeartbeatIrregularity,
        Self::CapabilityChange,
        Self::BruteForce,
        Self::MaliciousPayload,
        Self::SessionPattern,
        Self::TrafficVolume,
    ];

    /// Its name, which is also that of its events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImpossibleTravel => "impossible_travel",
            Self::NewCountry => "new_country",
            Self::HeartbeatIrregularity => "heartbeat_irregularity",
            Self::CapabilityChange => "capability_change",
            Self::BruteForce => "brute_force",
            Self::MaliciousPayload => "malicious_payload",
            Self::SessionPattern => "session_pattern",
            Self::TrafficVolume => "traffic_volume",
        }
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a detector found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Who found it.
    pub detector: Detector,
    /// How sure it is, in percent.
    pub confidence: u8,
    /// What exactly is unusual, as a word: findings of a subject with the same word are alike.
    pub feature: String,
    /// How large it is, where that can be said; 0 elsewhere. Of findings alike, the larger says more.
    pub magnitude: u32,
    /// What is usual.
    pub baseline: Value,
    /// What was seen.
    pub observed: Value,
    /// The same as a sentence, which follows the name of the subject.
    pub words: String,
}

/// What administrators said of earlier findings of a detector about a subject, by feature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feedback(pub BTreeMap<String, Verdict>);

/// What administrators said of findings with the same feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// They were no sign of anything; else they were.
    pub false_positive: bool,
    /// The largest that this was said of.
    pub magnitude: u32,
}

/// How much a verdict on another feature of the same subject moves the confidence.
const ELSEWHERE: i32 = 5;
/// The most that verdicts on other features move it.
const MOST_ELSEWHERE: i32 = 15;
/// How much a confirmed finding raises the confidence in one like it.
const CONFIRMED: i32 = 30;

/// What is left of a finding in the light of what administrators said: nothing where they called the same, or more of it, a
/// false positive; more confidence where they confirmed it. What they said of other features of the subject moves the
/// confidence a little. `None` below `minimum`, in percent.
pub fn judge(mut finding: Finding, feedback: &Feedback, minimum: u8) -> Option<Finding> {
    let mut shift = 0;
    for (feature, verdict) in &feedback.0 {
        if *feature != finding.feature {
            shift += if verdict.false_positive { -ELSEWHERE } else { ELSEWHERE };
        }
    }
    shift = shift.clamp(-MOST_ELSEWHERE, MOST_ELSEWHERE);
    match feedback.0.get(&finding.feature) {
        Some(verdict) if verdict.false_positive && finding.magnitude <= verdict.magnitude => return None,
        Some(verdict) if !verdict.false_positive => shift += CONFIRMED,
        _ => {}
    }
    let confidence = (i32::from(finding.confidence) + shift).clamp(0, 99);
    finding.confidence = u8::try_from(confidence).unwrap_or(0);
    (finding.confidence >= minimum).then_some(finding)
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// To be known.
    Low,
    /// To be looked at.
    Medium,
    /// To be looked at soon.
    High,
}

/// What follows from a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// How serious its event is.
    pub grade: Grade,
    /// Whether its subject is flagged as suspicious, where it is one that can be.
    pub flag: bool,
    /// Whether the address is blocked, where the subject is one.
    pub block: bool,
}

/// Decides what follows from a finding.
pub fn respond(finding: &Finding, policy: &DetectionSpec) -> Response {
    let grade = match (finding.detector, finding.confidence) {
        (Detector::ImpossibleTravel | Detector::BruteForce | Detector::TrafficVolume, 90..) => Grade::High,
        (_, 70..) => Grade::Medium,
        _ => Grade::Low,
    };
    Response {
        grade,
        flag: finding.confidence >= policy.flag_confidence,
        block: matches!(finding.detector, Detector::BruteForce | Detector::MaliciousPayload)
            && policy.blocking.enabled
            && finding.magnitude >= policy.blocking.failures,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn finding(confidence: u8, feature: &str, magnitude: u32) -> Finding {
        Finding {
            detector: Detector::TrafficVolume,
            confidence,
            feature: feature.into(),
            magnitude,
            baseline: json!(null),
            observed: json!(null),
            words: String::new(),
        }
    }

    fn said(of: &[(&str, bool, u32)]) -> Feedback {
        let verdict = |(feature, false_positive, magnitude): &(&str, bool, u32)| {
            ((*feature).to_owned(), Verdict { false_positive: *false_positive, magnitude: *magnitude })
        };
        Feedback(of.iter().map(verdict).collect())
    }

    #[test]
    fn what_administrators_said_decides() {
        let judged = |finding, feedback: &Feedback| judge(finding, feedback, 50).map(|f| f.confidence);
        let none = Feedback::default();
        assert_eq!(judged(finding(50, "a", 1), &none), Some(50));
        assert_eq!(judged(finding(49, "a", 1), &none), None);
        // A false positive holds for the same up to the same magnitude, and makes what is else found a little less sure.
        let wrong = said(&[("a", true, 3)]);
        assert_eq!(judged(finding(95, "a", 3), &wrong), None);
        assert_eq!(judged(finding(95, "a", 4), &wrong), Some(95));
        assert_eq!(judged(finding(60, "b", 1), &wrong), Some(55));
        assert_eq!(judged(finding(52, "b", 1), &wrong), None);
        // What was confirmed is reported sooner.
        let right = said(&[("a", false, 1)]);
        assert_eq!(judged(finding(45, "a", 9), &right), Some(75));
        assert_eq!(judged(finding(47, "b", 9), &right), Some(52));
        // However much was said of other things, it moves no more than that.
        let names: Vec<String> = (0..50).map(|i| format!("x{i}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), true, 1)).collect();
        assert_eq!(judged(finding(90, "a", 1), &said(&many)), Some(75));
    }

    #[test]
    fn responses_follow_the_policy() {
        let policy = DetectionSpec::default();
        let force = |magnitude, confidence| Finding {
            detector: Detector::BruteForce,
            ..finding(confidence, "address", magnitude)
        };
        let most = policy.blocking.failures;
        assert!(respond(&force(most, 95), &policy).block);
        assert!(!respond(&force(most - 1, 95), &policy).block);
        assert!(!respond(&finding(99, "volume", u32::MAX), &policy).block);
        assert_eq!(respond(&force(1, 95), &policy).grade, Grade::High);
        assert_eq!(respond(&force(1, 60), &policy).grade, Grade::Low);
        let mut off = policy.clone();
        off.blocking.enabled = false;
        assert!(!respond(&force(most, 95), &off).block);
        assert!(respond(&finding(policy.flag_confidence, "v", 1), &policy).flag);
        assert!(!respond(&finding(policy.flag_confidence - 1, "v", 1), &policy).flag);
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Detector::ALL.iter().map(|d| d.as_str()).collect();
        assert_eq!(names.len(), Detector::ALL.len());
    }
}
