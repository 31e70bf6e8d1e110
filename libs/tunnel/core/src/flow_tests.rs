use super::*;
use crate::{
    icmp::{self, Refusal},
    test_packets::{echo, tcp, udp},
};
use proptest::prelude::*;

fn send(table: &mut FlowTable, now: Instant, bytes: &[u8]) {
    table.outbound(now, &Packet::parse(bytes).unwrap());
}

fn receive(table: &mut FlowTable, now: Instant, bytes: &[u8]) -> bool {
    table.answers(now, &Packet::parse(bytes).unwrap(), bytes)
}

const US: &str = "10.9.0.2";
const THEM: &str = "192.0.2.7";

#[test]
fn only_answers_come_in() {
    let (mut table, now) = (FlowTable::default(), Instant::now());
    let answer = udp((THEM, 53), (US, 1000), b"answer");
    assert!(!receive(&mut table, now, &answer));
    send(&mut table, now, &udp((US, 1000), (THEM, 53), b"query"));
    assert!(receive(&mut table, now, &answer));
    assert!(!receive(&mut table, now, &udp((THEM, 54), (US, 1000), b"")));
    assert!(!receive(&mut table, now, &udp((THEM, 53), (US, 1001), b"")));
    assert!(!receive(&mut table, now, &tcp((THEM, 53), (US, 1000), 0x10, 1, &[], b"")));
    assert!(!receive(&mut table, now + UDP_TIMEOUT + UDP_TIMEOUT, &answer));
}

#[test]
fn an_opening_segment_is_no_answer() {
    let (mut table, now) = (FlowTable::default(), Instant::now());
    send(&mut table, now, &tcp((US, 1000), (THEM, 22), tcp::SYN, 1, &[], b""));
    assert!(!receive(&mut table, now, &tcp((THEM, 22), (US, 1000), tcp::SYN, 1, &[], b"")));
    assert!(receive(&mut table, now, &tcp((THEM, 22), (US, 1000), tcp::SYN | tcp::ACK, 1, &[], b"")));
}

#[test]
fn tcp_is_remembered_for_long_only_while_open() {
    let (mut table, start) = (FlowTable::default(), Instant::now());
    let data = tcp((THEM, 22), (US, 1000), tcp::ACK, 1, &[], b"data");
    send(&mut table, start, &tcp((US, 1000), (THEM, 22), tcp::SYN, 1, &[], b""));
    assert!(receive(&mut table, start, &data));
    let later = start + Duration::from_secs(3600);
    assert!(receive(&mut table, later, &data));
    assert!(receive(&mut table, later, &tcp((THEM, 22), (US, 1000), tcp::ACK | tcp::FIN, 1, &[], b"")));
    assert!(receive(&mut table, later + Duration::from_secs(60), &data));
    assert!(!receive(&mut table, later + Duration::from_secs(3600), &data));
    // A new connection with the same ports begins anew.
    send(&mut table, later, &tcp((US, 1000), (THEM, 22), tcp::SYN, 1, &[], b""));
    assert!(receive(&mut table, later, &data));
    assert!(receive(&mut table, later + Duration::from_secs(3600), &data));
}

#[test]
fn echo_and_errors_about_known_flows_come_in() {
    for (us, them, request, reply) in [(US, THEM, 8, 0), ("fd00::2", "2001:db8::7", 128, 129)] {
        let (mut table, now) = (FlowTable::default(), Instant::now());
        send(&mut table, now, &echo(us, them, request, 5));
        assert!(receive(&mut table, now, &echo(them, us, reply, 5)));
        assert!(!receive(&mut table, now, &echo(them, us, reply, 6)));
        assert!(!receive(&mut table, now, &echo(them, us, request, 5)));

        let sent = udp((us, 1000), (them, 53), &[0; 100]);
        let packet = Packet::parse(&sent).unwrap();
        let error = icmp::answer(&sent, &packet, Refusal::TooBig { mtu: 1280 }).unwrap();
        assert!(!receive(&mut table, now, &error));
        send(&mut table, now, &sent);
        assert!(receive(&mut table, now, &error));
    }
}

#[test]
fn fragments_of_an_answer_come_in() {
    let (mut table, now) = (FlowTable::default(), Instant::now());
    let mut first = udp((THEM, 53), (US, 1000), &[0; 64]);
    first[6] = 0x20;
    let mut later = first.clone();
    later[7] = 9;
    assert!(!receive(&mut table, now, &later));
    send(&mut table, now, &udp((US, 1000), (THEM, 53), b"query"));
    assert!(receive(&mut table, now, &first));
    assert!(receive(&mut table, now, &later));
    later[4] ^= 1;
    assert!(!receive(&mut table, now, &later));
}

#[test]
fn a_full_table_lets_go_of_what_ends_soonest() {
    let (mut table, start) = (FlowTable::with_capacity(64), Instant::now());
    for port in 0..200u16 {
        let now = start + Duration::from_secs(port.into());
        send(&mut table, now, &udp((US, port), (THEM, 53), b""));
        assert!(table.len() <= 64);
    }
    let now = start + Duration::from_secs(200);
    assert!(receive(&mut table, now, &udp((THEM, 53), (US, 199), b"")));
    assert!(receive(&mut table, now, &udp((THEM, 53), (US, 150), b"")));
    assert!(!receive(&mut table, now, &udp((THEM, 53), (US, 100), b"")));
}

proptest! {
    #[test]
    fn agrees_with_a_list_of_flows(steps in prop::collection::vec((any::<bool>(), 0u16..4, 0u16..3, 0u64..200), 1..60)) {
        let mut table = FlowTable::default();
        let mut now = Instant::now();
        let mut model: Vec<(u16, u16, Instant)> = Vec::new();
        for (outbound, local, remote, pause) in steps {
            now += Duration::from_secs(pause);
            model.retain(|(_, _, end)| *end > now);
            let known = model.iter().position(|(l, r, _)| (*l, *r) == (local, remote));
            if outbound {
                send(&mut table, now, &udp((US, local), (THEM, remote), b""));
                if known.is_none() {
                    model.push((local, remote, now + UDP_TIMEOUT));
                }
            } else {
                prop_assert_eq!(receive(&mut table, now, &udp((THEM, remote), (US, local), b"")), known.is_some());
            }
            if let Some(at) = known {
                model[at].2 = now + UDP_TIMEOUT;
            }
        }
    }
}
