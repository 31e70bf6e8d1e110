//! Strategies for resources of every kind.

use std::net::IpAddr;

use horizon_crds::{
    AccessPolicySpec, AnomalyThresholds, ApprovalSpec, BitRate, Cidr, Decision, Destination, DeviceCondition,
    DeviceDecisionSpec, DevicePolicy, DeviceVerdict, Document, DomainName, Egress, EmailAddress, Endpoint,
    IdentityDigest, KeyRevocation, KeyRotationSpec, Layer, Lifecycle, LifecycleState, Lockout,
    MaintenanceWindow, Metadata, Name, PersonalKeySpec, RateLimits, RegistrationKeySpec, Resource,
    RevocationSpec, RevocationTarget, RotationPolicySpec, RotationTarget, RotationType, SecurityPolicySpec,
    ServerLimits, ServerSelector, ServerSpec, Subjects, TargetKind, Text, TimeOfDay, TimeSpan, Timestamp,
    Tunnel, UserSpec, VirtualNetworkSpec, Weekday,
};
use horizon_model::{Capability, Failover, PortRange, Protocol};
use proptest::{collection, option, prelude::*, sample};

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>(text: impl AsRef<str>) -> T {
    let text = text.as_ref();
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error:?}"))
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?".prop_map(parsed)
}

/// Text that is hard to quote.
fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> {
    let odd = sample::select(vec![
        "",
        " ",
        "yes",
        "null",
        "~",
        "1.5",
        "0x1f",
        "02:00",
        "# no",
        "a: b",
        "- a",
        "'",
        "\"",
        "\\",
        "---",
        "{}",
        "&a",
        "ü✓",
        "...",
        "true",
        "2026-01-01",
        "<<",
        "*",
        "!tag",
        "%",
        "@",
        "`",
        "=",
        "a #b",
        ":",
        "?",
        "|",
        ">",
    ]);
    prop_oneof![odd.prop_map(str::to_owned), "[ -~äß✓]{0,24}"].prop_map(|text| Text::lossy(&text))
}

/// Text that is not empty.
fn reason() -> impl Strategy<Value = Text<256>> {
    text::<255>().prop_map(|text| Text::lossy(&format!("{text}.")))
}

fn set<T: Clone + Ord + std::fmt::Debug>(
    item: impl Strategy<Value = T>,
    size: impl Into<collection::SizeRange>,
) -> impl Strategy<Value = Vec<T>> {
    collection::btree_set(item, size).prop_map(|set| set.into_iter().collect())
}

fn v4(prefix: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Cidr> {
    (any::<u32>(), prefix).prop_map(|(bits, prefix)| {
        ipnet::IpNet::new(std::net::Ipv4Addr::from(bits).into(), prefix).unwrap().into()
    })
}

fn v6(prefix: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Cidr> {
    (any::<u128>(), prefix).prop_map(|(bits, prefix)| {
        ipnet::IpNet::new(std::net::Ipv6Addr::from(bits).into(), prefix).unwrap().into()
    })
}

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    prop_oneof![
        v4(8..=30).prop_map(|range| vec![range]),
        (v4(8..=30), v6(32..=126)).prop_map(|(v4, v6)| vec![v6, v4]),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()))
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let domain = "[a-z]{1,8}(\\.[a-z]{2,5}){0,2}".prop_map(parsed::<DomainName>);
    prop_oneof![
        (address(), 1..=u16::MAX).prop_map(|(address, port)| Endpoint::Address(address, port)),
        (domain, 1..=u16::MAX).prop_map(|(domain, port)| Endpoint::Domain(domain, port)),
    ]
}

/// A span of whole seconds in a range of seconds.
fn span(seconds: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = TimeSpan> {
    seconds.prop_map(TimeSpan::from_secs)
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (0_i64..4_000_000_000, 0..1_000_000_000).prop_map(|(s, ns)| jiff::Timestamp::new(s, ns).unwrap().into())
}

fn capabilities(least: usize) -> impl Strategy<Value = Vec<Capability>> {
    set(sample::select(Capability::ALL.to_vec()), least..=6)
}

fn server() -> impl Strategy<Value = ServerSpec> {
    let egress = (any::<bool>(), set(address(), 0..=4), ranges())
        .prop_map(|(masquerade, dns, address_ranges)| Egress { masquerade, dns, address_ranges });
    let tunnel = (1..=u16::MAX, set(endpoint(), 0..=8), 1280_u16..=9000)
        .prop_map(|(port, advertise, mtu)| Tunnel { port, advertise, mtu });
    let rate = (64_u64..=1_000_000).prop_map(|rate| parsed::<BitRate>(format!("{rate}kbit")));
    let limits = (1_u16..=10_000, option::of(rate))
        .prop_map(|(max_sessions, session_rate)| ServerLimits { max_sessions, session_rate });
    let days = sample::subsequence(
        vec![
            Weekday::Monday,
            Weekday::Tuesday,
            Weekday::Wednesday,
            Weekday::Thursday,
            Weekday::Friday,
            Weekday::Saturday,
            Weekday::Sunday,
        ],
        0..=7,
    );
    let start = (0..24, 0..60).prop_map(|(h, m)| parsed::<TimeOfDay>(format!("{h:02}:{m:02}")));
    let window = (days, start, span(600..=86_400)).prop_map(|(days, start, duration)| MaintenanceWindow {
        days,
        start,
        duration,
    });
    let states = vec![LifecycleState::Active, LifecycleState::Maintenance, LifecycleState::Decommissioned];
    let lifecycle =
        (sample::select(states), reason()).prop_map(|(state, reason)| Lifecycle { state, reason });
    (capabilities(0), egress, tunnel, set(name(), 0..5), limits, option::of(window), lifecycle, text())
        .prop_map(
            |(capabilities, egress, tunnel, networks, limits, maintenance_window, lifecycle, location)| {
                ServerSpec {
                    capabilities,
                    egress,
                    tunnel,
                    networks,
                    limits,
                    maintenance_window,
                    lifecycle,
                    location,
                }
            },
        )
}

fn revocation() -> impl Strategy<Value = KeyRevocation> {
    (reason(), any::<bool>()).prop_map(|(reason, compromised)| KeyRevocation { reason, compromised })
}

fn registration_key() -> impl Strategy<Value = RegistrationKeySpec> {
    (name(), span(60..=2_592_000), option::of(revocation())).prop_map(|(server_ref, lifetime, revocation)| {
        RegistrationKeySpec { server_ref, lifetime, revocation }
    })
}

fn user() -> impl Strategy<Value = UserSpec> {
    let email = "[a-zA-Z0-9.+#'{}-]{1,10}@[a-z]{1,8}\\.org".prop_map(parsed::<EmailAddress>);
    (text(), option::of(email), set(name(), 0..5), 1_u8..=100, option::of(text())).prop_map(
        |(display_name, email, groups, device_limit, suspension)| UserSpec {
            display_name,
            email,
            groups,
            device_limit,
            suspended: suspension.is_some(),
            suspension_reason: suspension.unwrap_or_default(),
        },
    )
}

fn personal_key() -> impl Strategy<Value = PersonalKeySpec> {
    let end = prop_oneof![
        Just((None, None)),
        moment().prop_map(|moment| (Some(moment), None)),
        span(60..=315_360_000).prop_map(|span| (None, Some(span))),
    ];
    (name(), end, option::of(name()), option::of(revocation()), text()).prop_map(
        |(user_ref, (expires_at, lifetime), rotation_policy, revocation, notes)| PersonalKeySpec {
            user_ref,
            expires_at,
            lifetime,
            rotation_policy,
            revocation,
            notes,
        },
    )
}

fn destination() -> impl Strategy<Value = Destination> {
    let ports = collection::btree_set(1..=u16::MAX, 0..6).prop_map(|ends| {
        let ends: Vec<u16> = ends.into_iter().collect();
        ends.chunks(2).map(|pair| PortRange::new(pair[0], *pair.last().unwrap()).unwrap()).collect::<Vec<_>>()
    });
    let transport = prop_oneof![
        (sample::select(vec![Protocol::Tcp, Protocol::Udp]), ports),
        (sample::select(vec![Protocol::Any, Protocol::Icmp]), Just(Vec::new())),
    ];
    (prop_oneof![v4(0..=32), v6(0..=128)], transport).prop_map(|(cidr, (protocol, ports))| Destination {
        cidr,
        protocol,
        ports,
    })
}

fn access_policy() -> impl Strategy<Value = AccessPolicySpec> {
    let subjects =
        (set(name(), 0..4), set(name(), 1..4)).prop_map(|(users, groups)| Subjects { users, groups });
    let servers = set(prop_oneof![Just(ServerSelector::Any), name().prop_map(ServerSelector::Named)], 1..5);
    let destinations = collection::vec(destination(), 1..6);
    (subjects, servers, capabilities(1), set(name(), 0..4), destinations, any::<bool>()).prop_map(
        |(subjects, servers, capabilities, networks, destinations, allow_inbound)| AccessPolicySpec {
            devices: DeviceCondition { trusted_only: allow_inbound, ..DeviceCondition::default() },
            subjects,
            servers,
            capabilities,
            networks,
            destinations,
            allow_inbound,
            failover: if allow_inbound { Failover::Required } else { Failover::Allowed },
        },
    )
}

fn virtual_network() -> impl Strategy<Value = VirtualNetworkSpec> {
    let domain = "[a-z]{1,8}(\\.[a-z]{2,5}){0,2}".prop_map(parsed::<DomainName>);
    (ranges(), 1280_u16..=9000, option::of(domain)).prop_map(|(address_ranges, mtu, domain)| {
        VirtualNetworkSpec {
            address_ranges,
            layer: Layer::L3,
            mtu,
            domain,
            broadcast: false,
            multicast: false,
            mdns: false,
            ssdp: false,
            netbios: false,
        }
    })
}

fn security_policy() -> impl Strategy<Value = SecurityPolicySpec> {
    let rates = (1_u32..=100_000, 1_u32..=100_000, 1_u32..=1_000_000).prop_map(
        |(registrations_per_minute, enrolments_per_minute, handshakes_per_minute)| RateLimits {
            registrations_per_minute,
            enrolments_per_minute,
            handshakes_per_minute,
        },
    );
    let lockout = (1_u16..=10_000, span(1..=86_400), span(1..=2_592_000))
        .prop_map(|(threshold, window, duration)| Lockout { threshold, window, duration });
    let anomalies = (1_u16..=1000, 1_u16..=100, 1_u32..=1_000_000).prop_map(
        |(missed_heartbeats, failed_challenges, violations_per_minute)| AnomalyThresholds {
            missed_heartbeats,
            failed_challenges,
            violations_per_minute,
        },
    );
    let blocked = collection::vec(prop_oneof![v4(1..=32), v6(1..=128)], 0..6);
    (rates, lockout, span(10..=86_400), span(1..=300), blocked, anomalies).prop_map(
        |(
            rate_limits,
            lockout,
            challenge_interval,
            heartbeat_interval,
            blocked_networks,
            anomaly_thresholds,
        )| {
            SecurityPolicySpec {
                rate_limits,
                lockout,
                challenge_interval,
                heartbeat_interval,
                blocked_networks,
                anomaly_thresholds,
                devices: DevicePolicy::default(),
                ..SecurityPolicySpec::default()
            }
        },
    )
}

fn approval() -> impl Strategy<Value = ApprovalSpec> {
    (name(), any::<[u8; 32]>(), text()).prop_map(|(server_ref, digest, reason)| ApprovalSpec {
        server_ref,
        identity_digest: IdentityDigest::from(digest),
        decision: Decision::Approve,
        reason,
    })
}

fn revocation_record() -> impl Strategy<Value = RevocationSpec> {
    let kinds =
        vec![TargetKind::Server, TargetKind::PersonalKey, TargetKind::Device, TargetKind::RegistrationKey];
    let target = (sample::select(kinds), name()).prop_map(|(kind, name)| RevocationTarget { kind, name });
    (target, reason(), any::<bool>()).prop_map(|(target, reason, compromised)| RevocationSpec {
        target,
        reason,
        compromised,
    })
}

fn device_decision() -> impl Strategy<Value = DeviceDecisionSpec> {
    use DeviceVerdict as V;
    let decision = sample::select(vec![V::Block, V::Allow, V::Suspect, V::Forget, V::Rename]);
    (name(), decision, reason(), text()).prop_map(|(device, decision, reason, new_name)| DeviceDecisionSpec {
        device,
        decision,
        reason,
        new_name: (decision == V::Rename).then_some(new_name),
    })
}

fn rotation_policy() -> impl Strategy<Value = RotationPolicySpec> {
    let targets = vec![
        RotationTarget::PersonalKeys,
        RotationTarget::VerificationSecrets,
        RotationTarget::ControllerKeys,
        RotationTarget::RelayKeys,
    ];
    let days = sample::subsequence(vec![Weekday::Monday, Weekday::Friday, Weekday::Sunday], 0..=3);
    let spans = (span(864_000..=315_360_000), span(60..=600_000), span(0..=600_000), span(0..=7_000_000));
    let at = option::of((0_u8..24, 0_u8..60));
    (sample::select(targets), spans, at, days, any::<bool>()).prop_map(
        |(target, (every, overlap, jitter, notice), at, weekdays, paused)| RotationPolicySpec {
            target,
            every,
            at: at.map(|(hours, minutes)| format!("{hours:02}:{minutes:02}").parse().unwrap()),
            weekdays,
            overlap,
            jitter,
            notice,
            paused,
        },
    )
}

fn key_rotation() -> impl Strategy<Value = KeyRotationSpec> {
    let kinds = vec![
        RotationType::Scheduled,
        RotationType::Manual,
        RotationType::Emergency,
        RotationType::Compromised,
    ];
    let names =
        || collection::btree_set(name(), 0..4).prop_map(|names| names.into_iter().collect::<Vec<_>>());
    let lists = (names(), names(), names());
    (sample::select(kinds), lists, reason(), option::of(span(60..=600_000))).prop_map(
        |(kind, (names, users, groups), reason, overlap)| KeyRotationSpec {
            target: RotationTarget::PersonalKeys,
            all: names.is_empty() && users.is_empty() && groups.is_empty(),
            names,
            users,
            groups,
            kind,
            reason,
            overlap: overlap.filter(|_| kind == RotationType::Scheduled),
        },
    )
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let key = "([a-z]{1,6}\\.org/)?[a-zA-Z]([a-zA-Z0-9._-]{0,8}[a-zA-Z0-9])?";
    let labels = collection::btree_map(key, "([a-zA-Z0-9]([a-zA-Z0-9._-]{0,8}[a-zA-Z0-9])?)?", 0..4);
    let annotations =
        collection::btree_map(key, text::<64>().prop_map(|text| format!("{text}\n\ttwo lines")), 0..3);
    (name(), name(), labels, annotations).prop_map(|(namespace, name, labels, annotations)| Metadata {
        name,
        namespace,
        labels,
        annotations,
    })
}

fn documented<S: std::fmt::Debug>(spec: impl Strategy<Value = S>) -> impl Strategy<Value = Resource>
where
    Resource: From<Document<S>>,
{
    (metadata(), spec).prop_map(|(metadata, spec)| Document { metadata, spec }.into())
}

/// A valid resource of any kind.
pub(crate) fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        documented(server()),
        documented(registration_key()),
        documented(user()),
        documented(personal_key()),
        documented(access_policy()),
        documented(virtual_network()),
        documented(security_policy()),
        documented(approval()),
        documented(revocation_record()),
        documented(rotation_policy()),
        documented(key_rotation()),
        documented(device_decision()),
    ]
}
