//! Networks, endpoints and rates.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

use super::{DomainName, InvalidValue, quoted, text_value};

/// A range of addresses in CIDR notation (RFC 4632, RFC 4291), without bits beyond its prefix: `10.0.0.0/8`, `fd00::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

impl Cidr {
    /// The range as ipnet's type.
    pub fn get(self) -> IpNet {
        self.0
    }

    /// Whether it is a range of IPv4 addresses.
    pub fn is_ipv4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

impl From<IpNet> for Cidr {
    /// Drops the bits beyond the prefix.
    fn from(network: IpNet) -> Self {
        Self(network.trunc())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(network) = text.parse::<IpNet>() {
            if network.trunc() == network {
                return Ok(Self(network));
            }
            return Err(InvalidValue::new(
                format!("{} has address bits beyond its prefix", quoted(text)),
                format!(
                    "write \"{}\" for the network, or \"{}\" for the one address",
                    network.trunc(),
                    single(network.addr())
                ),
            ));
        }
        let remedy = match text.parse::<IpAddr>() {
            Ok(address) => format!("write \"{}\" for this one address", single(address)),
            Err(_) => "write an address and a prefix length, like 10.0.0.0/8 or fd00::/64".to_owned(),
        };
        Err(InvalidValue::new(format!("{} is not a range of addresses", quoted(text)), remedy))
    }
}

fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

text_value!(Cidr, "Cidr", {
    "type": "string",
    "maxLength": 43,
    "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$",
    "x-kubernetes-validations": [{
        "rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
        "message": "write a range of addresses without bits beyond its prefix, like 10.0.0.0/8 or fd00::/64",
    }],
    "x-horizon-format": "cidr",
});

/// Where something listens: a host and a port, `203.0.113.7:7443`, `[2001:db8::7]:7443` or `vpn.example.org:7443`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// An address and a port.
    Address(IpAddr, u16),
    /// A domain name, resolved by whoever connects, and a port.
    Domain(DomainName, u16),
}

impl Endpoint {
    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(_, port) | Self::Domain(_, port) => *port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address), port) => write!(f, "[{address}]:{port}"),
            Self::Address(IpAddr::V4(address), port) => write!(f, "{address}:{port}"),
            Self::Domain(domain, port) => write!(f, "{domain}:{port}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            InvalidValue::new(
                format!("{} is not a host and a port", quoted(text)),
                "write, for example, 203.0.113.7:7443, [2001:db8::7]:7443 or vpn.example.org:7443",
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let plain = !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse::<u16>().ok().filter(|port| plain && *port != 0).ok_or_else(invalid)?;
        if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            return v6.parse::<Ipv6Addr>().map(|v6| Self::Address(v6.into(), port)).map_err(|_| invalid());
        }
        let last = host.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) {
            return match host.parse::<IpAddr>() {
                Ok(address) => Ok(Self::Address(address, port)),
                Err(_) => Err(invalid()),
            };
        }
        host.parse().map(|domain| Self::Domain(domain, port)).map_err(|_| invalid())
    }
}

text_value!(Endpoint, "Endpoint", {
    "type": "string",
    "minLength": 3,
    "maxLength": 259,
    "pattern": "^([a-z0-9.-]+|\\[[0-9A-Fa-f.:]+\\]):[1-9][0-9]{0,4}$",
    "x-kubernetes-validations": [{
        "rule": "int(self.substring(self.lastIndexOf(':') + 1)) <= 65535",
        "message": "write a port from 1 to 65535",
    }],
    "x-horizon-format": "endpoint",
});

/// A rate in bits per second, written with tc's decimal units in any case: `500kbit`, `100mbit`, `1gbit`. From 64kbit to 1000gbit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(u64);

const UNITS: [(u64, &str); 3] = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")];

impl BitRate {
    /// The lowest rate: 64 kbit/s.
    pub const MIN: Self = Self(64_000);
    /// The highest rate: 1000 Gbit/s.
    pub const MAX: Self = Self(1_000_000_000_000);

    /// The rate in bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, unit) =
            UNITS.into_iter().find(|(size, _)| self.0.is_multiple_of(*size)).unwrap_or((1, "bit"));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for BitRate {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let rate = UNITS.into_iter().find_map(|(size, unit)| {
            let digits = lower.strip_suffix(unit)?;
            let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            if plain { digits.parse::<u64>().ok()?.checked_mul(size) } else { None }
        });
        match rate {
            Some(rate) if (Self::MIN.0..=Self::MAX.0).contains(&rate) => Ok(Self(rate)),
            Some(_) => Err(InvalidValue::new(
                format!("{} is out of range", quoted(text)),
                format!("write a rate from {} to {}", Self::MIN, Self::MAX),
            )),
            None => Err(InvalidValue::new(
                format!("{} is not a rate", quoted(text)),
                "write bits per second with a unit: 500kbit, 100mbit or 1gbit",
            )),
        }
    }
}

text_value!(BitRate, "BitRate", {
    "type": "string",
    "maxLength": 13,
    "pattern": "^[0-9]{1,9}[kKmMgG][bB][iI][tT]$",
    "x-kubernetes-validations": [{
        "rule": "self.lowerAscii().endsWith('kbit') ? int(self.substring(0, size(self) - 4)) >= 64 : \
                 self.lowerAscii().endsWith('mbit') ? int(self.substring(0, size(self) - 4)) >= 1 && \
                 int(self.substring(0, size(self) - 4)) <= 1000000 : \
                 int(self.substring(0, size(self) - 4)) >= 1 && int(self.substring(0, size(self) - 4)) <= 1000",
        "message": "write a rate from 64kbit to 1000gbit",
    }],
    "x-horizon-format": "bitRate",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_no_host_bits() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "fd00::/64", "192.0.2.1/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        assert!("10.0.0.1/8".parse::<Cidr>().unwrap_err().remedy.contains("\"10.0.0.0/8\""));
        assert!("10.0.0.1".parse::<Cidr>().unwrap_err().remedy.contains("\"10.0.0.1/32\""));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
        let (a, b): (Cidr, Cidr) = ("10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap());
        assert!(a.overlaps(b) && b.overlaps(a) && !a.overlaps("11.0.0.0/8".parse().unwrap()));
    }

    #[test]
    fn endpoints() {
        for text in ["203.0.113.7:7443", "[2001:db8::7]:7443", "vpn.example.org:1", "a:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "a",
            "a:0",
            "a:65536",
            "2001:db8::7:7443",
            "1.2.3:80",
            "a:+1",
            "a:01",
            "[::1]",
            "https://a:1",
            ":1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, shown) in [
            ("100mbit", "100mbit"),
            ("1000kbit", "1mbit"),
            ("1gbit", "1gbit"),
            ("200Mbit", "200mbit"),
            ("64kbit", "64kbit"),
        ] {
            assert_eq!(text.parse::<BitRate>().unwrap().to_string(), shown);
        }
        for text in ["", "100", "1kbit", "2000gbit", "1.5mbit", "-1mbit", "mbit", "999999999gbit"] {
            assert!(text.parse::<BitRate>().is_err(), "{text}");
        }
    }
}
