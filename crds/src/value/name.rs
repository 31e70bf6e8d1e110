//! Names: of resources, of domains, of people's mailboxes.

use std::{fmt, str::FromStr};

use super::{InvalidValue, quoted, text_value};

/// The name of a resource, a namespace or a group: an RFC 1123 label of 1 to [`Name::MAX_BYTES`] characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// The longest name.
    pub const MAX_BYTES: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=Name::MAX_BYTES).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The nearest label to a text somebody meant as one.
fn nearest_label(text: &str) -> Option<String> {
    let mut label: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(Name::MAX_BYTES)
        .collect();
    while label.contains("--") {
        label = label.replace("--", "-");
    }
    let label = label.trim_matches('-').to_owned();
    is_label(&label).then_some(label)
}

impl FromStr for Name {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_label(text) {
            return Ok(Self(text.into()));
        }
        let remedy =
            "use 1 to 63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit";
        Err(InvalidValue::new(
            format!("{} is not a name", quoted(text)),
            match nearest_label(text) {
                Some(label) => format!("{remedy}, for example {label:?}"),
                None => remedy.to_owned(),
            },
        ))
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidValue;
    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

text_value!(Name, "Name", {
    "type": "string",
    "minLength": 1,
    "maxLength": 63,
    "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "x-horizon-format": "name",
});

/// Which servers a policy speaks of: one by name, or `*` for every server of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerSelector {
    /// Every server of the namespace, also those added later.
    Any,
    /// The server of this name.
    Named(Name),
}

impl ServerSelector {
    /// Whether the server of this name is meant.
    pub fn matches(&self, server: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(name) => name.as_str() == server,
        }
    }
}

impl fmt::Display for ServerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Named(name) => name.fmt(f),
        }
    }
}

impl FromStr for ServerSelector {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::Any);
        }
        text.parse().map(Self::Named).map_err(|error: InvalidValue| {
            InvalidValue::new(error.message, "write the name of a server, or \"*\" for every server")
        })
    }
}

text_value!(ServerSelector, "ServerSelector", {
    "type": "string",
    "minLength": 1,
    "maxLength": 63,
    "pattern": "^(\\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$",
    "x-horizon-format": "serverSelector",
});

/// A domain name in lower case without a trailing dot (RFC 1035, RFC 1123): at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Box<str>);

impl DomainName {
    /// The longest domain name.
    pub const MAX_BYTES: usize = 253;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= Self::MAX_BYTES && text.split('.').all(is_label) {
            return Ok(Self(text.into()));
        }
        Err(InvalidValue::new(
            format!("{} is not a domain name", quoted(text)),
            "write labels of a-z, 0-9 and '-' joined by dots, in lower case and without a final dot, like games.lan",
        ))
    }
}

text_value!(DomainName, "DomainName", {
    "type": "string",
    "minLength": 1,
    "maxLength": 253,
    "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
    "x-horizon-format": "domain",
});

/// A mailbox, `someone@example.org`, of at most 254 characters (RFC 5321). Only its shape is checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmailAddress(Box<str>);

impl EmailAddress {
    /// The longest address.
    pub const MAX_BYTES: usize = 254;

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for EmailAddress {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.len() <= Self::MAX_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
        let parts = text.split_once('@').is_some_and(|(mailbox, domain)| {
            !mailbox.is_empty() && !domain.is_empty() && !domain.contains('@')
        });
        if plain && parts {
            return Ok(Self(text.into()));
        }
        Err(InvalidValue::new(
            format!("{} is not an e-mail address", quoted(text)),
            "write it like someone@example.org, in ASCII and without spaces",
        ))
    }
}

text_value!(EmailAddress, "EmailAddress", {
    "type": "string",
    "minLength": 3,
    "maxLength": 254,
    "pattern": "^[!-?A-~]+@[!-?A-~]+$",
    "x-horizon-format": "email",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for name in ["a", "berlin-1", "0", &"x".repeat(63)] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", "ü", "*", &"x".repeat(64)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
        let remedy = "My Server!".parse::<Name>().unwrap_err().remedy;
        assert!(remedy.ends_with("for example \"my-server\""), "{remedy}");
    }

    #[test]
    fn selectors_match() {
        assert!("*".parse::<ServerSelector>().unwrap().matches("berlin"));
        let one: ServerSelector = "berlin".parse().unwrap();
        assert!(one.matches("berlin") && !one.matches("paris"));
        assert!("ber*".parse::<ServerSelector>().is_err());
    }

    #[test]
    fn domains_and_addresses() {
        for domain in ["lan", "games.lan", "a-b.example.org"] {
            assert!(domain.parse::<DomainName>().is_ok(), "{domain}");
        }
        for domain in ["", ".", "lan.", "a..b", "Lan", "-a.b"] {
            assert!(domain.parse::<DomainName>().is_err(), "{domain}");
        }
        assert!("ana@example.org".parse::<EmailAddress>().is_ok());
        for address in ["", "ana", "@example.org", "ana@", "a@b@c", "an a@b", "ä@b"] {
            assert!(address.parse::<EmailAddress>().is_err(), "{address}");
        }
    }
}
