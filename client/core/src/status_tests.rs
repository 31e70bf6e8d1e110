use horizon_model::Capability;
use uuid::Uuid;

use super::*;

fn status() -> Status {
    Status {
        phase: Phase::Connected,
        failure: None,
        device: Some(DeviceView {
            user: "ana".into(),
            name: "laptop".into(),
            id: DeviceId(Uuid::from_u128(1)),
        }),
        server: Some("paris-1".into()),
        moved: None,
        session: Some(SessionView {
            id: SessionId(Uuid::from_u128(2)),
            since: "2026-11-20T06:00:00Z".parse().unwrap(),
            seconds: 3_725,
            remote: Some("203.0.113.9:7443".parse().unwrap()),
            rtt_micros: Some(12_345),
            pathless_seconds: None,
            confirm_seconds: Some(21),
            addresses: vec!["100.64.0.5/32".parse().unwrap()],
            routes: vec!["0.0.0.0/0".parse().unwrap()],
            dns: vec!["9.9.9.9".parse().unwrap()],
            networks: Vec::new(),
            mtu: 1420,
            bytes_sent: 1_500,
            bytes_received: 5 << 20,
            violations: BTreeMap::from([("unsolicited".into(), 3)]),
        }),
        key_notice: None,
        controller: ControllerView {
            state: ControllerState::Connected,
            address: Some("203.0.113.8:7440".parse().unwrap()),
            detail: String::new(),
        },
        version: "0.1.0".into(),
    }
}

#[test]
fn a_status_reads_well() {
    let expected = "\
status       connected
server       paris-1
since        2026-11-20 06:00:00 UTC (1 h 2 min)
path         203.0.113.9:7443, round trip 12.3 ms
addresses    100.64.0.5/32
routes       0.0.0.0/0
resolvers    9.9.9.9
sent         1.4 KiB
received     5.0 MiB
dropped      3 unsolicited
confirm      reverted in 21 s unless you run: horizon confirm
device       laptop of ana
controller   connected to 203.0.113.8:7440
";
    assert_eq!(status().text(), expected);
}

#[test]
fn the_json_form_is_stable_and_returns() {
    let json = serde_json::to_value(status()).unwrap();
    assert_eq!(json["phase"], "connected");
    assert_eq!(json["session"]["remote"], "203.0.113.9:7443");
    assert_eq!(json["session"]["bytesReceived"], 5 << 20);
    assert_eq!(json["session"]["violations"]["unsolicited"], 3);
    assert_eq!(json["controller"]["state"], "connected");
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status());
}

#[test]
fn before_a_key_is_added_the_status_says_how() {
    let fresh = Status {
        phase: Phase::Failed,
        failure: Some(Failure::failed("it broke", "mend it")),
        device: None,
        server: None,
        session: None,
        key_notice: None,
        controller: ControllerView::default(),
        ..status()
    };
    let text = fresh.text();
    assert!(text.contains("horizon key add"), "{text}");
    assert!(text.ends_with("reason       it broke\n             mend it\n"), "{text}");
}

#[test]
fn quantities_are_rounded_for_people() {
    for (seconds, expected) in
        [(0, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3_600, "1 h"), (90_061, "1 d 1 h")]
    {
        assert_eq!(duration(seconds), expected);
    }
    for (count, expected) in
        [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1_536, "1.5 KiB"), (u64::MAX, "15.9 EiB")]
    {
        assert_eq!(bytes(count), expected);
    }
}

#[test]
fn servers_are_a_table() {
    let list = [
        ServerView {
            name: "paris-1".into(),
            available: true,
            reason: String::new(),
            capabilities: vec![Capability::Vpn, Capability::LanEmulation],
            location: "Paris, FR".into(),
            networks: vec!["games".into()],
        },
        ServerView {
            name: "b".into(),
            available: false,
            reason: "offline".into(),
            capabilities: Vec::new(),
            location: String::new(),
            networks: Vec::new(),
        },
    ];
    let expected = "\
SERVER    STATE                  LOCATION    CAPABILITIES        NETWORKS
paris-1   available              Paris, FR   vpn,lan_emulation   games
b         unavailable: offline   -           -                   -
";
    assert_eq!(servers(&list), expected);
}

#[test]
fn a_conflict_names_who_where_and_how_long() {
    let held = SessionConflict {
        session: SessionId(Uuid::from_u128(2)),
        device_name: "desktop".into(),
        server_name: "paris-1".into(),
        since: "2026-11-20T06:00:00Z".parse().unwrap(),
    };
    let text = conflict(&held, "2026-11-20T06:02:05Z".parse().unwrap());
    assert_eq!(text, "Your device desktop has been connected to paris-1 for 2 min 5 s.");
}
