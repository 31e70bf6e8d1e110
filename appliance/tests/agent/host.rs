//! The host: brought to the state, repaired, left as it was found.

use horizon_hostnet::{Events, Net, Nft, Sysctls, TABLE_MAIN};
use horizon_model::EntryId;
use nix::sys::signal::Signal;

use crate::{
    kit::{Controller, Neighbour, Program, enrolled, isolated, sh, status, until},
    states::{base, free_port, session},
};

const FORWARD: &str = "net/ipv4/ip_forward";

pub(crate) async fn has_address(net: &Net, address: &str) -> bool {
    let Some(link) = net.link("hzn0").await.unwrap() else { return false };
    let address: ipnet::IpNet = address.parse().unwrap();
    link.up && net.addresses().await.unwrap().iter().any(|a| a.link == link.index && a.network == address)
}

pub(crate) async fn has_route(net: &Net, range: &str) -> bool {
    let Some(link) = net.link("hzn0").await.unwrap() else { return false };
    let range: ipnet::IpNet = range.parse().unwrap();
    net.routes(TABLE_MAIN).await.unwrap().iter().any(|r| r.link == Some(link.index) && r.destination == range)
}

pub(crate) async fn has_table() -> bool {
    Nft::default().table("inet", "horizon").await.unwrap().is_some()
}

/// Everything that the base state asks for.
pub(crate) async fn in_force(net: &Net) -> bool {
    has_address(net, "10.64.0.1/16").await
        && has_address(net, "fd00:a::1/64").await
        && has_route(net, "10.64.0.0/16").await
        && has_route(net, "fd00:a::/64").await
        && has_table().await
        && Sysctls::default().read(FORWARD).unwrap() == "1"
        && net.link("hzn0").await.unwrap().is_some_and(|l| l.mtu == 1420)
}

/// Nothing of Horizon.
pub(crate) async fn as_found(net: &Net) -> bool {
    let settings = [FORWARD, "net/ipv6/conf/all/forwarding"].map(|s| Sysctls::default().read(s).unwrap());
    net.link("hzn0").await.unwrap().is_none() && !has_table().await && settings == ["0", "0"]
}

#[test]
fn drift_is_repaired_restarts_go_on_and_stopping_leaves_nothing() {
    isolated("host::drift_is_repaired_restarts_go_on_and_stopping_leaves_nothing", || async {
        Sysctls::default().write(FORWARD, "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change([base(free_port()), vec![session(1, "10.64.0.2/32")]].concat());
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        let program = Program::run(&state);
        let (mut peer, attach) = controller.attach().await;
        assert_eq!((attach.generation, attach.digest.len()), (0, 0));
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 1).await;
        assert_eq!(report.problems, []);
        assert_eq!(report.digest, Some(controller.state.entries.digest()));
        assert!(in_force(&net).await);

        for harm in [
            "ip link delete hzn0",
            "ip address delete 10.64.0.1/16 dev hzn0",
            "ip -6 address delete fd00:a::1/64 dev hzn0",
            "ip route delete 10.64.0.0/16 dev hzn0",
            "ip -6 route delete fd00:a::/64 dev hzn0",
            "ip link set hzn0 mtu 1300",
            "ip link set hzn0 down",
            "nft delete table inet horizon",
            "nft flush chain inet horizon forward",
            "sysctl -qw net.ipv4.ip_forward=0",
        ] {
            let before = status(&state).await.state.repairs;
            sh(harm);
            let started = tokio::time::Instant::now();
            until(&mut events, harm, || async {
                in_force(&net).await && status(&state).await.state.repairs > before
            })
            .await;
            let took = started.elapsed();
            assert!(took.as_secs_f32() < 2.0, "{harm}: {took:?}");
        }
        // An address that nobody declared goes.
        sh("ip address add 192.0.2.1/32 dev hzn0");
        until(&mut events, "foreign address", || async { !has_address(&net, "192.0.2.1/32").await }).await;

        // Killed, with the controller gone: the last good state comes back from disk.
        drop((peer, controller));
        program.signal(Signal::SIGKILL);
        program.ended().await;
        until(&mut events, "the device vanishes with its process", || async {
            net.link("hzn0").await.unwrap().is_none()
        })
        .await;
        let program = Program::run(&state);
        until(&mut events, "the state from disk", || in_force(&net)).await;
        let now = status(&state).await;
        assert_eq!((now.state.generation, now.sessions.len(), now.controller.connected), (1, 1, false));

        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
        assert!(as_found(&net).await);
    });
}

#[test]
fn nothing_is_open_without_the_packet_filter() {
    isolated("host::nothing_is_open_without_the_packet_filter", || async {
        Sysctls::default().write(FORWARD, "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change([base(free_port()), vec![session(1, "10.64.0.2/32")]].concat());
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        // The real program, until the file `broken` is there.
        let (nft, real, broken) =
            (dir.path().join("fake"), dir.path().join("nft"), dir.path().join("broken"));
        std::fs::copy("/usr/sbin/nft", &real).unwrap();
        let script = format!(
            "#!/bin/sh\n[ -e {} ] && {{ echo no such kernel >&2; exit 1; }}\nexec {} \"$@\"\n",
            broken.display(),
            real.display()
        );
        std::fs::write(&nft, script).unwrap();
        sh(&format!("chmod 755 {}", nft.display()));
        std::fs::write(&broken, "").unwrap();

        let program = Program::run_with_nft(&state, &nft);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 1).await;
        let problem = |id: EntryId| report.problems.iter().find(|p| p.entry == id).unwrap().message.as_str();
        assert!(problem(EntryId::egress()).contains("no such kernel"));
        assert!(problem(session(1, "10.64.0.2/32").0).contains("waits for the packet filter"));
        assert!(report.sessions.is_empty() && as_found(&net).await);

        // It is tried again.
        std::fs::remove_file(&broken).unwrap();
        until(&mut events, "the whole state", || in_force(&net)).await;
        let report = peer.report(|r| r.problems.is_empty()).await;
        assert_eq!(report.sessions.len(), 1);

        // What is open is shut when the filter goes and does not come back.
        std::fs::write(&broken, "").unwrap();
        sh("nft delete table inet horizon");
        until(&mut events, "as it was found", || as_found(&net)).await;
        // A session that ends does end.
        controller.change(base(free_port()));
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 2).await;
        assert!(report.sessions.is_empty(), "{report:?}");
        std::fs::remove_file(&broken).unwrap();
        until(&mut events, "the whole state", || in_force(&net)).await;

        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
        assert!(as_found(&net).await);
    });
}

#[test]
fn a_host_that_was_no_router_routes_for_the_tunnel_only() {
    isolated("host::a_host_that_was_no_router_routes_for_the_tunnel_only", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change(base(free_port()));
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        let (one, two, guest) =
            (Neighbour::new("lan0", 1), Neighbour::new("lan1", 2), Neighbour::new("docker9", 3));
        for (found, reaches) in [("1", true), ("0", false)] {
            Sysctls::default().write(FORWARD, found).unwrap();
            assert_eq!(one.reaches(&two), reaches, "before, with {found}");
            let program = Program::run(&state);
            let (mut peer, _) = controller.attach().await;
            peer.say(0, controller.snapshot()).await;
            peer.report(|r| r.generation == 1 && r.problems.is_empty()).await;
            until(&mut events, "the whole state", || in_force(&net)).await;
            assert_eq!(one.reaches(&two), reaches, "between two networks, with {found}");
            assert_eq!(one.reaches(&guest), reaches, "toward a guest, with {found}");
            assert!(guest.reaches(&two), "a guest goes out, with {found}");
            program.signal(Signal::SIGTERM);
            assert!(program.ended().await);
            assert_eq!(Sysctls::default().read(FORWARD).unwrap(), found);
        }
    });
}
