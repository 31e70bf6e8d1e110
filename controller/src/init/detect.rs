//! The addresses by which others may reach this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// The most addresses that are proposed.
const MAX_ADDRESSES: usize = 6;

/// The addresses of this machine, best first: the ones that its default routes use, then others. Loopback and link-local
/// addresses and those of bridges of containers and virtual machines are left out. Nothing is sent.
pub fn host_addresses() -> Vec<IpAddr> {
    let preferred = [
        source_toward(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from(([192, 0, 2, 1], 9))),
        source_toward(
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)),
        ),
    ];
    let mut found: Vec<IpAddr> = preferred.into_iter().flatten().collect();
    let interfaces = getifaddrs().into_iter().flatten().filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP) && !is_internal(&interface.interface_name)
    });
    let mut others: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    others.sort();
    found.extend(others);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.into_iter().filter(is_reachable) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// The address packets to `destination` would leave from. Connecting a UDP socket only looks up the route.
fn source_toward(any: SocketAddr, destination: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(destination).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

fn is_internal(interface: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "cni", "flannel", "hzn", "lxc"]
        .iter()
        .any(|p| interface.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proposed_can_be_reached() {
        let addresses = host_addresses();
        assert!(addresses.len() <= MAX_ADDRESSES);
        assert!(addresses.iter().all(is_reachable), "{addresses:?}");
    }

    #[test]
    fn addresses_nobody_else_can_use_are_left_out() {
        for address in ["127.0.0.1", "169.254.1.1", "::1", "fe80::1", "0.0.0.0"] {
            assert!(!is_reachable(&address.parse().unwrap()), "{address}");
        }
        assert!(
            is_internal("docker0") && is_internal("br-1a2b") && !is_internal("eth0") && !is_internal("br0")
        );
    }
}
