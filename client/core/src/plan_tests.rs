use std::net::Ipv4Addr;

use horizon_model::{DeviceId, Inbound, NetworkId, PublicKey, Secret, ServerId, SessionId};
use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|t| t.parse().unwrap()).collect()
}

/// A ticket with the given networks: (id, addresses, routes).
pub(crate) fn ticket(networks: &[(u16, &[&str], &[&str])]) -> Ticket {
    Ticket {
        session: SessionId(Uuid::from_u128(1)),
        server: ServerId(Uuid::from_u128(2)),
        server_name: "paris-1".into(),
        device: DeviceId(Uuid::from_u128(3)),
        device_key: PublicKey([4; 32]),
        appliance_key: PublicKey([5; 32]),
        addresses: vec!["203.0.113.9:7443".parse().unwrap()],
        secret: Secret::new([6; 32]),
        networks: networks
            .iter()
            .map(|(id, addresses, routes)| TicketNetwork {
                id: NetworkId(*id),
                name: String::new(),
                addresses: nets(addresses),
                routes: nets(routes),
                inbound: Inbound::AnswersOnly,
            })
            .collect(),
        dns: Vec::new(),
        capabilities: Vec::new(),
        mtu: 1420,
        issued: Timestamp::UNIX_EPOCH,
        failover: horizon_model::Failover::Allowed,
    }
}

fn shown(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|c| match c {
            Change::Device { name, mtu } => format!("device {name} mtu {mtu}"),
            Change::Address { device, address } => format!("address {address} dev {device}"),
            Change::Route { table, to, device: None, .. } => format!("unreachable {to} table {table}"),
            Change::Route { table, to, device: Some(d), source } => {
                let source = source.map(|s| format!(" src {s}")).unwrap_or_default();
                format!("route {to} dev {d}{source} table {table}")
            }
            Change::Rule { family, priority, table, unmarked_only, ignore_default, to } => {
                let to = to.map(|t| format!(" to {t}")).unwrap_or_default();
                let mark = if *unmarked_only { " not fwmark" } else { "" };
                let suppress = if *ignore_default { " suppress 0" } else { "" };
                format!("{family:?} {priority}:{to}{mark} lookup {table}{suppress}")
            }
        })
        .collect()
}

/// What the main table is asked about beside a full tunnel.
const BESIDE: [&str; 7] = [
    "V4 18521: to 10.0.0.0/8 lookup 254 suppress 0",
    "V4 18521: to 172.16.0.0/12 lookup 254 suppress 0",
    "V4 18521: to 192.168.0.0/16 lookup 254 suppress 0",
    "V4 18521: to 100.64.0.0/10 lookup 254 suppress 0",
    "V4 18521: to 169.254.0.0/16 lookup 254 suppress 0",
    "V6 18521: to fc00::/7 lookup 254 suppress 0",
    "V6 18521: to fe80::/10 lookup 254 suppress 0",
];

#[test]
fn a_full_ipv4_tunnel_closes_ipv6() {
    let ticket = ticket(&[(0, &["100.64.0.5/32"], &["0.0.0.0/0"])]);
    let mut expected = vec![
        "device hzn-client mtu 1420",
        "address 100.64.0.5/32 dev hzn-client",
        "route 0.0.0.0/0 dev hzn-client src 100.64.0.5 table 18522",
        "unreachable 0.0.0.0/0 table 18522",
        "unreachable ::/0 table 18522",
    ];
    expected.extend(BESIDE);
    expected.extend(["V4 18522: not fwmark lookup 18522", "V6 18522: not fwmark lookup 18522"]);
    assert_eq!(shown(&plan(&ticket, &Observed::default(), DEVICE)), expected);
}

#[test]
fn specific_routes_leave_the_defaults_alone_and_networks_keep_their_source() {
    let ticket = ticket(&[
        (0, &["100.64.0.5/32", "fd00::5/128"], &["192.0.2.0/24", "2001:db8::/32"]),
        (1, &["10.7.0.3/24"], &["10.7.0.0/24"]),
    ]);
    let expected = [
        "device t mtu 1420",
        "address 10.7.0.3/32 dev t",
        "address 100.64.0.5/32 dev t",
        "address fd00::5/128 dev t",
        "route 192.0.2.0/24 dev t src 100.64.0.5 table 18521",
        "route 2001:db8::/32 dev t table 18521",
        "route 10.7.0.0/24 dev t src 10.7.0.3 table 18521",
        "V4 18520: not fwmark lookup 18521",
        "V6 18520: not fwmark lookup 18521",
    ];
    assert_eq!(shown(&plan(&ticket, &Observed::default(), "t")), expected);
}

#[test]
fn resolvers_logins_and_narrower_local_networks_get_their_way() {
    let mut ticket = ticket(&[(0, &["100.64.0.5/32"], &["10.0.0.0/8", "192.168.5.0/24", "192.168.9.7/32"])]);
    ticket.dns = vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()];
    let observed = Observed {
        on_link: nets(&["10.1.2.0/24", "192.168.5.0/24", "192.168.9.0/24", "172.16.0.0/16"]),
        ssh_peer: None,
        ssh_connected: vec!["198.51.100.7".parse().unwrap(), Ipv4Addr::LOCALHOST.into()],
        strict_reverse_path: true,
    };
    let shown = shown(&plan(&ticket, &observed, "t"));
    assert!(shown.contains(&"route 9.9.9.9/32 dev t src 100.64.0.5 table 18521".into()), "{shown:#?}");
    let kept: Vec<_> = shown.iter().filter(|s| s.contains(" 18519: ")).collect();
    let expected = [
        "V4 18519: to 203.0.113.9/32 lookup 254",
        "V4 18519: to 198.51.100.7/32 lookup 254",
        "V4 18519: to 10.1.2.0/24 lookup 254 suppress 0",
    ];
    assert_eq!(kept, expected);
}

#[test]
fn what_the_local_network_announces_never_beats_a_full_tunnel() {
    let networks: &[(u16, &[&str], &[&str])] = &[
        (0, &["100.64.0.5/32", "fd00::5/128"], &["0.0.0.0/0", "::/0"]),
        (1, &["10.7.0.3/24"], &["10.7.0.0/24"]),
    ];
    let observed = Observed {
        on_link: nets(&[
            "0.0.0.0/1",
            "128.0.0.0/1",
            "2000::/3",
            "203.0.0.0/8",
            "192.0.0.0/8",
            "192.168.1.0/24",
            "192.168.1.0/24",
            "fe80::/64",
            // The session's own, in a wider and in the same network.
            "100.64.0.0/10",
            "10.7.0.0/24",
        ]),
        ..Observed::default()
    };
    let shown = shown(&plan(&ticket(networks), &observed, "t"));
    let outside: Vec<_> = shown.iter().filter(|s| s.contains("lookup 254")).collect();
    assert_eq!(outside, BESIDE);
}

#[test]
fn strangers_at_the_ssh_port_push_nobody_out() {
    let ticket = ticket(&[(0, &["100.64.0.5/32"], &["0.0.0.0/0"])]);
    let outside = |observed: &Observed| -> Vec<IpNet> {
        let to = |c: Change| if let Change::Rule { to, .. } = c { to } else { None };
        plan(&ticket, observed, "t").into_iter().filter_map(to).collect()
    };
    let mut observed = Observed {
        on_link: nets(&["192.168.1.0/24"]),
        ssh_peer: Some("198.51.100.7".parse().unwrap()),
        ssh_connected: (0..100).map(|n| Ipv4Addr::new(1, 1, 1, n).into()).collect(),
        strict_reverse_path: true,
    };
    let mut expected = nets(&["198.51.100.7/32", "203.0.113.9/32"]);
    expected.extend(PRIVATE);
    assert_eq!(outside(&observed), expected);
    observed.ssh_peer = None;
    let found = outside(&observed);
    assert_eq!((found.len(), found[0]), (MAX_KEPT + PRIVATE.len(), "203.0.113.9/32".parse().unwrap()));
}

/// A host as a set of facts. The kernel refuses what it already has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Host(BTreeSet<Change>);

impl Host {
    fn make(&mut self, change: &Change) -> bool {
        self.0.insert(change.clone())
    }

    fn undo(&mut self, change: &Change) {
        if let Change::Device { name, .. } = change {
            // Routes and addresses go with their device.
            self.0.retain(|c| match c {
                Change::Address { device, .. } | Change::Route { device: Some(device), .. } => device != name,
                _ => true,
            });
        }
        self.0.remove(change);
    }
}

fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(ip, len)| IpNet::new(IpAddr::from(ip), len).unwrap()),
        (any::<[u8; 16]>(), 0u8..=128).prop_map(|(ip, len)| IpNet::new(IpAddr::from(ip), len).unwrap()),
        Just("0.0.0.0/0".parse().unwrap()),
        Just("::/0".parse().unwrap()),
    ]
}

prop_compose! {
    fn any_case()(
        networks in prop::collection::vec(
            (prop::collection::vec(any_net(), 0..3), prop::collection::vec(any_net(), 0..5)), 0..4),
        dns in prop::collection::vec(any::<[u8; 4]>(), 0..3),
        on_link in prop::collection::vec(any_net(), 0..5),
        strict in any::<bool>(),
    ) -> (Ticket, Observed) {
        let mut made = ticket(&[]);
        made.networks = networks.into_iter().enumerate().map(|(id, (addresses, routes))| TicketNetwork {
            id: NetworkId(id as u16), name: String::new(), addresses, routes, inbound: Inbound::AnswersOnly,
        }).collect();
        made.dns = dns.into_iter().map(IpAddr::from).collect();
        let observed = Observed {
            on_link, ssh_peer: None, ssh_connected: made.dns.clone(), strict_reverse_path: strict,
        };
        (made, observed)
    }
}

proptest! {
    #[test]
    fn the_inverse_leaves_the_host_as_found_however_far_the_plan_came(
        (ticket, observed) in any_case(), far in 0usize..40,
    ) {
        let plan = plan(&ticket, &observed, DEVICE);
        let found = Host([Change::Device { name: "eth0".into(), mtu: 1500 }].into());
        let mut host = found.clone();
        for change in plan.iter().take(far) {
            prop_assert!(host.make(change), "{change:?} is asked for twice");
        }
        for change in inverse(&plan) {
            host.undo(change);
        }
        prop_assert_eq!(host, found);
    }

    #[test]
    fn a_family_is_never_left_beside_a_full_tunnel((ticket, observed) in any_case()) {
        let plan = plan(&ticket, &observed, DEVICE);
        let default = |v4: bool, device: bool| plan.iter().any(|c| matches!(c,
            Change::Route { table: TABLE_DEFAULT, to, device: d, .. }
                if to.prefix_len() == 0 && to.addr().is_ipv4() == v4 && d.is_some() == device));
        let full = default(true, true) || default(false, true);
        prop_assert_eq!((default(true, false), default(false, false)), (full, full));
    }
}
