//! What is taken from strangers: a part of `SecurityPolicy`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Issues, Text};

/// The fewest characters of a pattern, besides its `*`.
const MIN_PATTERN: usize = 3;

/// What the controller takes: bodies of the REST API, what appliances and devices say of themselves, and names. Whoever sends it
/// belongs to no namespace yet: the policies of the namespace `default` hold. What goes through tunnels is not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct PayloadRules {
    /// The largest body of a request, in bytes.
    #[schemars(range(min = 1024, max = 65_536))]
    pub max_bytes: u32,
    /// How deeply values may lie in one another.
    #[schemars(range(min = 2, max = 32))]
    pub max_depth: u8,
    /// How many values a body may have, names of fields included.
    #[schemars(range(min = 64, max = 65_536))]
    pub max_values: u32,
    /// The longest text, in characters.
    #[schemars(range(min = 256, max = 65_536))]
    pub max_text: u32,
    /// Whether texts with control characters are refused. Tabs and line breaks are none; what changes the direction of writing
    /// is one.
    pub refuse_control_characters: bool,
    /// What no text may contain, in any case of letters; `*` stands for anything.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub patterns: Vec<Text<128>>,
    /// After how many such bodies or texts, within the window of `detection.blocking`, their address is blocked as that says.
    #[schemars(range(min = 3, max = 100_000))]
    pub block_after: u32,
}

impl Default for PayloadRules {
    fn default() -> Self {
        // What leads out of a text where somebody forgot to keep it one, and has no place in a name or a reason.
        let patterns = ["<script", "javascript:", "<!entity", "<?php", "${jndi:", "../../"];
        Self {
            max_bytes: 65_536,
            max_depth: 16,
            max_values: 4096,
            max_text: 8192,
            refuse_control_characters: true,
            patterns: patterns.map(Text::lossy).to_vec(),
            block_after: 20,
        }
    }
}

impl PayloadRules {
    pub(super) fn check(&self, issues: &mut Issues) {
        for (i, pattern) in self.patterns.iter().enumerate() {
            if pattern.as_str().chars().filter(|c| *c != '*').count() < MIN_PATTERN {
                let message = format!("'{pattern}' would match almost everything");
                let remedy = format!("write at least {MIN_PATTERN} characters besides *");
                issues.add(format!("payload.patterns[{i}]"), message, remedy);
            }
        }
    }
}
