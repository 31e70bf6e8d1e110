use horizon_model::{PublicKey, Secret, SessionEntry, SessionId, SessionKind};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::Ruleset;

/// A host as the kernel keeps it, with what it does unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    observed: Observed,
}

impl Host {
    fn found() -> Self {
        let settings = [
            (FORWARD_V4, "0"),
            (FORWARD_V6, "0"),
            ("net/ipv6/conf/eth0/accept_ra", "1"),
            ("net/ipv6/conf/eth1/accept_ra", "0"),
        ];
        let settings = settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        Self { observed: Observed { settings, ..Observed::default() } }
    }

    fn perform(&mut self, action: Action) {
        let o = &mut self.observed;
        match action {
            Action::Listen(port) => {
                close(o);
                o.listening = Some(port);
            }
            Action::StopListening => close(o),
            Action::RemoveSession(id) => assert!(o.sessions.remove(&id).is_some()),
            Action::UpsertSession(session) => {
                assert!(o.listening.is_some(), "a session without a tunnel");
                o.sessions.insert(session.id, *session);
            }
            Action::RemoveNetwork(id) => assert!(o.networks.remove(&id)),
            Action::AddNetwork(id) => assert!(o.networks.insert(id) && o.listening.is_some()),
            Action::ApplyRuleset(ruleset) => o.table = Table::Holds(ruleset),
            Action::RemoveRuleset => o.table = Table::Absent,
            Action::RemoveTun => o.tun = Tun::Absent,
            Action::CreateTun(mtu) => {
                assert_eq!(o.tun, Tun::Absent, "the name is taken");
                assert!(matches!(o.table, Table::Holds(_)), "a device without a packet filter");
                let (addresses, routes) = Default::default();
                o.tun = Tun::Present { made_with: mtu, mtu: mtu.into(), up: true, addresses, routes };
            }
            Action::Set { name, value } => {
                let former = o.settings.insert(name.clone(), value).expect("a setting that the kernel has");
                o.originals.entry(name).or_insert(former);
            }
            Action::Restore { name, value } => {
                o.settings.insert(name.clone(), value);
                o.originals.remove(&name);
            }
            change => self.device(&change),
        }
    }

    fn device(&mut self, action: &Action) {
        let Tun::Present { mtu, up, addresses, routes, .. } = &mut self.observed.tun else {
            panic!("{action} without a device");
        };
        match action {
            Action::SetMtu(value) => *mtu = u32::from(*value),
            Action::SetUp => {
                *up = true;
                routes.extend(addresses.iter().filter_map(route_of));
            }
            Action::AddAddress(address) => {
                assert!(addresses.insert(*address));
                if *up {
                    routes.extend(route_of(address));
                }
            }
            Action::RemoveAddress(address) => {
                assert!(addresses.remove(address));
                let kept: BTreeSet<_> = addresses.iter().filter_map(route_of).collect();
                routes.retain(|r| kept.contains(r));
            }
            Action::AddRoute(range) => assert!(routes.insert(*range)),
            other => panic!("{other}"),
        }
    }

    fn reach(&mut self, desired: &Desired) {
        for action in plan(desired, &self.observed) {
            self.perform(action);
        }
    }

    /// Something that a hand, a crash of the device's owner or another program does.
    fn disturb(&mut self, what: u8) {
        let o = &mut self.observed;
        match what {
            0 => o.tun = Tun::Absent,
            1 => o.table = Table::Absent,
            2 if o.table != Table::Absent => o.table = Table::Changed,
            3 => drop(o.settings.insert(FORWARD_V4.into(), "0".into())),
            4 => close(o),
            _ => {
                if let Tun::Present { mtu, up, addresses, routes, .. } = &mut o.tun {
                    match what {
                        5 => *mtu = 1300,
                        6 => {
                            *up = false;
                            routes.clear();
                        }
                        7 => drop(addresses.pop_first()),
                        8 => drop(routes.pop_first()),
                        _ => drop(addresses.insert("192.0.2.1/32".parse().unwrap())),
                    }
                }
            }
        }
    }
}

/// The tunnel's thread ends, and with it what it holds.
fn close(observed: &mut Observed) {
    observed.listening = None;
    observed.sessions.clear();
    observed.networks.clear();
    if observed.tun != Tun::Foreign {
        observed.tun = Tun::Absent;
    }
}

fn nets(all: &'static [&'static str]) -> impl Strategy<Value = Vec<IpNet>> {
    prop::sample::subsequence(all, 0..=all.len()).prop_map(|l| l.iter().map(|n| n.parse().unwrap()).collect())
}

fn tunnels() -> impl Strategy<Value = DesiredTunnel> {
    let addresses = nets(&["10.64.0.1/16", "10.65.0.1/32", "fd00:a::1/64", "fd00:b::1/128"]);
    let ranges = prop::option::of((nets(&["10.64.0.0/16", "fd00:a::/64"]), any::<bool>()));
    (
        prop::sample::select(&[7443u16, 7444][..]),
        prop::sample::select(&[1280u16, 1420][..]),
        addresses,
        ranges,
    )
        .prop_map(|(port, mtu, addresses, egress)| DesiredTunnel {
            port,
            mtu,
            addresses: addresses.into_iter().collect(),
            ruleset: egress.map_or_else(|| Ruleset::closed("hzn0"), |(r, m)| Ruleset::open("hzn0", &r, m)),
        })
}

fn session(id: u8, key: u8) -> SessionEntry {
    SessionEntry {
        id: SessionId(Uuid::from_u128(id.into())),
        kind: SessionKind::Access,
        peer_key: PublicKey([key; 32]),
        secret: Secret::new([4; 32]),
        networks: Vec::new(),
        rules: Vec::new(),
        rate_limit: None,
    }
}

fn wishes() -> impl Strategy<Value = Desired> {
    let sessions = prop::collection::btree_map(0u8..6, 0u8..2, 0..5);
    let networks = prop::collection::btree_set((1u16..5).prop_map(NetworkId), 0..4);
    (prop::option::weighted(0.9, tunnels()), networks, sessions).prop_map(|(tunnel, networks, sessions)| {
        let mut desired = Desired { tunnel, ..Desired::default() };
        if desired.tunnel.is_some() {
            desired.networks = networks;
            let sessions = sessions.into_iter().map(|(id, key)| session(id, key));
            desired.sessions = sessions.map(|s| (s.id, s)).collect();
        }
        desired
    })
}

proptest! {
    /// From anywhere to anywhere, disturbed in between: once applied, nothing is left to do. What only shows after a
    /// first repair (the addresses of a device that was down) may take a second look.
    #[test]
    fn a_plan_that_was_applied_leaves_nothing_to_do(steps in prop::collection::vec((wishes(), prop::option::of(0u8..10)), 1..8)) {
        let mut host = Host::found();
        for (desired, disturbance) in &steps {
            host.reach(desired);
            prop_assert_eq!(plan(desired, &host.observed), vec![]);
            if let Some(what) = disturbance {
                host.disturb(*what);
                host.reach(desired);
                host.reach(desired);
                prop_assert_eq!(plan(desired, &host.observed), vec![]);
            }
        }
        for action in teardown(&host.observed) {
            host.perform(action);
        }
        prop_assert_eq!(host, Host::found());
    }
}

fn full() -> Desired {
    let ranges = ["10.64.0.0/16".parse().unwrap()];
    let tunnel = DesiredTunnel {
        port: 7443,
        mtu: 1420,
        addresses: ["10.64.0.1/16".parse().unwrap()].into(),
        ruleset: Ruleset::open("hzn0", &ranges, true),
    };
    let one = session(1, 1);
    Desired { tunnel: Some(tunnel), sessions: [(one.id, one)].into(), ..Desired::default() }
}

fn lines(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}

#[test]
fn the_filter_stands_before_the_device_and_sessions_come_last() {
    let expected = [
        "listen on UDP port 7443",
        "apply the nftables rule set",
        "create the TUN device with MTU 1420",
        "add the address 10.64.0.1/16",
        "set net/ipv4/ip_forward to 1",
        "set net/ipv6/conf/eth0/accept_ra to 2",
        "set net/ipv6/conf/all/forwarding to 1",
        "admit session 00000000-0000-0000-0000-000000000001",
    ];
    assert_eq!(lines(&plan(&full(), &Host::found().observed)), expected);
}

#[test]
fn a_session_that_ends_touches_nothing_else() {
    let mut host = Host::found();
    host.reach(&full());
    let ended = Desired { sessions: BTreeMap::new(), ..full() };
    assert_eq!(lines(&plan(&ended, &host.observed)), ["end session 00000000-0000-0000-0000-000000000001"]);
}

#[test]
fn settings_that_were_right_are_not_remembered_as_changed() {
    let mut host = Host::found();
    host.observed.settings.insert(FORWARD_V4.into(), "1".into());
    host.reach(&full());
    assert!(!host.observed.originals.contains_key(FORWARD_V4));
    let back = lines(&teardown(&host.observed));
    assert_eq!(
        back,
        [
            "close the tunnel",
            "set net/ipv6/conf/all/forwarding back to 0",
            "set net/ipv6/conf/eth0/accept_ra back to 1",
            "remove the nftables rule set",
        ]
    );
}

#[test]
fn a_host_that_was_no_router_becomes_one_for_the_tunnel_only() {
    let mut host = Host::found();
    host.observed.settings.insert(FORWARD_V4.into(), "1".into());
    let filter = |host: &Host| match &host.observed.table {
        Table::Holds(ruleset) => ruleset.script(),
        other => panic!("{other:?}"),
    };
    host.reach(&full());
    assert!(!filter(&host).contains("nfproto ipv4 drop") && filter(&host).contains("nfproto ipv6 drop"));
    // The kernel goes on to forward when nothing of it is for the tunnel any more, and so does the filter.
    let mut closed = full();
    closed.tunnel.as_mut().unwrap().ruleset = Ruleset::closed("hzn0");
    host.reach(&closed);
    assert!(filter(&host).contains("nfproto ipv6 drop"));
    host.reach(&Desired::default());
    assert_eq!((&host.observed.table, &host.observed.settings[FORWARD_V6][..]), (&Table::Absent, "0"));
}

#[test]
fn without_a_filter_what_is_open_is_shut() {
    let mut host = Host::found();
    host.reach(&full());
    let mut other = full();
    other.tunnel.as_mut().unwrap().ruleset = Ruleset::closed("hzn0");
    other.sessions = [session(1, 2), session(2, 1)].map(|s| (s.id, s)).into();
    // The filter of before stands: only what would have changed ends.
    let planned = plan(&other, &host.observed);
    assert_eq!(lines(&shut(&planned, &host.observed)), ["end session 00000000-0000-0000-0000-000000000001"]);
    host.observed.table = Table::Changed;
    let planned = plan(&full(), &host.observed);
    let expected = [
        "remove the TUN device",
        "set net/ipv4/ip_forward back to 0",
        "set net/ipv6/conf/all/forwarding back to 0",
        "set net/ipv6/conf/eth0/accept_ra back to 1",
    ];
    assert_eq!(lines(&shut(&planned, &host.observed)), expected);
    for action in shut(&planned, &host.observed) {
        host.perform(action);
    }
    assert!(shut(&plan(&full(), &host.observed), &host.observed).is_empty());
    assert!(shut(&plan(&full(), &Host::found().observed), &Host::found().observed).is_empty());
}

#[test]
fn a_foreign_link_of_the_name_is_not_removed() {
    let mut host = Host::found();
    host.observed.tun = Tun::Foreign;
    assert!(!plan(&full(), &host.observed).contains(&Action::RemoveTun));
    assert!(teardown(&host.observed).is_empty());
}
