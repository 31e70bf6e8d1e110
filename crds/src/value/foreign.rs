//! Schemas of types that live in other crates and know nothing of JSON schema.

use std::{borrow::Cow, fmt::Display, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{InvalidValue, quoted};

/// Accepts `text` only in the form the type itself shows, so that one value has one spelling.
pub(super) fn check_canonical<T: FromStr + Display>(
    text: &str,
    what: &str,
    example: &str,
) -> Result<(), InvalidValue> {
    match text.parse::<T>() {
        Ok(value) if value.to_string().eq_ignore_ascii_case(text) => Ok(()),
        Ok(value) => Err(InvalidValue::new(
            format!("{} is not the usual spelling of {what}", quoted(text)),
            format!("write {}", quoted(&value.to_string())),
        )),
        Err(_) => Err(InvalidValue::new(
            format!("{} is not {what}", quoted(text)),
            format!("write, for example, {example}"),
        )),
    }
}

macro_rules! foreign_schema {
    ($(#[$doc:meta])* $type:ident, $name:literal, $schema:tt) => {
        $(#[$doc])*
        pub(crate) enum $type {}

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

foreign_schema!(
    /// [`horizon_model::Capability`].
    CapabilitySchema, "Capability", {
        "type": "string",
        "enum": ["vpn", "lanEmulation", "geoLocation", "trafficRouting", "natTraversal", "relay"],
    }
);
foreign_schema!(
    /// [`horizon_model::Protocol`].
    ProtocolSchema, "Protocol", { "type": "string", "enum": ["any", "tcp", "udp", "icmp"] }
);
foreign_schema!(
    /// [`horizon_model::Failover`].
    FailoverSchema, "Failover", { "type": "string", "enum": ["allowed", "required", "never"] }
);
foreign_schema!(
    /// [`horizon_model::PortRange`].
    PortRangeSchema, "PortRange", {
        "type": "string",
        "maxLength": 11,
        "pattern": "^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$",
        "x-kubernetes-validations": [{
            "rule": "self.split('-').all(p, int(p) <= 65535) && \
                     int(self.split('-')[0]) <= int(self.split('-')[size(self.split('-')) - 1])",
            "message": "write a port or a range of ports, like 80 or 8000-8100 (1 to 65535)",
        }],
        "x-horizon-format": "portRange",
    }
);
foreign_schema!(
    /// [`std::net::IpAddr`].
    AddressSchema, "Address", {
        "type": "string",
        "maxLength": 45,
        "pattern": "^[0-9A-Fa-f.:]+$",
        "x-kubernetes-validations": [{ "rule": "isIP(self)", "message": "write an IPv4 or IPv6 address" }],
        "x-horizon-format": "address",
    }
);

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use horizon_model::PortRange;

    use super::*;

    #[test]
    fn one_value_has_one_spelling() {
        assert!(check_canonical::<PortRange>("80", "a port", "80").is_ok());
        assert!(check_canonical::<PortRange>("080", "a port", "80").unwrap_err().remedy.contains("\"80\""));
        assert!(
            check_canonical::<PortRange>("http", "a port", "80")
                .unwrap_err()
                .message
                .contains("is not a port")
        );
        assert!(check_canonical::<IpAddr>("FD00::1", "an address", "fd00::1").is_ok());
        assert!(check_canonical::<IpAddr>("fd00:0::1", "an address", "fd00::1").is_err());
    }

    #[test]
    fn schemas_list_what_the_types_know() {
        use horizon_model::{Capability, Failover, Protocol};
        let mut generator = SchemaGenerator::default();
        let capabilities = CapabilitySchema::json_schema(&mut generator);
        assert_eq!(capabilities.get("enum"), Some(&serde_json::to_value(Capability::ALL).unwrap()));
        let protocols = ProtocolSchema::json_schema(&mut generator);
        let all = [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
        assert_eq!(protocols.get("enum"), Some(&serde_json::to_value(all).unwrap()));
        let failovers = FailoverSchema::json_schema(&mut generator);
        let all = [Failover::Allowed, Failover::Required, Failover::Never];
        assert_eq!(failovers.get("enum"), Some(&serde_json::to_value(all).unwrap()));
    }
}
