//! The appliance brings its host back, and leaves it as it was found.

use horizon_tests::lab::{Host, difference, within};
use horizon_tests::products::World;

use super::{PROMPTLY, seen_by};

/// Does something to the appliance's host by hand, and expects the old picture back.
fn undone(world: &World, what: &str, damage: impl FnOnce(&Host)) {
    let host = world.appliance.host();
    let before = picture(host);
    damage(host);
    // Repair may already have happened here.
    let back = within(PROMPTLY, what, || (picture(host) == before).then_some(()));
    back.unwrap_or_else(|error| panic!("{error}\n{}", difference(&before, &picture(host))));
}

/// The host's network without what changes by itself: numbers of links, counters, handles.
fn picture(host: &Host) -> String {
    let links = host.ip_show("-o -br link").unwrap();
    let addresses = host.ip_show("-o -br addr").unwrap();
    let routes = host.ip_show("route show table all").unwrap();
    let routes6 = host.ip_show("-6 route show table all").unwrap();
    let tables = host.cmd("nft", ["--stateless", "list", "ruleset"]).ok().unwrap();
    let text = format!("{links}{addresses}{routes}{routes6}{tables}");
    // A TUN device's link-local address is random and not the appliance's, and routes come in any order.
    let words = |line: &str| {
        line.split_whitespace().filter(|w| !w.starts_with("fe80:")).collect::<Vec<_>>().join(" ")
    };
    let known =
        |line: &&str| !line.starts_with("fe80:") && !line.contains("local fe80:") && !line.contains("ff00::");
    let mut lines: Vec<_> = text.lines().filter(known).map(words).collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn what_is_deleted_by_hand_comes_back() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let device = world.appliance.device().unwrap();
    undone(&world, "the nftables table is back", |host| {
        let tables = host.cmd("nft", ["list", "tables"]).ok().unwrap();
        let table = tables.lines().next().unwrap().to_owned();
        host.cmd("nft", format!("delete {table}").split_whitespace()).ok().unwrap();
    });
    let shown = world.appliance.host().ip_show(&format!("-o addr show dev {device} scope global")).unwrap();
    let addresses: Vec<_> = shown.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(addresses.len(), 2, "{shown}");
    for address in addresses {
        undone(&world, "the address is back", |host| {
            host.ip(&format!("addr del {address} dev {device}")).unwrap();
        });
    }
    undone(&world, "the addresses are back", |host| {
        host.ip(&format!("addr flush dev {device} scope global")).unwrap()
    });
    undone(&world, "the link is up", |host| host.ip(&format!("link set {device} down")).unwrap());
    undone(&world, "the device is back", |host| host.ip(&format!("link del {device}")).unwrap());
    let egress = Some(world.appliance.host().v4());
    within(PROMPTLY, "traffic flows", || (seen_by(&laptop, world.web_host.v4()) == egress).then_some(()))
        .unwrap();
}

#[test]
fn other_peoples_tables_are_left_alone() {
    let world = World::for_test().unwrap();
    let host = world.appliance.host();
    host.cmd("nft", ["add", "table", "inet", "theirs"]).ok().unwrap();
    undone(&world, "only the own table is back", |host| {
        let tables = host.cmd("nft", ["list", "tables"]).ok().unwrap();
        let table = tables.lines().find(|line| !line.contains("theirs")).unwrap().to_owned();
        host.cmd("nft", format!("delete {table}").split_whitespace()).ok().unwrap();
    });
    assert!(host.cmd("nft", ["list", "tables"]).ok().unwrap().contains("inet theirs"));
}

#[test]
fn stopping_leaves_the_host_as_it_was_found() {
    let mut world = World::for_test().unwrap();
    let other = world.lab.public_host("second").unwrap();
    // The first appliance's host has seen no other state than a fresh host of the same kind.
    let fresh = strip(&other.network_picture().unwrap(), &other);
    world.appliance.process().unwrap().stop().unwrap();
    let left = strip(&world.appliance.host().network_picture().unwrap(), world.appliance.host());
    assert_eq!(left, fresh);
}

/// A picture without what tells one host from another.
fn strip(picture: &str, host: &Host) -> String {
    let picture = picture.replace(&host.v4().to_string(), "V4").replace(&host.v6().to_string(), "V6");
    let known =
        |line: &&str| !line.contains("fe80::") && !line.contains("link/ether") && !line.contains("eth0@");
    let mut lines: Vec<_> = picture.lines().filter(known).collect();
    lines.sort_unstable();
    lines.join("\n")
}
