//! The lab itself: what every other end-to-end test takes for granted.

use std::time::Duration;

use horizon_tests::lab::{Lab, eventually};
use horizon_tests::services::{NameServer, UdpEcho, WebServer, http_get, resolve, udp_ask};

#[test]
fn a_public_host_is_seen_with_its_own_addresses() {
    let mut lab = Lab::new().unwrap();
    let (web, visitor) = (lab.public_host("web").unwrap(), lab.public_host("visitor").unwrap());
    let server = WebServer::start(&web).unwrap();
    assert_eq!(http_get(&visitor, web.v4()).unwrap(), visitor.v4().to_string());
    assert_eq!(http_get(&visitor, web.v6()).unwrap(), visitor.v6().to_string());
    assert_eq!(server.visitors(), [visitor.v4(), visitor.v6()]);
}

#[test]
fn a_host_at_home_is_seen_with_the_routers_address_and_cannot_be_reached() {
    let mut lab = Lab::new().unwrap();
    let web = lab.public_host("web").unwrap();
    let mut home = lab.home("home").unwrap();
    let laptop = home.host("laptop").unwrap();
    WebServer::start(&web).unwrap();
    assert_eq!(http_get(&laptop, web.v4()).unwrap(), home.router().v4().to_string());
    assert_eq!(http_get(&laptop, web.v6()).unwrap(), laptop.v6().to_string());

    let echo = UdpEcho::start(&web, web.v4()).unwrap();
    assert_eq!(
        udp_ask(&laptop, echo.address(), b"hello", Duration::from_secs(5)).unwrap().unwrap(),
        b"hello"
    );
    let inside = UdpEcho::start(&laptop, laptop.v6()).unwrap();
    assert_eq!(udp_ask(&web, inside.address(), b"hello", Duration::from_millis(200)).unwrap(), None);
}

#[test]
fn a_host_can_have_tun_devices_and_its_own_firewall() {
    let lab = Lab::new().unwrap();
    let host = lab.bare_host("host").unwrap();
    let before = host.network_picture().unwrap();
    host.ip("tuntap add tun0 mode tun").unwrap();
    host.ip("addr add 10.0.0.1/24 dev tun0").unwrap();
    host.cmd("nft", ["add", "table", "inet", "mine"]).ok().unwrap();
    assert_ne!(host.network_picture().unwrap(), before);
    host.ip("link del tun0").unwrap();
    host.cmd("nft", ["delete", "table", "inet", "mine"]).ok().unwrap();
    assert_eq!(host.network_picture().unwrap(), before);
}

#[test]
fn each_host_has_its_own_name_files_and_resolver() {
    let mut lab = Lab::new().unwrap();
    let (one, two) = (lab.public_host("one").unwrap(), lab.public_host("two").unwrap());
    let names = NameServer::start(&one, [192, 0, 2, 7].into()).unwrap();
    let real = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // As programs do it: a new file, renamed over the old one.
    two.write("/etc/resolv.conf.new", format!("nameserver {}\n", one.v4())).unwrap();
    two.run(|| std::fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf")).unwrap();
    assert_eq!(resolve(&two, "example.org").unwrap(), Some([192, 0, 2, 7].into()));
    assert_eq!(names.askers(), [two.v4()]);
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), real);
    assert_ne!(one.read("/etc/resolv.conf").unwrap(), two.read("/etc/resolv.conf").unwrap());
    assert_ne!(one.read("/etc/machine-id").unwrap(), two.read("/etc/machine-id").unwrap());
    assert_eq!(two.cmd("hostname", [""; 0]).ok().unwrap().trim(), "two");
}

#[test]
fn processes_are_heard_signalled_and_end_with_their_host() {
    let lab = Lab::new().unwrap();
    let host = lab.bare_host("host").unwrap();
    let mut echo =
        host.cmd("sh", ["-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"]);
    echo = echo.env("UNUSED", "1");
    let mut process = echo.spawn("echo").unwrap();
    process.wait_for("up").unwrap();
    assert_eq!(process.stop().unwrap().code(), Some(3));
    assert!(process.log().ends_with("bye\n"));

    let sleeper = host.cmd("sleep", ["1000"]).spawn("sleeper").unwrap();
    let path = format!("/proc/{}/comm", sleeper.pid());
    eventually("setpriv has become sleep", || {
        (std::fs::read_to_string(&path).ok()? == "sleep\n").then_some(())
    })
    .unwrap();
    drop(host);
    eventually("the sleeper is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.pid())).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .unwrap();
}

#[test]
fn failures_say_where_and_why() {
    let lab = Lab::new().unwrap();
    let host = lab.bare_host("host").unwrap();
    let error = host.cmd("sh", ["-c", "echo no such luck >&2; exit 7"]).ok().unwrap_err().to_string();
    assert!(error.contains("[host] sh") && error.contains("no such luck"), "{error}");
    assert!(host.cmd("sh", ["-c", "echo refused; exit 1"]).refused().unwrap().contains("refused"));
    assert_eq!(host.cmd("cat", [""; 0]).stdin("words").ok().unwrap(), "words");
    assert!(host.cmd("sleep", ["1000"]).limit(Duration::from_millis(50)).run().is_err());
}
