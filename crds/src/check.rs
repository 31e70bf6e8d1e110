//! What is wrong with a spec, in terms of its fields.

use std::fmt::{self, Display};

use serde::Serialize;

/// A fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Issue {
    /// The field's path from the document's top, like `spec.destinations[0].ports`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.field, self.message, self.remedy)
    }
}

/// Collects the issues of a spec.
#[derive(Debug, Default)]
pub struct Issues(Vec<Issue>);

impl Issues {
    /// What was found.
    pub fn into_vec(self) -> Vec<Issue> {
        self.0
    }

    /// Notes that `field` (a path below `spec`) is wrong.
    pub(crate) fn add(&mut self, field: impl Display, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Issue { field: format!("spec.{field}"), message: message.into(), remedy: remedy.into() });
    }
}

/// The candidate most like `given`, when one is near enough to have been meant.
pub(crate) fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST_COMPARED: usize = 128;
    if given.len() > LONGEST_COMPARED {
        return None;
    }
    let lowered = given.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST_COMPARED && candidate.len().abs_diff(given.len()) <= 4)
        .map(|candidate| (strsim::damerau_levenshtein(&lowered, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().min(12) / 4)
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?` for the nearest candidate, otherwise the given advice.
pub(crate) fn did_you_mean<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    otherwise: impl FnOnce() -> String,
) -> String {
    match nearest(given, candidates) {
        Some(candidate) => format!("did you mean \"{candidate}\"?"),
        None => otherwise(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let kinds = ["Server", "User", "AccessPolicy", "VirtualNetwork"];
        assert_eq!(nearest("Sever", kinds), Some("Server"));
        assert_eq!(nearest("accesspolicy", kinds), Some("AccessPolicy"));
        assert_eq!(nearest("VirtaulNetwork", kinds), Some("VirtualNetwork"));
        assert_eq!(nearest("Pod", kinds), None);
        assert_eq!(nearest("", kinds), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), kinds), None);
    }
}
