//! Where notifications may be sent: not to what only this machine or its hypervisor answers, unless somebody allowed it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Whether an address is reachable by others: neither this machine, nor a private network, nor the services that clouds
/// offer to machines under addresses of their own.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(four) => {
            let [a, b, c, _] = four.octets();
            let shared = a == 100 && (64..128).contains(&b);
            // For protocols, and the metadata of one cloud; for measurements; for the future (RFC 6890).
            let special = (a, b, c) == (192, 0, 0) || a == 198 && (18..20).contains(&b) || a >= 240;
            !(four.is_private()
                || four.is_loopback()
                || four.is_link_local()
                || four.is_unspecified()
                || four.is_multicast()
                || four == Ipv4Addr::BROADCAST
                || a == 0
                || shared
                || special
                || four == AZURE)
        }
        IpAddr::V6(six) => {
            !(six.is_loopback()
                || six.is_unspecified()
                || six.is_multicast()
                || six.is_unicast_link_local()
                || six.is_unique_local()
                || within(six).is_some_and(|four| !is_public(IpAddr::V4(four))))
        }
    }
}

/// What only the machines of one cloud reach, though it looks like any other address: their platform's services.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The IPv4 address within one of NAT64 (RFC 6052), of 6to4 (RFC 3056), or of the old form without a prefix (RFC 4291).
fn within(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            (high, low)
        }
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Whether it may be connected to.
pub(super) fn may_reach(address: IpAddr, allowed: &[IpNet]) -> bool {
    is_public(address) || allowed.iter().any(|range| range.contains(&address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reached_unless_allowed() {
        let reach = |text: &str| may_reach(text.parse().unwrap(), &[]);
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "192.0.0.192",
            "198.18.0.1",
            "240.0.0.1",
            "168.63.129.16",
            "::7f00:1",
            "2002:a9fe:a9fe::1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert!(!reach(inside), "{inside}");
        }
        for outside in
            ["1.1.1.1", "100.63.0.1", "198.20.0.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1"]
        {
            assert!(reach(outside), "{outside}");
        }
        let allowed = ["10.0.0.0/8".parse().unwrap()];
        assert!(may_reach("10.1.2.3".parse().unwrap(), &allowed));
        assert!(may_reach("::ffff:10.1.2.3".parse().unwrap(), &allowed));
        assert!(!may_reach("169.254.169.254".parse().unwrap(), &allowed));
    }
}
