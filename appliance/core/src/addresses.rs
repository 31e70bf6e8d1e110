//! Where clients can reach the tunnel.

use std::net::{IpAddr, SocketAddr};

/// The most addresses an appliance names.
pub const MAX_ADVERTISED: usize = 16;

/// An address of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The name of its link.
    pub link: String,
    /// The address.
    pub address: IpAddr,
}

/// The tunnel's addresses, best first: those that the operator names, then the host's own public ones, then the one
/// under which the controller sees the host, then private ones, which help on the same network.
pub fn advertised(
    named: &[SocketAddr],
    seen_by_controller: Option<IpAddr>,
    host: &[HostAddress],
    port: u16,
) -> Vec<SocketAddr> {
    let of = |wanted: Reach| {
        host.iter()
            .filter(move |h| !crate::is_own_or_passing(&h.link) && reach(h.address) == wanted)
            .map(move |h| SocketAddr::new(h.address, port))
    };
    let seen = seen_by_controller.map(|ip| ip.to_canonical()).filter(|ip| reach(*ip) != Reach::None);
    let seen = seen.map(|ip| SocketAddr::new(ip, port));
    let all = named.iter().copied().chain(of(Reach::Public)).chain(seen).chain(of(Reach::Private));
    let mut list: Vec<SocketAddr> = Vec::new();
    for address in all {
        if !list.contains(&address) && list.len() < MAX_ADVERTISED {
            list.push(address);
        }
    }
    list
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    None,
    Private,
    Public,
}

fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            if ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
            {
                Reach::None
            } else if ip.is_private() || shared {
                Reach::Private
            } else {
                Reach::Public
            }
        }
        IpAddr::V6(ip) => {
            if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() {
                Reach::None
            } else if ip.is_unique_local() {
                Reach::Private
            } else {
                Reach::Public
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_come_first_and_useless_ones_never() {
        let host: Vec<_> = [
            ("lo", "127.0.0.1"),
            ("eth0", "192.168.1.5"),
            ("eth0", "fe80::1"),
            ("eth0", "2001:db8::5"),
            ("eth1", "203.0.113.9"),
            ("docker0", "172.17.0.1"),
            ("hzn0", "10.64.0.1"),
            ("eth1", "169.254.3.4"),
        ]
        .map(|(link, ip)| HostAddress { link: link.into(), address: ip.parse().unwrap() })
        .into();
        let list = |seen: Option<&str>| {
            let named = ["198.51.100.1:9".parse().unwrap()];
            let list = advertised(&named, seen.map(|s| s.parse().unwrap()), &host, 7443);
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let expected = ["198.51.100.1:9", "[2001:db8::5]:7443", "203.0.113.9:7443", "192.168.1.5:7443"];
        assert_eq!(list(None), expected);
        assert_eq!(list(Some("203.0.113.9")), expected);
        assert_eq!(list(Some("::ffff:203.0.113.9")), expected);
        assert_eq!(list(Some("203.0.113.77"))[3], "203.0.113.77:7443");
        assert_eq!(list(Some("127.0.0.1")), expected);
    }
}
