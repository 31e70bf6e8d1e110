use super::*;
use crate::test_packets::{echo, tcp, udp};
use proptest::prelude::*;

fn rule(prefix: &str, protocol: RuleProtocol, ports: &[(u16, u16)]) -> DestinationRule {
    let ports = ports.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect();
    DestinationRule { prefix: prefix.parse().unwrap(), protocol, ports }
}

fn allows(rules: &[DestinationRule], bytes: &[u8]) -> bool {
    DestinationRules::new(rules.to_vec()).unwrap().allow(&Packet::parse(bytes).unwrap())
}

#[test]
fn nothing_is_allowed_unless_said() {
    let to = |address, port| tcp(("10.9.0.2", 40000), (address, port), 2, 1, &[], b"");
    assert!(!allows(&[], &to("10.0.0.1", 443)));
    let web = [rule("10.0.0.0/24", RuleProtocol::Tcp, &[(80, 80), (443, 444)])];
    assert!(allows(&web, &to("10.0.0.1", 444)));
    assert!(!allows(&web, &to("10.0.0.1", 445)));
    assert!(!allows(&web, &to("10.0.1.1", 443)));
    assert!(!allows(&web, &udp(("10.9.0.2", 1), ("10.0.0.1", 443), b"")));
    assert!(!allows(&web, &echo("10.9.0.2", "10.0.0.1", 8, 1)));
    assert!(allows(&[rule("fd00::/8", RuleProtocol::Icmp, &[])], &echo("fd01::1", "fd00::2", 128, 1)));
    assert!(!allows(&[rule("0.0.0.0/0", RuleProtocol::Any, &[])], &echo("fd01::1", "fd00::2", 128, 1)));
}

#[test]
fn later_fragments_follow_the_prefix_alone() {
    let mut later = udp(("10.9.0.2", 1), ("10.0.0.1", 9), &[0; 64]);
    later[6..8].copy_from_slice(&[0x20, 0x10]);
    let ports = [rule("10.0.0.0/24", RuleProtocol::Udp, &[(53, 53)])];
    assert!(allows(&ports, &later));
    assert!(!allows(&[rule("10.0.1.0/24", RuleProtocol::Any, &[])], &later));
    later[6..8].copy_from_slice(&[0x20, 0]); // the first fragment has a port, and it is not allowed
    assert!(!allows(&ports, &later));
}

#[test]
fn lists_are_bounded() {
    let one = rule("::/0", RuleProtocol::Any, &[]);
    assert_eq!(DestinationRules::new(vec![one; MAX_RULES + 1]), Err(RulesError::TooManyRules(MAX_RULES + 1)));
    let many = rule("::/0", RuleProtocol::Tcp, &[(1, 1); MAX_PORT_RANGES + 1]);
    assert_eq!(DestinationRules::new(vec![many]), Err(RulesError::TooManyPorts(MAX_PORT_RANGES + 1)));
}

fn any_rule() -> impl Strategy<Value = DestinationRule> {
    let protocols = prop_oneof![
        Just(RuleProtocol::Any),
        Just(RuleProtocol::Tcp),
        Just(RuleProtocol::Udp),
        Just(RuleProtocol::Icmp)
    ];
    (0u8..4, 24u8..=32, protocols, prop::collection::vec((0u16..8, 0u16..8), 0..3)).prop_map(
        |(host, length, protocol, ports)| rule(&format!("10.0.0.{host}/{length}"), protocol, &ports),
    )
}

proptest! {
    #[test]
    fn agrees_with_a_plain_statement(rules in prop::collection::vec(any_rule(), 0..5), host in 0u8..4, port in 0u16..8, kind in 0u8..3) {
        let destination = format!("10.0.0.{host}");
        let bytes = match kind {
            0 => tcp(("10.9.0.1", 1), (&destination, port), 0x10, 1, &[], b""),
            1 => udp(("10.9.0.1", 1), (&destination, port), b""),
            _ => echo("10.9.0.1", &destination, 8, port),
        };
        let expected = rules.iter().any(|rule| {
            let low = u32::from(host) >> (32 - u32::from(rule.prefix.prefix_len())).min(31);
            let IpAddr::V4(base) = rule.prefix.addr() else { return false };
            let prefix_matches = low == u32::from(base.octets()[3]) >> (32 - u32::from(rule.prefix.prefix_len())).min(31);
            let protocol_matches = match rule.protocol {
                RuleProtocol::Any => true,
                RuleProtocol::Tcp => kind == 0,
                RuleProtocol::Udp => kind == 1,
                RuleProtocol::Icmp => kind == 2,
            };
            let in_range = rule.ports.iter().any(|r| (r.first..=r.last).contains(&port));
            prefix_matches && protocol_matches && (rule.ports.is_empty() || kind < 2 && in_range)
        });
        prop_assert_eq!(allows(&rules, &bytes), expected);
    }
}
