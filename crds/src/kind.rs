//! The kinds and the words people use for them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::check::nearest;

/// The API group of every kind.
pub const GROUP: &str = "horizon.dev";
/// The version of the group.
pub const VERSION: &str = "v1alpha1";
/// What a document's `apiVersion` says.
pub const API_VERSION: &str = "horizon.dev/v1alpha1";

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented at the types of the same names")]
pub enum KindName {
    Server,
    RegistrationKey,
    User,
    PersonalKey,
    AccessPolicy,
    VirtualNetwork,
    SecurityPolicy,
    Approval,
    Revocation,
    RotationPolicy,
    KeyRotation,
    DeviceDecision,
}

/// A word that names no kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no kind {given:?}; {remedy}")]
pub struct UnknownKind {
    /// The word.
    pub given: String,
    /// The nearest kind, or all of them.
    pub remedy: String,
}

impl KindName {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::Server,
        Self::RegistrationKey,
        Self::User,
        Self::PersonalKey,
        Self::AccessPolicy,
        Self::VirtualNetwork,
        Self::SecurityPolicy,
        Self::Approval,
        Self::Revocation,
        Self::RotationPolicy,
        Self::KeyRotation,
        Self::DeviceDecision,
    ];

    /// The kind as documents spell it: `AccessPolicy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::RegistrationKey => "RegistrationKey",
            Self::User => "User",
            Self::PersonalKey => "PersonalKey",
            Self::AccessPolicy => "AccessPolicy",
            Self::VirtualNetwork => "VirtualNetwork",
            Self::SecurityPolicy => "SecurityPolicy",
            Self::Approval => "Approval",
            Self::Revocation => "Revocation",
            Self::RotationPolicy => "RotationPolicy",
            Self::KeyRotation => "KeyRotation",
            Self::DeviceDecision => "DeviceDecision",
        }
    }

    /// The plural in lower case, as in `get accesspolicies`.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Server => "servers",
            Self::RegistrationKey => "registrationkeys",
            Self::User => "users",
            Self::PersonalKey => "personalkeys",
            Self::AccessPolicy => "accesspolicies",
            Self::VirtualNetwork => "virtualnetworks",
            Self::SecurityPolicy => "securitypolicies",
            Self::Approval => "approvals",
            Self::Revocation => "revocations",
            Self::RotationPolicy => "rotationpolicies",
            Self::KeyRotation => "keyrotations",
            Self::DeviceDecision => "devicedecisions",
        }
    }

    /// The short name, as in `get srv`.
    pub const fn short_name(self) -> &'static str {
        match self {
            Self::Server => "srv",
            Self::RegistrationKey => "regkey",
            Self::User => "usr",
            Self::PersonalKey => "pkey",
            Self::AccessPolicy => "apol",
            Self::VirtualNetwork => "vnet",
            Self::SecurityPolicy => "spol",
            Self::Approval => "appr",
            Self::Revocation => "revoc",
            Self::RotationPolicy => "rpol",
            Self::KeyRotation => "krot",
            Self::DeviceDecision => "devdec",
        }
    }

    /// Resolves the words of a command line, in any case: the kind, its plural or its short name.
    pub fn parse(word: &str) -> Result<Self, UnknownKind> {
        let lower = word.to_lowercase();
        let words = |kind: &Self| [kind.as_str(), kind.plural(), kind.short_name()];
        if let Some(kind) =
            Self::ALL.iter().find(|kind| words(kind).iter().any(|w| w.to_lowercase() == lower))
        {
            return Ok(*kind);
        }
        let remedy = match nearest(&lower, Self::ALL.iter().flat_map(words)) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("use one of {}", Self::ALL.map(Self::plural).join(", ")),
        };
        Err(UnknownKind { given: word.chars().take(60).collect(), remedy })
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for KindName {
    type Err = UnknownKind;
    /// Reads the exact spelling of documents; [`KindName::parse`] is the lenient way.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let remedy = match nearest(text, Self::ALL.map(Self::as_str)) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("use one of {}", Self::ALL.map(Self::as_str).join(", ")),
            };
            UnknownKind { given: text.chars().take(60).collect(), remedy }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_resolves() {
        for kind in KindName::ALL {
            for word in [kind.as_str(), kind.plural(), kind.short_name(), &kind.as_str().to_lowercase()] {
                assert_eq!(KindName::parse(word), Ok(kind));
            }
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
    }

    #[test]
    fn words_are_unique() {
        let mut words: Vec<_> = KindName::ALL
            .iter()
            .flat_map(|k| [k.as_str().to_lowercase(), k.plural().into(), k.short_name().into()])
            .collect();
        words.sort();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    #[test]
    fn a_misspelt_kind_is_suggested() {
        assert!(KindName::parse("severs").unwrap_err().to_string().contains("did you mean \"servers\"?"));
        assert!(
            "AccesPolicy"
                .parse::<KindName>()
                .unwrap_err()
                .to_string()
                .contains("did you mean \"AccessPolicy\"?")
        );
        assert!("server".parse::<KindName>().unwrap_err().remedy.contains("\"Server\""));
        assert!(KindName::parse("pods").unwrap_err().remedy.contains("virtualnetworks"));
    }
}
