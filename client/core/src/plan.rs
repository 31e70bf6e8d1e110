//! Which changes a session asks of the host, as a function of the ticket.
//!
//! The tunnel's packets and the control channel carry the mark [`MARK`]; everything else is looked up in this order:
//!
//! | priority | who | table |
//! |---|---|---|
//! | 18519 | destinations that stay outside: SSH logins, and local networks inside a wider route of the session | main |
//! | 18520 | all but marked packets | 18521: the session's routes, as far as they are no default routes |
//! | 18521 | private and link-local destinations | main, its default routes ignored |
//! | 18522 | all but marked packets | 18522: the session's default routes |
//!
//! The last two exist only when the session has a default route in either family. Each family then gets an `unreachable`
//! default besides, so that nothing leaves beside the tunnel in silence: neither in the family that the session lacks,
//! nor while the device is missing. Nothing in the host's own tables is touched, therefore nothing there has to be put
//! back.
//!
//! For public destinations no route of the main table counts: whoever runs the local network writes that table (DHCP
//! option 121, RFC 4191 route information) and could lead the session's traffic past the tunnel (CVE-2024-3661,
//! CVE-2023-36672). Private ones are looked up there by rules that say nothing of the network that the host is on, so that
//! they hold after a move to another, whose router is often also the resolver. Networks inside a narrower route of the
//! session are those that the host is directly on when it begins.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use horizon_model::{NetworkId, Ticket, TicketNetwork};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The firewall mark of the tunnel's own packets and of the control channel (`SO_MARK`).
pub const MARK: u32 = 0x485a;
/// The table of the session's default routes.
pub const TABLE_DEFAULT: u32 = 18522;
/// The table of its other routes.
pub const TABLE_SPECIFIC: u32 = 18521;
/// The main table of the host.
pub const TABLE_MAIN: u32 = 254;
/// The name of the TUN device.
pub const DEVICE: &str = "hzn-client";

const KEEP: u32 = 18519;
const SPECIFIC: u32 = 18520;
const LOCAL: u32 = 18521;
const DEFAULT: u32 = 18522;
/// The most destinations that stay outside: logins first, then the narrowest of the local networks.
const MAX_KEPT: usize = 64;
/// Addresses of local networks: private (RFC 1918, RFC 6598, RFC 4193) and link-local (RFC 3927, RFC 4291).
const PRIVATE: [IpNet; 7] = [
    private_v4([10, 0, 0, 0], 8),
    private_v4([172, 16, 0, 0], 12),
    private_v4([192, 168, 0, 0], 16),
    private_v4([100, 64, 0, 0], 10),
    private_v4([169, 254, 0, 0], 16),
    private_v6(0xfc00, 7),
    private_v6(0xfe80, 10),
];

const fn private_v4([a, b, c, d]: [u8; 4], prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len))
}

const fn private_v6(start: u16, prefix_len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(start, 0, 0, 0, 0, 0, 0, 0), prefix_len))
}

/// The version of the Internet protocol that a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The family of an address.
fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// One change of the host. The journal keeps them, so their form is stable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Change {
    /// The TUN device. It vanishes with the process that holds it, and its addresses and routes with it.
    Device {
        /// Its name.
        name: String,
        /// Its MTU in bytes.
        mtu: u16,
    },
    /// An address of the device.
    Address {
        /// The device.
        device: String,
        /// The address, as a network of one address.
        address: IpNet,
    },
    /// A route.
    Route {
        /// In which table.
        table: u32,
        /// To where.
        to: IpNet,
        /// Through which device; `None` makes the destination unreachable where no other route of the table leads to it.
        device: Option<String>,
        /// The source address it prefers.
        source: Option<IpAddr>,
    },
    /// A policy routing rule.
    Rule {
        /// For which family.
        family: Family,
        /// Its place in the order.
        priority: u32,
        /// The table it leads to.
        table: u32,
        /// Whether it spares packets that carry [`MARK`].
        unmarked_only: bool,
        /// Whether default routes of the table are ignored.
        ignore_default: bool,
        /// The destination it is for; `None` for all.
        to: Option<IpNet>,
    },
}

/// What the plan needs to know of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Networks that the host is directly on, as its main table has them.
    pub on_link: Vec<IpNet>,
    /// The far end of the SSH login that the session was asked for from.
    pub ssh_peer: Option<IpAddr>,
    /// The far ends of whatever is connected to the SSH port, logged in or not. They count only without
    /// [`ssh_peer`](Self::ssh_peer): each stays outside the tunnel.
    pub ssh_connected: Vec<IpAddr>,
    /// Whether the kernel drops packets whose answer would leave through another link (`rp_filter` 1). The tunnel's
    /// server is then kept outside by its address, because the answer's route is looked up without the mark.
    pub strict_reverse_path: bool,
}

/// A destination that is reached through the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The destination.
    pub to: IpNet,
    /// Through which of its networks.
    pub network: NetworkId,
    /// The address that packets to it come from.
    pub source: IpAddr,
}

/// What is reached through the session: the routes of the ticket, the networks its addresses are in and its resolvers.
/// A destination that two networks claim belongs to the first.
pub fn reached(ticket: &Ticket) -> Vec<Reached> {
    let mut destinations = BTreeSet::new();
    let mut reached = Vec::new();
    let mut add = |network: &TicketNetwork, to: IpNet| {
        if let Some(source) = source(network, to)
            && destinations.insert(to)
        {
            reached.push(Reached { to, network: network.id, source });
        }
    };
    for network in &ticket.networks {
        let own = network.addresses.iter().map(IpNet::trunc).filter(|a| a.prefix_len() < a.max_prefix_len());
        network.routes.iter().map(IpNet::trunc).chain(own).for_each(|to| add(network, to));
    }
    for to in ticket.dns.iter().map(|ip| single(*ip)) {
        if let Some(network) = ticket.networks.iter().find(|n| source(n, to).is_some()) {
            add(network, to);
        }
    }
    reached
}

/// The changes in the order they are made.
pub fn plan(ticket: &Ticket, observed: &Observed, device: &str) -> Vec<Change> {
    let mut changes = vec![Change::Device { name: device.to_owned(), mtu: ticket.mtu }];
    let addresses: BTreeSet<IpNet> =
        ticket.networks.iter().flat_map(|n| &n.addresses).map(|a| single(a.addr())).collect();
    changes.extend(addresses.iter().map(|a| Change::Address { device: device.to_owned(), address: *a }));

    let reached = reached(ticket);
    let (defaults, specific): (Vec<&Reached>, Vec<&Reached>) =
        reached.iter().partition(|r| r.to.prefix_len() == 0);
    // IPv6 chooses well by itself among the addresses of one network, and a preferred source must not be tentative.
    let many_v6 =
        ticket.networks.iter().filter(|n| n.addresses.iter().any(|a| a.addr().is_ipv6())).count() > 1;
    let route = |table, reached: &Reached| Change::Route {
        table,
        to: reached.to,
        device: Some(device.to_owned()),
        source: Some(reached.source).filter(|s| s.is_ipv4() || many_v6),
    };
    changes.extend(specific.iter().map(|r| route(TABLE_SPECIFIC, r)));
    changes.extend(defaults.iter().map(|r| route(TABLE_DEFAULT, r)));
    if !defaults.is_empty() {
        let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let closed = |to| Change::Route { table: TABLE_DEFAULT, to, device: None, source: None };
        changes.extend(all.map(closed));
    }
    changes.extend(kept(ticket, observed, &specific, !defaults.is_empty()));
    for family in [Family::V4, Family::V6] {
        let rule = |priority, table| Change::Rule {
            family,
            priority,
            table,
            unmarked_only: true,
            ignore_default: false,
            to: None,
        };
        if specific.iter().any(|r| self::family(r.to.addr()) == family) {
            changes.push(rule(SPECIFIC, TABLE_SPECIFIC));
        }
        if !defaults.is_empty() {
            changes.push(rule(DEFAULT, TABLE_DEFAULT));
        }
    }
    changes
}

/// The changes to be undone, in that order.
pub fn inverse(changes: &[Change]) -> impl Iterator<Item = &Change> {
    changes.iter().rev()
}

/// The address of a network from which packets to `to` leave; `None` when it has none of that family.
fn source(network: &TicketNetwork, to: IpNet) -> Option<IpAddr> {
    let same = |a: &&IpNet| a.addr().is_ipv4() == to.addr().is_ipv4();
    network.addresses.iter().find(same).map(IpNet::addr)
}

/// The rules of what stays outside the tunnel, the most important first, so that none pushes out those before it.
fn kept(ticket: &Ticket, observed: &Observed, specific: &[&Reached], full: bool) -> Vec<Change> {
    let rule = |priority, ignore_default, to: IpNet| Change::Rule {
        family: family(to.addr()),
        priority,
        table: TABLE_MAIN,
        unmarked_only: false,
        ignore_default,
        to: Some(to),
    };
    let servers = ticket.addresses.iter().map(|a| a.ip()).filter(|_| observed.strict_reverse_path);
    let connected = observed.ssh_connected.iter().copied().filter(|_| observed.ssh_peer.is_none());
    let hosts = observed.ssh_peer.into_iter().chain(servers).chain(connected);
    let hosts = hosts.filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    let hosts = hosts.map(|ip| rule(KEEP, false, single(ip)));
    // A local network that was left while the session lasts must not lead to the main table's default route.
    let inside = local(ticket, observed, specific).into_iter().map(|to| rule(KEEP, true, to));
    let beside = PRIVATE.iter().filter(|_| full).map(|to| rule(LOCAL, true, *to));
    let mut seen = BTreeSet::new();
    let kept = hosts.chain(inside).filter(|rule| seen.insert(rule.clone())).take(MAX_KEPT);
    kept.chain(beside).collect()
}

/// The local networks inside a wider route of the session that stay reachable all the same, as the longest prefix would
/// decide in one table, the narrowest first.
fn local(ticket: &Ticket, observed: &Observed, specific: &[&Reached]) -> Vec<IpNet> {
    let is_private = |l: &IpNet| PRIVATE.iter().any(|p| p.contains(l));
    let addresses: Vec<&IpNet> = ticket.networks.iter().flat_map(|n| &n.addresses).collect();
    let mut local: Vec<IpNet> = observed.on_link.iter().map(IpNet::trunc).filter(is_private).collect();
    // Where the session has an address of its own, its networks are meant.
    local.retain(|l| !addresses.iter().any(|a| l.contains(&a.addr())));
    local.retain(|l| {
        let in_wider = specific.iter().any(|r| r.to.contains(l));
        let has_narrower = specific.iter().any(|r| l.contains(&r.to));
        in_wider && !has_narrower
    });
    local.sort_by_key(|l| (Reverse(l.prefix_len()), *l));
    local
}

/// The network of one address.
pub fn single(ip: IpAddr) -> IpNet {
    IpNet::from(ip.to_canonical())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
