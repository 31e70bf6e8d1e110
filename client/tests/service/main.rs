//! The service and the command line as processes, in namespaces of their own, against a controller and a server that
//! speak the real protocols. Needs a user who may make user namespaces and open /dev/net/tun.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a broken fixture is a failed test, and its log is for people"
)]

mod host;
mod peers;
mod process;

use std::io::{BufRead, BufReader, Write};

use horizon_client_core::{
    journal::Journal,
    plan::{Change, Family},
    session::Phase,
    status::{ControllerState, Status},
};

use crate::{
    host::{Picture, inside},
    peers::{Organisation, full_tunnel},
    process::{Bench, eventually},
};

#[test]
fn a_session_changes_the_host_and_gives_it_back() {
    inside("a_session_changes_the_host_and_gives_it_back", || {
        let organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        let found = Picture::take(&bench.resolv_conf());
        let _service = bench.service(&[]);

        let early = bench.horizon(&["servers"]);
        assert_eq!(early.code, 2, "{early:?}");
        assert!(early.stderr.contains("horizon key add"), "{early:?}");
        let wrong = bench.horizon_with(&["key", "add"], "hzn-key-abc");
        assert_eq!(wrong.code, 2, "{wrong:?}");
        let argv = bench.horizon(&["key", "add", "hzn-key-secret"]);
        assert_eq!(argv.code, 2, "{argv:?}");
        assert!(!argv.stderr.contains("secret"), "{argv:?}");
        let revoked = bench.horizon_with(&["key", "add"], &organisation.wrong_key());
        assert_eq!(revoked.code, 3, "{revoked:?}");
        let added = bench.horizon_with(&["key", "add", "--name", "laptop"], &organisation.key());
        assert_eq!(added.code, 0, "{added:?}");
        assert!(added.stdout.contains("laptop of ana"), "{added:?}");

        let servers = bench.horizon(&["servers"]);
        assert!(servers.stdout.contains("paris-1") && servers.stdout.contains("vpn"), "{servers:?}");
        let refused = bench.horizon(&["connect", "oslo-1"]);
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(refused.stderr.contains("kind = \"AccessPolicy\""), "{refused:?}");
        assert_eq!(Picture::take(&bench.resolv_conf()), found);

        let connected = bench.horizon(&["connect", "paris-1"]);
        assert_eq!(connected.code, 0, "{connected:?}");
        let status = bench.status();
        let session = status.session.as_ref().unwrap();
        assert_eq!(session.remote.unwrap().port(), organisation.tunnel_port());
        assert_eq!(status.controller.state, ControllerState::Connected);
        let during = Picture::take(&bench.resolv_conf());
        assert!(during.has("hzn-client") && during.has("18522"), "{during:#?}");
        assert!(during.has("nameserver 100.64.0.1") && during.has("search example.org"), "{during:#?}");
        assert!(!during.has("nameserver 192.0.2.53"), "{during:#?}");

        // Somebody deletes the device: it comes back with all that leads to it.
        host::delete_link("hzn-client");
        eventually("the device is made again", || {
            let now = Picture::take(&bench.resolv_conf());
            now.has("hzn-client") && now.count("table: 18522") == during.count("table: 18522")
        });

        let ended = bench.horizon(&["disconnect"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
        eventually("the controller hears of the end", || organisation.sessions().is_empty());
        assert_eq!(bench.horizon(&["disconnect"]).code, 0);
    });
}

#[test]
fn a_killed_service_leaves_nothing_behind() {
    inside("a_killed_service_leaves_nothing_behind", || {
        let organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        let found = Picture::take(&bench.resolv_conf());
        let mut service = bench.service(&[]);
        assert_eq!(bench.horizon_with(&["key", "add"], &organisation.key()).code, 0);
        assert_eq!(bench.horizon(&["connect", "paris-1"]).code, 0);
        let first = bench.status().session.unwrap().id;

        // The supervisor puts the host back and starts the service again, which takes the session up.
        let worker = service.child();
        service.kill_child(worker);
        eventually("another worker", || service.children().iter().any(|c| *c != worker));
        bench.eventually_connected();
        assert_eq!(bench.status().session.unwrap().id, first);

        // Told to stop, it puts the host back and leaves the session granted: the next run takes it up.
        service.stop();
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
        let mut service = bench.service(&[]);
        bench.eventually_connected();
        assert_eq!(bench.status().session.unwrap().id, first);

        // Killed together with its supervisor, it leaves rules and the resolver's file; the next start, or `repair`,
        // puts them back.
        service.kill_all();
        assert_ne!(Picture::take(&bench.resolv_conf()), found);
        let repaired = bench.horizon_repair();
        assert_eq!(repaired.code, 0, "{repaired:?}");
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
        assert!(bench.horizon_repair().stdout.contains("nothing"));
        let _service = bench.service(&["--no-resume"]);
        assert_eq!(bench.status().session, None);
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
    });
}

#[test]
fn nothing_leaves_beside_a_full_tunnel() {
    inside("nothing_leaves_beside_a_full_tunnel", || {
        let organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        // A local network with a router that leads everything to itself, by routes narrower than a default (as DHCP
        // option 121 and RFC 4191 can), and that calls public addresses its own.
        for line in [
            "link add lan type veth peer name router",
            "link set router up",
            "link set lan up",
            "addr add 192.168.1.2/24 dev lan",
            "addr add 198.51.0.2/16 dev lan",
            "addr add 2001:db8:1::2/64 dev lan nodad",
            "route add default via 192.168.1.1",
            "route add 0.0.0.0/1 via 192.168.1.1",
            "route add 128.0.0.0/1 via 192.168.1.1",
            "-6 route add 2000::/3 via 2001:db8:1::1",
        ] {
            host::ip(line);
        }
        let strangers = ["9.9.9.9", "203.0.113.77", "198.51.100.77", "2001:db8::77", "2001:db8:1::77"];
        let leaves_by = |to: &[&str]| to.iter().map(|to| host::leaves_by(to)).collect::<Vec<_>>();
        assert_eq!(leaves_by(&strangers), vec![Some("lan".to_owned()); 5]);

        let mut service = bench.service(&[]);
        assert_eq!(bench.horizon_with(&["key", "add"], &organisation.key()).code, 0);
        assert_eq!(bench.horizon(&["connect", "paris-1"]).code, 0);
        let tunnel = Some("hzn-client".to_owned());
        assert_eq!(leaves_by(&strangers), [tunnel.clone(), tunnel.clone(), tunnel, None, None]);
        assert_eq!(
            host::leaves_by("192.168.1.7").as_deref(),
            Some("lan"),
            "the local network stays reachable"
        );

        // The session is granted anew with other resolvers: the host changes, and stays closed meanwhile.
        let found = Picture::take(&bench.resolv_conf());
        organisation.regrant(vec!["100.64.0.2"]);
        let resolvers = || std::fs::read_to_string(bench.resolv_conf()).unwrap();
        eventually("the new resolver", || {
            for to in strangers {
                assert_ne!(host::leaves_by(to).as_deref(), Some("lan"), "{to}");
            }
            assert!(!resolvers().contains("192.0.2.53"));
            resolvers().contains("nameserver 100.64.0.2")
        });
        bench.eventually_connected();
        assert_eq!(leaves_by(&strangers)[0].as_deref(), Some("hzn-client"));
        let now = Picture::take(&bench.resolv_conf());
        assert_eq!(now.count("18522"), found.count("18522"), "{now:#?}");
        // With none, the host's own come back.
        organisation.regrant(Vec::new());
        eventually("the host's resolver", || {
            assert_ne!(host::leaves_by("9.9.9.9").as_deref(), Some("lan"));
            resolvers().contains("192.0.2.53")
        });
        bench.eventually_connected();

        // Killed together with its supervisor, it leaves the way closed, not open.
        service.kill_all();
        eventually("the device is gone", || host::leaves_by("9.9.9.9").as_deref() != Some("hzn-client"));
        assert_eq!(leaves_by(&strangers), vec![None; 5]);
        assert_eq!(bench.horizon_repair().code, 0);
        assert_eq!(leaves_by(&strangers), vec![Some("lan".to_owned()); 5]);
    });
}

#[test]
fn the_controller_says_no_later_or_nothing_at_all() {
    inside("the_controller_says_no_later_or_nothing_at_all", || {
        let mut organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        let found = Picture::take(&bench.resolv_conf());
        let _service = bench.service(&[]);
        assert_eq!(bench.horizon_with(&["key", "add"], &organisation.key()).code, 0);

        organisation.hold_elsewhere();
        let conflict = bench.horizon(&["connect", "paris-1"]);
        assert_eq!(conflict.code, 5, "{conflict:?}");
        assert!(conflict.stderr.contains("desktop"), "{conflict:?}");
        let taken = bench.horizon(&["connect", "paris-1", "--take-over"]);
        assert_eq!(taken.code, 0, "{taken:?}");

        organisation.end_sessions("the policy no longer allows it");
        eventually("the session's end", || bench.is_at_rest());
        let status = bench.status();
        assert!(status.text().contains("the policy no longer allows it"), "{}", status.text());
        assert_eq!(Picture::take(&bench.resolv_conf()), found);

        // Whoever goes away while a connection is being made gives it up.
        let mut impatient = bench.connect();
        impatient.write_all(b"{\"request\":\"connect\",\"server\":\"slow-1\"}\n").unwrap();
        eventually("the request", || bench.status().phase == Phase::Requesting);
        drop(impatient);
        eventually("the end of the request", || bench.is_at_rest());

        // Without a controller a session goes on, and a new one is refused with the address that was tried.
        assert_eq!(bench.horizon(&["connect", "paris-1"]).code, 0);
        let address = organisation.stop_controller();
        eventually("the loss is noticed", || bench.status().controller.state == ControllerState::Away);
        assert!(bench.is_connected());
        let away = bench.horizon(&["servers"]);
        assert_eq!(away.code, 4, "{away:?}");
        assert!(away.stderr.contains(&address), "{away:?}");
        assert_eq!(bench.horizon(&["disconnect"]).code, 0);
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
    });
}

#[test]
fn over_ssh_a_connection_is_reverted_unless_confirmed() {
    inside("over_ssh_a_connection_is_reverted_unless_confirmed", || {
        let organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        let found = Picture::take(&bench.resolv_conf());
        let _service = bench.service(&["--confirm-seconds", "2"]);
        assert_eq!(bench.horizon_with(&["key", "add"], &organisation.key()).code, 0);

        let connected = bench.horizon_over_ssh(&["connect", "paris-1"]);
        assert_eq!(connected.code, 0, "{connected:?}");
        assert!(connected.stdout.contains("horizon confirm"), "{connected:?}");
        eventually("the revert", || bench.is_at_rest());
        assert_eq!(Picture::take(&bench.resolv_conf()), found);
        assert!(bench.status().text().contains("not confirmed"));

        assert_eq!(bench.horizon_over_ssh(&["connect", "paris-1"]).code, 0);
        assert_eq!(bench.horizon(&["confirm"]).code, 0);
        assert_eq!(bench.status().session.unwrap().confirm_seconds, None);
        let during = Picture::take(&bench.resolv_conf());
        assert!(during.has("198.51.100.7/32"), "{during:#?}");
        assert_eq!(bench.horizon(&["disconnect"]).code, 0);
        assert_eq!(bench.horizon(&["confirm"]).code, 1);
    });
}

#[test]
fn a_journal_is_undone_as_far_as_it_was_done() {
    inside("a_journal_is_undone_as_far_as_it_was_done", || {
        let bench = Bench::new();
        let found = Picture::take(&bench.resolv_conf());
        let rule = |priority| Change::Rule {
            family: Family::V4,
            priority,
            table: 18522,
            unmarked_only: true,
            ignore_default: false,
            to: None,
        };
        let closed = Change::Route { table: 18522, to: "::/0".parse().unwrap(), device: None, source: None };
        let gone = Change::Address { device: "hzn-client".into(), address: "100.64.0.5/32".parse().unwrap() };
        let journal = Journal::new(vec![gone, closed, rule(18521), rule(18522)], None);
        // Never begun, and half done.
        for made in [
            vec![],
            vec![
                "-6 route add unreachable ::/0 metric 4294967295 table 18522 proto static",
                "rule add not fwmark 0x485a table 18522 priority 18521",
            ],
        ] {
            made.iter().for_each(|line| host::ip(line));
            bench.write_journal(&journal.encode().unwrap());
            let repaired = bench.horizon_repair();
            assert!(repaired.code == 0 && repaired.stdout.contains("was put back"), "{repaired:?}");
            assert_eq!(Picture::take(&bench.resolv_conf()), found);
        }
        // What cannot be read is said, and keeps nobody from working.
        bench.write_journal(b"{\"version\":1,");
        let damaged = bench.horizon_repair();
        assert!(damaged.code == 1 && damaged.stderr.contains("journal.json"), "{damaged:?}");
        let _service = bench.service(&[]);
        assert_eq!(bench.horizon(&["status"]).code, 0);
    });
}

#[test]
fn bad_lines_get_an_answer_and_harm_nobody() {
    inside("bad_lines_get_an_answer_and_harm_nobody", || {
        let bench = Bench::new();
        let _service = bench.service(&[]);
        let long = "x".repeat(100_000);
        for bad in
            ["\n", "{}\n", "{\"request\":\"fly\"}\n", "\u{1}\u{2}\n", "{\"request\":\"connect\"}\n", &long]
        {
            let mut stream = bench.connect();
            // The service may hang up before it has read all of a line that is too long.
            let _ = stream.write_all(bad.as_bytes());
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            let _ = reader.read_line(&mut line);
            if bad.len() < 1000 {
                assert!(line.starts_with("{\"failed\":{\"kind\":\"usage\""), "{bad:?} got {line:?}");
            }
        }
        let mut stream = bench.connect();
        stream.write_all(b"{\"request\":\"status\"}\n{\"request\":\"confirm\"}\n").unwrap();
        let lines: Vec<_> = BufReader::new(&stream).lines().take(2).map(Result::unwrap).collect();
        assert!(lines[0].contains("\"phase\":\"disconnected\""), "{lines:?}");
        assert!(lines[1].starts_with("{\"failed\""), "{lines:?}");
        let status: Status = bench.status();
        assert_eq!(status.session, None);
        // A second service on the same socket is refused; the first is not disturbed.
        let second = bench.horizon_service_again();
        assert_ne!(second.code, 0, "{second:?}");
        assert_eq!(bench.horizon(&["status"]).code, 0);
    });
}

#[test]
fn a_session_goes_on_when_its_device_is_asked_to_use_another_replica() {
    inside("a_session_goes_on_when_its_device_is_asked_to_use_another_replica", || {
        let organisation = Organisation::start(full_tunnel());
        let bench = Bench::new();
        let _service = bench.service(&[]);
        assert_eq!(bench.horizon_with(&["key", "add"], &organisation.key()).code, 0);
        assert_eq!(bench.horizon(&["connect", "paris-1"]).code, 0);
        let first = bench.status().session.unwrap().id;
        let channels = organisation.channels();
        organisation.send_elsewhere();
        eventually("another channel", || {
            organisation.channels() > channels
                && bench.status().controller.state == ControllerState::Connected
        });
        bench.eventually_connected();
        assert_eq!(bench.status().session.unwrap().id, first);
        assert_eq!(organisation.sessions().len(), 1);
    });
}
