//! The real kernel, in a network namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's failure")]

use std::{future::Future, time::Duration};

use horizon_hostnet::{Changes, Events, Family, Net, Nft, Route, RouteKind, Rule, Sysctls, TABLE_MAIN};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkVeth, new_connection};

const TABLE: u32 = 18_522;
const PATIENCE: Duration = Duration::from_secs(20);
const INSIDE: &str = "HORIZON_TEST_INSIDE";

/// Runs a test where it may do as it pleases: as root in a new network namespace of the thread, otherwise in a new
/// process with a user namespace, because only a process of one thread can enter one.
fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send) {
    if !nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        let status = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .expect("the program 'unshare' (apt-get install util-linux)");
        assert!(status.success(), "{name} failed in a user namespace");
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let limited = async { tokio::time::timeout(PATIENCE, test()).await.expect("the test hangs") };
            runtime.block_on(limited);
        });
    });
}

/// Two links `a` and `b` that are each other's far end, both up.
async fn pair() -> Net {
    let (connection, handle, _) = new_connection().unwrap();
    tokio::spawn(connection);
    handle.link().add(LinkVeth::new("a", "b").build()).execute().await.unwrap();
    let net = Net::open().unwrap();
    for link in ["a", "b"] {
        net.set_link_up(link, true).await.unwrap();
    }
    net
}

#[test]
fn links_come_go_and_change() {
    isolated("links_come_go_and_change", || async {
        let net = pair().await;
        net.set_link_mtu("a", 1300).await.unwrap();
        let a = net.link("a").await.unwrap().unwrap();
        assert_eq!((a.mtu, a.up, a.loopback, a.kind.as_deref()), (1300, true, false, Some("veth")));
        assert_eq!(a.hardware_address.map(|m| m.len()), Some(6));
        net.delete_link("a").await.unwrap();
        net.delete_link("a").await.unwrap();
        assert!(net.link("b").await.unwrap().is_none());
        let error = net.set_link_up("a", true).await.unwrap_err();
        assert!(error.is_absent());
        assert!(error.to_string().contains("set the link a up"), "{error}");
    });
}

#[test]
fn addresses_are_added_and_removed_any_number_of_times() {
    isolated("addresses_are_added_and_removed_any_number_of_times", || async {
        let net = pair().await;
        let index = net.link_index("a").await.unwrap();
        for network in ["10.9.0.1/24", "fd00:9::1/64"] {
            let network = network.parse().unwrap();
            for _ in 0..2 {
                net.add_address("a", network).await.unwrap();
            }
            let has = |list: Vec<horizon_hostnet::Address>| {
                list.iter().any(|x| x.link == index && x.network == network)
            };
            assert!(has(net.addresses().await.unwrap()));
            for _ in 0..2 {
                net.remove_address("a", network).await.unwrap();
            }
            assert!(!has(net.addresses().await.unwrap()));
        }
        assert!(net.add_address("none", "10.9.0.1/24".parse().unwrap()).await.unwrap_err().is_absent());
        net.remove_address("none", "10.9.0.1/24".parse().unwrap()).await.unwrap();
    });
}

#[test]
fn routes_stand_in_their_tables() {
    isolated("routes_stand_in_their_tables", || async {
        let net = pair().await;
        let index = net.link_index("a").await.unwrap();
        net.add_address("a", "10.9.0.1/24".parse().unwrap()).await.unwrap();
        net.add_address("a", "fd00:9::1/64".parse().unwrap()).await.unwrap();
        let default = |text: &str| Route::on_link(text.parse().unwrap(), index).in_table(TABLE);
        let mut unreachable = default("2001:db8::/32");
        (unreachable.kind, unreachable.link) = (RouteKind::Unreachable, None);
        let wanted = [
            default("0.0.0.0/0"),
            default("::/0"),
            default("10.77.0.0/16").through("10.9.0.2".parse().unwrap()),
            default("fd77::/32").through("fd00:9::2".parse().unwrap()),
            unreachable,
        ];
        for route in wanted.iter().chain(&wanted) {
            net.add_route(route).await.unwrap();
        }
        let found = net.routes(TABLE).await.unwrap();
        for route in &wanted {
            let same = |f: &&Route| {
                (f.destination, f.kind, f.gateway) == (route.destination, route.kind, route.gateway)
            };
            let f = found.iter().find(same).unwrap_or_else(|| panic!("{route} in {found:?}"));
            assert!(route.link.is_none() || f == route, "{f:?} instead of {route:?}");
        }
        assert_eq!(found.len(), wanted.len());
        let main = net.routes(TABLE_MAIN).await.unwrap();
        assert!(
            main.iter().any(|r| r.destination.to_string() == "10.9.0.0/24" && r.protocol == Route::KERNEL)
        );
        for route in wanted.iter().chain(&wanted) {
            net.remove_route(route).await.unwrap();
        }
        assert_eq!(net.routes(TABLE).await.unwrap(), []);
    });
}

#[test]
fn rules_send_marked_packets_another_way() {
    isolated("rules_send_marked_packets_another_way", || async {
        let net = pair().await;
        let (a, b) = (net.link_index("a").await.unwrap(), net.link_index("b").await.unwrap());
        net.add_address("a", "10.9.0.1/24".parse().unwrap()).await.unwrap();
        net.add_address("b", "10.8.0.1/24".parse().unwrap()).await.unwrap();
        let mut all = Route::on_link("0.0.0.0/0".parse().unwrap(), a);
        net.add_route(&all).await.unwrap();
        all.link = Some(b);
        net.add_route(&all.in_table(TABLE)).await.unwrap();
        for family in [Family::V4, Family::V6] {
            let mut unmarked = Rule::new(family, 5001, TABLE);
            (unmarked.mark, unmarked.invert) = (Some((0x485a, u32::MAX)), true);
            let mut specific = Rule::new(family, 5000, TABLE_MAIN);
            specific.suppress_prefix_length = Some(0);
            let mut from = Rule::new(family, 5002, TABLE);
            from.source = Some(if family == Family::V4 { "10.0.0.0/8" } else { "fd00::/8" }.parse().unwrap());
            let wanted = [specific, unmarked, from];
            for rule in wanted.iter().chain(&wanted) {
                net.add_rule(rule).await.unwrap();
            }
            let found = net.rules().await.unwrap();
            for rule in &wanted {
                assert_eq!(found.iter().filter(|f| *f == rule).count(), 1, "{rule:?} in {found:?}");
            }
            if family == Family::V4 {
                let out = "192.0.2.1".parse().unwrap();
                assert_eq!(net.lookup(out, 0).await.unwrap().link, b);
                let marked = net.lookup(out, 0x485a).await.unwrap();
                assert_eq!((marked.link, marked.source), (a, Some("10.9.0.1".parse().unwrap())));
                assert_eq!(net.lookup("10.9.0.7".parse().unwrap(), 0).await.unwrap().link, a);
            }
            for rule in wanted.iter().chain(&wanted) {
                net.remove_rule(rule).await.unwrap();
            }
            assert!(net.rules().await.unwrap().iter().all(|r| r.table != TABLE));
        }
        let nowhere = net.lookup("2001:db8::1".parse().unwrap(), 0).await.unwrap_err();
        assert!(nowhere.to_string().contains("2001:db8::1"), "{nowhere}");
    });
}

#[test]
fn tables_of_nftables_are_replaced_whole() {
    isolated("tables_of_nftables_are_replaced_whole", || async {
        let nft = Nft::default();
        let script = |port: u16| {
            format!(
                "table inet t\ndelete table inet t\ntable inet t {{\n chain c {{\n type filter hook input priority 0;\n \
                 tcp dport {port} counter accept\n }}\n}}\n"
            )
        };
        assert_eq!(nft.table("inet", "t").await.unwrap(), None);
        nft.apply(&script(80)).await.unwrap();
        let first = nft.table("inet", "t").await.unwrap().unwrap();
        nft.apply(&script(80)).await.unwrap();
        assert_eq!(nft.table("inet", "t").await.unwrap().unwrap(), first);
        nft.apply(&script(81)).await.unwrap();
        assert_ne!(nft.table("inet", "t").await.unwrap().unwrap(), first);
        let chains = nft.base_chains().await.unwrap();
        assert!(chains.iter().any(|c| (c.table.as_str(), c.hook.as_str(), c.drops) == ("t", "input", false)));
        // All or nothing.
        let before = nft.table("inet", "t").await.unwrap();
        let broken = format!("{}table inet t {{ chain c {{ no such statement }} }}\n", script(82));
        let error = nft.apply(&broken).await.unwrap_err();
        assert!(error.to_string().contains("nftables refused to apply"), "{error}");
        assert_eq!(nft.table("inet", "t").await.unwrap(), before);
        for _ in 0..2 {
            nft.delete_table("inet", "t").await.unwrap();
            assert_eq!(nft.table("inet", "t").await.unwrap(), None);
        }
    });
}

/// Waits until all that `wanted` names was noticed.
async fn noticed(events: &mut Events, wanted: Changes) {
    let mut seen = Changes::default();
    while seen.or(wanted) != seen {
        seen = seen.or(events.next().await.unwrap());
    }
}

#[test]
fn changes_by_any_hand_are_noticed() {
    isolated("changes_by_any_hand_are_noticed", || async {
        let mut events = Events::open().unwrap();
        assert!(events.sees_nftables());
        let net = pair().await;
        noticed(&mut events, Changes { links: true, ..Changes::default() }).await;
        net.add_address("a", "10.9.0.1/24".parse().unwrap()).await.unwrap();
        noticed(&mut events, Changes { addresses: true, routes: true, ..Changes::default() }).await;
        let rule = Rule::new(Family::V6, 5000, TABLE);
        net.add_rule(&rule).await.unwrap();
        noticed(&mut events, Changes { rules: true, ..Changes::default() }).await;
        Nft::default().apply("table inet t {}\n").await.unwrap();
        noticed(&mut events, Changes { nftables: true, ..Changes::default() }).await;
        Sysctls::default().write("net/ipv4/ip_forward", "1").unwrap();
        noticed(&mut events, Changes { settings: true, ..Changes::default() }).await;
        net.delete_link("a").await.unwrap();
        noticed(&mut events, Changes { links: true, ..Changes::default() }).await;
    });
}

#[test]
fn kernel_settings_are_those_of_the_namespace() {
    isolated("kernel_settings_are_those_of_the_namespace", || async {
        let _net = pair().await;
        let sysctls = Sysctls::default();
        let name = "net/ipv4/ip_forward";
        let before = sysctls.read(name).unwrap();
        let former = sysctls.ensure(name, "1").unwrap();
        assert_eq!(former.is_some(), before != "1");
        assert_eq!(sysctls.read(name).unwrap(), "1");
        assert!(sysctls.per_link("ipv6", "accept_ra").unwrap().contains_key("a"));
        assert!(sysctls.read("net/ipv6/conf/none/accept_ra").unwrap_err().is_absent());
    });
}
