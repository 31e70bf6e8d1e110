//! The values fields are made of. Each is parsed once, so that no later code meets a wrong one, and each describes
//! itself to the schema: the pattern Kubernetes checks, and the `x-horizon-format` by which the document reader finds the
//! exact check and its remedy.

mod digest;
mod foreign;
mod name;
mod net;
mod text;
mod time;

pub use digest::IdentityDigest;
pub(crate) use foreign::{AddressSchema, CapabilitySchema, FailoverSchema, PortRangeSchema, ProtocolSchema};
pub use name::{DomainName, EmailAddress, Name, ServerSelector};
pub use net::{BitRate, Cidr, Endpoint};
pub use text::Text;
pub use time::{TimeOfDay, TimeSpan, Timestamp, Weekday};

use std::net::IpAddr;

use horizon_model::PortRange;
use thiserror::Error;

/// A text that is no value of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}: {remedy}")]
pub struct InvalidValue {
    /// What is wrong, without the text itself when that is long.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl InvalidValue {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// `text` in quotes, cut when it is long, so that a message stays a message.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// Serialises through `Display`, parses through `FromStr`, and shows the given JSON schema.
macro_rules! text_value {
    ($type:ty, $name:literal, $schema:tt) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(crate) use text_value;

/// What a text of an `x-horizon-format` is called. Plain text has no name of its own.
pub(crate) fn format_name(format: &str) -> &'static str {
    match format {
        "name" => "name",
        "serverSelector" => "name or `*`",
        "domain" => "domain name",
        "email" => "e-mail address",
        "duration" => "duration",
        "timestamp" => "time",
        "timeOfDay" => "time of day",
        "cidr" => "address range",
        "endpoint" => "endpoint",
        "bitRate" => "rate",
        "identityDigest" => "identity digest",
        "address" => "IP address",
        "portRange" => "port or range of ports",
        _ => "text",
    }
}

/// Runs the check behind an `x-horizon-format`. `None` when the format is not one of ours.
pub(crate) fn check_format(format: &str, text: &str) -> Option<Result<(), InvalidValue>> {
    fn check<T: std::str::FromStr<Err = InvalidValue>>(text: &str) -> Result<(), InvalidValue> {
        text.parse::<T>().map(drop)
    }
    Some(match format {
        "name" => check::<Name>(text),
        "serverSelector" => check::<ServerSelector>(text),
        "domain" => check::<DomainName>(text),
        "email" => check::<EmailAddress>(text),
        "text" => text::check_characters(text),
        "duration" => check::<TimeSpan>(text),
        "timestamp" => check::<Timestamp>(text),
        "timeOfDay" => check::<TimeOfDay>(text),
        "cidr" => check::<Cidr>(text),
        "endpoint" => check::<Endpoint>(text),
        "bitRate" => check::<BitRate>(text),
        "identityDigest" => check::<IdentityDigest>(text),
        "address" => {
            foreign::check_canonical::<IpAddr>(text, "an IPv4 or IPv6 address", "10.0.0.53 or fd00::53")
        }
        "portRange" => foreign::check_canonical::<PortRange>(
            text,
            "a port or a range of ports",
            "80 or 8000-8100 (1 to 65535)",
        ),
        _ => return None,
    })
}
