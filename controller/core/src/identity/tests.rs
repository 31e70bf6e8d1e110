use horizon_crds::IdentityPolicy;
use horizon_model::{Factor, FactorKind};
use proptest::prelude::*;

use super::*;

fn factor(kind: FactorKind, name: &str, value: &str) -> Factor {
    Factor { kind, name: name.to_owned(), value: value.to_owned() }
}

/// A whole machine, whose own parts end in `mark`.
fn machine(mark: &str) -> Vec<Factor> {
    use FactorKind::{
        CryptographicAttestation as Tpm, Geolocation as Geo, HardwareFingerprint as Hw,
        NetworkSignature as Net, RuntimeEnvironment as Run,
    };
    let own = |text: &str| format!("{text}-{mark}");
    vec![
        factor(Hw, "dmi/board_serial", &own("board")),
        factor(Hw, "dmi/product_uuid", &own("uuid")),
        factor(Hw, "dmi/sys_vendor", "Example"),
        factor(Hw, "processor/model", "CPU 3000"),
        factor(Hw, "processor/count", "8"),
        factor(Hw, "disk/0/model", "Disk 9"),
        factor(Hw, "disk/0/serial", &own("disk0")),
        factor(Hw, "disk/0/bytes", "1000"),
        factor(Hw, "disk/1/serial", &own("disk1")),
        factor(Hw, "network-card/eth0/address", &own("mac0")),
        factor(Run, "machine-id", "m"),
        factor(Run, "architecture", "x86_64"),
        factor(Run, "kernel", "6.1"),
        factor(Run, "release/ID", "debian"),
        factor(Run, "program/sha256", "p1"),
        factor(Net, "gateways", "192.0.2.1"),
        factor(Geo, "country", "DE"),
        factor(Geo, "city", "Berlin"),
        factor(Geo, "asn", "AS64500"),
        factor(Tpm, "tpm/key", &own("ak")),
        factor(Tpm, "tpm/pcrs", "pcrs"),
    ]
}

fn with(mut factors: Vec<Factor>, name: &str, value: Option<&str>) -> Vec<Factor> {
    let at = factors.iter().position(|f| f.name == name).unwrap();
    match value {
        Some(value) => factors[at].value = value.to_owned(),
        None => drop(factors.remove(at)),
    }
    factors
}

fn verdict(reported: &[Factor]) -> Verdict {
    assess(&machine("a"), reported, &IdentityPolicy::default()).verdict
}

#[test]
fn the_table_of_changes() {
    let base = || machine("a");
    let drop_kind = |kind| base().into_iter().filter(|f| f.kind != kind).collect::<Vec<_>>();
    let cases = [
        ("nothing", base(), Verdict::Same),
        ("another order", base().into_iter().rev().collect(), Verdict::Same),
        ("a kernel", with(base(), "kernel", Some("6.18")), Verdict::Minor),
        ("the program", with(base(), "program/sha256", Some("p2")), Verdict::Minor),
        ("a disk lost", with(base(), "disk/1/serial", None), Verdict::Minor),
        ("a disk replaced", with(base(), "disk/0/serial", Some("new")), Verdict::Minor),
        ("a network card replaced", with(base(), "network-card/eth0/address", Some("new")), Verdict::Minor),
        ("a city", with(base(), "city", Some("Hamburg")), Verdict::Minor),
        ("where it is is not known", drop_kind(FactorKind::Geolocation), Verdict::Same),
        ("another country", with(base(), "country", Some("FR")), Verdict::Significant),
        ("another TPM", with(base(), "tpm/key", Some("other")), Verdict::Significant),
        ("no TPM", drop_kind(FactorKind::CryptographicAttestation), Verdict::Significant),
        ("firmware", with(base(), "tpm/pcrs", Some("other")), Verdict::Minor),
        ("the disks in another machine", machine("b"), Verdict::Significant),
        ("nothing is known any more", Vec::new(), Verdict::Significant),
    ];
    for (what, reported, expected) in cases {
        assert_eq!(verdict(&reported), expected, "{what}");
    }
}

#[test]
fn a_system_moved_to_another_machine_is_significant_without_a_tpm() {
    let without = |mark| -> Vec<_> {
        machine(mark).into_iter().filter(|f| f.kind != FactorKind::CryptographicAttestation).collect()
    };
    // The disks came along.
    let mut moved = without("b");
    moved.retain(|f| !f.name.starts_with("disk/"));
    moved.extend(without("a").into_iter().filter(|f| f.name.starts_with("disk/")));
    let found = assess(&without("a"), &moved, &IdentityPolicy::default());
    assert_eq!(found.verdict, Verdict::Significant, "{found:?}");
}

#[test]
fn disks_and_cards_are_the_same_in_other_places() {
    let mut moved = machine("a");
    for factor in &mut moved {
        factor.name = factor
            .name
            .replace("disk/0/", "disk/x/")
            .replace("disk/1/", "disk/0/")
            .replace("disk/x/", "disk/1/")
            .replace("eth0", "enp3s0");
    }
    assert_eq!(verdict(&moved), Verdict::Same);
}

#[test]
fn changes_say_what_was_and_what_is() {
    let reported = with(machine("a"), "disk/1/serial", Some("new"));
    let found = assess(&machine("a"), &reported, &IdentityPolicy::default());
    assert_eq!(found.changes.len(), 1);
    let change = &found.changes[0];
    assert_eq!(change.name, "disk/1");
    assert_eq!((change.from.as_deref(), change.to.as_deref()), (Some("disk1-a"), Some("new")));
    assert_eq!(found.drift, Drift(10), "half of the disks of a machine of weight 95");
}

#[test]
fn of_a_machine_that_tells_little_each_part_is_more() {
    let hw = |values: &[(&str, &str)]| -> Vec<_> {
        values.iter().map(|(n, v)| factor(FactorKind::HardwareFingerprint, n, v)).collect()
    };
    let base = hw(&[("processor/model", "c"), ("network-card/eth0/address", "n")]);
    let policy = IdentityPolicy::default();
    let judge = |reported: &[Factor]| assess(&base, reported, &policy).verdict;
    assert_eq!(judge(&hw(&[("processor/model", "c"), ("network-card/eth0/address", "x")])), Verdict::Minor);
    assert_eq!(
        judge(&hw(&[("processor/model", "x"), ("network-card/eth0/address", "x")])),
        Verdict::Significant
    );
    // However much else it shows from then on.
    let mut padded = hw(&[("processor/model", "x"), ("network-card/eth0/address", "x")]);
    padded.extend(machine("b"));
    assert_eq!(judge(&padded), Verdict::Significant);
    let only = hw(&[("processor/model", "c")]);
    let other = hw(&[("processor/model", "d")]);
    assert_eq!(assess(&only, &other, &policy).verdict, Verdict::Significant, "all of it is another");
    assert_eq!(assess(&[], &other, &policy).verdict, Verdict::Significant, "nothing was known");
}

#[test]
fn weights_and_threshold_are_the_policys() {
    let reported = with(machine("a"), "country", Some("FR"));
    let mut policy = IdentityPolicy::default();
    policy.weights.country = 0;
    assert_eq!(assess(&machine("a"), &reported, &policy).verdict, Verdict::Minor);
    let reported = with(machine("a"), "kernel", Some("7"));
    policy.significant_change = 2;
    assert_eq!(assess(&machine("a"), &reported, &policy).verdict, Verdict::Significant);
}

#[test]
fn only_what_is_judged_by_itself_joins_the_baseline() {
    let hw: Vec<_> = machine("a").into_iter().filter(|f| f.kind == FactorKind::HardwareFingerprint).collect();
    let base: Vec<_> = hw.iter().filter(|f| !f.name.starts_with("disk/")).cloned().collect();
    let found = assess(&base, &machine("a"), &IdentityPolicy::default());
    assert_eq!((found.verdict, found.drift), (Verdict::Minor, Drift(0)));
    assert!(found.adopted.iter().any(|f| f.name == "tpm/key"));
    assert!(found.adopted.iter().any(|f| f.name == "country"));
    assert!(found.adopted.iter().all(|f| f.kind != FactorKind::HardwareFingerprint));
}

/// A machine as an attacker would show it: of each factor of `a` the value of `b` where `taken` says so.
fn between(a: &[Factor], b: &[Factor], taken: &[bool]) -> Vec<Factor> {
    a.iter().zip(b).zip(taken).map(|((a, b), taken)| if *taken { b.clone() } else { a.clone() }).collect()
}

proptest! {
    #[test]
    fn more_change_is_never_less_significant(
        first in prop::collection::vec(any::<bool>(), 21), more in prop::collection::vec(any::<bool>(), 21),
        known in prop::collection::vec(prop::bool::weighted(0.8), 21),
    ) {
        let keep = |factors: Vec<Factor>| -> Vec<_> {
            factors.into_iter().zip(&known).filter(|(_, known)| **known).map(|(f, _)| f).collect()
        };
        let (a, mut b) = (keep(machine("a")), keep(machine("b")));
        for factor in &mut b {
            factor.value.push_str("-other");
        }
        let both: Vec<_> = first.iter().zip(&more).map(|(x, y)| *x || *y).collect();
        let policy = IdentityPolicy::default();
        let (less, most) = (between(&a, &b, &first), between(&a, &b, &both));
        let (less, most) = (assess(&a, &less, &policy), assess(&a, &most, &policy));
        prop_assert!(less.drift <= most.drift, "{less:?} {most:?}");
        prop_assert!(less.verdict <= most.verdict);
        // Losing is no less than replacing.
        let gone: Vec<_> = a.iter().zip(&first).filter(|(_, gone)| !**gone).map(|(f, _)| f.clone()).collect();
        if gone.iter().any(|f| f.kind == FactorKind::Geolocation) {
            prop_assert!(assess(&a, &gone, &policy).drift >= less.drift);
        }
    }

    /// Steps in any order, each shown for as long as it takes, with whatever else is shown besides: the last step to another
    /// machine is significant, whatever the baseline took in on the way.
    #[test]
    fn no_walk_of_small_steps_ends_at_another_machine(
        order in Just((0..21_usize).collect::<Vec<_>>()).prop_shuffle(),
        known in prop::collection::vec(prop::bool::weighted(0.7), 21),
        extras in prop::collection::vec(("[a-z]{1,4}", "[a-z]{1,4}"), 0..8),
    ) {
        let keep = |factors: Vec<Factor>| -> Vec<_> {
            factors.into_iter().zip(&known).filter(|(_, known)| **known).map(|(f, _)| f).collect()
        };
        let (start, mut end) = (keep(machine("a")), keep(machine("b")));
        prop_assume!(start.iter().any(|f| f.kind == FactorKind::HardwareFingerprint));
        for factor in &mut end {
            factor.value.push_str("-other");
        }
        let (policy, mut baseline, mut now) = (IdentityPolicy::default(), start.clone(), start.clone());
        let mut noticed = false;
        for step in order.into_iter().filter(|i| *i < start.len()) {
            now[step] = end[step].clone();
            let mut shown = now.clone();
            shown.extend(extras.iter().map(|(n, v)| factor(FactorKind::HardwareFingerprint, &format!("disk/{n}/serial"), v)));
            let found = assess(&baseline, &shown, &policy);
            noticed |= found.verdict == Verdict::Significant;
            if noticed {
                break;
            }
            baseline.extend(found.adopted);
        }
        prop_assert!(noticed);
    }

    #[test]
    fn whatever_is_said_is_judged(
        a in prop::collection::vec((0..5_usize, "[a-z/0-9]{0,12}", "[a-z]{0,3}"), 0..40),
        b in prop::collection::vec((0..5_usize, "[a-z/0-9]{0,12}", "[a-z]{0,3}"), 0..40),
    ) {
        const KINDS: [FactorKind; 5] = [
            FactorKind::HardwareFingerprint, FactorKind::NetworkSignature, FactorKind::Geolocation,
            FactorKind::CryptographicAttestation, FactorKind::RuntimeEnvironment,
        ];
        let read = |list: &[(usize, String, String)]| -> Vec<_> {
            list.iter().map(|(kind, name, value)| factor(KINDS[*kind], name, value)).collect()
        };
        let (a, b) = (read(&a), read(&b));
        let policy = IdentityPolicy::default();
        prop_assert_eq!(assess(&a, &a, &policy).drift, Drift(0));
        prop_assert!(assess(&a, &a, &policy).changes.is_empty());
        let _ = assess(&a, &b, &policy);
    }
}
