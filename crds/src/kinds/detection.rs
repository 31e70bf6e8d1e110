//! What is out of the ordinary, and what is done about it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Cidr, Issues, TimeSpan};

/// What is out of the ordinary: from when on it is told, flagged, and answered by blocking an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct DetectionSpec {
    /// How sure a detector must be before what it found is recorded, in percent.
    #[schemars(range(min = 1, max = 99))]
    pub minimum_confidence: u8,
    /// How sure a detector must be before its subject, a server or a user, is flagged as suspicious, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub flag_confidence: u8,
    /// When an address is blocked without anybody asking.
    pub blocking: Blocking,
}

impl Default for DetectionSpec {
    fn default() -> Self {
        Self { minimum_confidence: 50, flag_confidence: 80, blocking: Blocking::default() }
    }
}

/// Blocks an address (IPv4) or /64 (IPv6) after very many wrong secrets, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Blocking {
    /// Whether it is done at all.
    pub enabled: bool,
    /// How many wrong secrets within the window block. From a third of that on they are told as brute force.
    #[schemars(range(min = 3, max = 100_000))]
    pub failures: u32,
    /// Within which time they count. Their number fades: half of it is gone after half of this.
    #[schemars(extend("x-horizon-min" = "10s", "x-horizon-max" = "24h"))]
    pub window: TimeSpan,
    /// For how long the address is blocked.
    #[schemars(extend("x-horizon-min" = "10s", "x-horizon-max" = "30d"))]
    pub duration: TimeSpan,
    /// Where an address is never blocked without anybody asking.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub spared: Vec<Cidr>,
}

impl Default for Blocking {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"];
        Self {
            enabled: true,
            failures: 60,
            window: TimeSpan::from_secs(600),
            duration: TimeSpan::from_secs(3600),
            spared: loopback.iter().filter_map(|range| range.parse().ok()).collect(),
        }
    }
}

impl DetectionSpec {
    pub(super) fn check(&self, issues: &mut Issues) {
        if self.flag_confidence < self.minimum_confidence {
            let message = format!(
                "flagConfidence is {}, below minimumConfidence, which is {}: nothing so unsure is recorded",
                self.flag_confidence, self.minimum_confidence
            );
            issues.add("detection.flagConfidence".to_owned(), message, "write at least minimumConfidence");
        }
    }
}
