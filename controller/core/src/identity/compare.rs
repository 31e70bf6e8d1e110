//! The comparison itself. See the module's rules.

use std::collections::{BTreeMap, BTreeSet};

use horizon_crds::IdentityPolicy;
use horizon_model::{Factor, FactorKind, IdentityChange};

use super::Class;

/// How far a machine is from the approved one, in points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Drift(pub u16);

/// What a comparison comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is different.
    Same,
    /// Something is, and it is taken note of.
    Minor,
    /// It may be another machine: an approval is needed.
    Significant,
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// The differences, the heaviest first.
    pub changes: Vec<IdentityChange>,
    /// What they weigh together.
    pub drift: Drift,
    /// What that means.
    pub verdict: Verdict,
    /// What the baseline takes in, because it knew nothing of its class. Empty when the verdict is significant.
    pub adopted: Vec<Factor>,
}

/// Points are counted in thousandths, so that a part of a class is not rounded away.
const MILLI: u64 = 1000;
/// Hardware that weighs less than this counts in proportion.
const FULL: u64 = 100;
/// In which proportion at most.
const LEAST: u64 = 50;

/// What is compared as one: a disk, a network card, or a single factor.
struct Item {
    kind: FactorKind,
    name: String,
    text: String,
    /// What makes it the same as another.
    key: String,
}

/// Compares what is reported with the baseline.
pub fn assess(baseline: &[Factor], reported: &[Factor], policy: &IdentityPolicy) -> Assessment {
    let (before, mut after) = (items(baseline), items(reported));
    let place_known = reported.iter().any(|f| f.kind == FactorKind::Geolocation);
    let (mut weighed, mut hardware, mut other) = (Vec::new(), 0, 0);
    let (mut hardware_whole, mut hardware_items, mut hardware_lost) = (0, 0_usize, 0_usize);
    for (class, items) in &before {
        if matches!(class, Class::Country | Class::City | Class::Provider) && !place_known {
            continue;
        }
        let found = after.entry(*class).or_default();
        let mut lost = Vec::new();
        for item in items {
            match found.iter().position(|candidate| candidate.key == item.key) {
                Some(at) => drop(found.swap_remove(at)),
                None => lost.push(item),
            }
        }
        let weight = u64::from(class.weight(&policy.weights)) * MILLI;
        let points = weight * lost.len() as u64 / items.len().max(1) as u64;
        if class.is_hardware() {
            (hardware, hardware_whole) = (hardware + points, hardware_whole + weight);
            (hardware_items, hardware_lost) = (hardware_items + items.len(), hardware_lost + lost.len());
        } else {
            other += points;
        }
        weighed.extend(lost.into_iter().map(|item| (points, change(item, found))));
    }
    let appeared =
        before.keys().all(|class| !class.is_hardware()) && after.keys().any(|class| class.is_hardware());
    let scale = (hardware_whole / MILLI).clamp(LEAST, FULL);
    let drift = (hardware * FULL / scale + other) / MILLI;
    let mut drift = u16::try_from(drift).unwrap_or(u16::MAX);
    if appeared || hardware_items > 0 && hardware_lost == hardware_items {
        drift = drift.max(policy.significant_change);
    }
    // What joined. Items that took the place of a lost one were used up above.
    for item in after.values().flatten() {
        let (name, to) = (item.name.clone(), Some(item.text.clone()));
        weighed.push((0, IdentityChange { kind: item.kind, name, from: None, to }));
    }
    weighed.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
    let changes: Vec<_> = weighed.into_iter().map(|(_, change)| change).collect();
    let verdict = if drift >= policy.significant_change {
        Verdict::Significant
    } else if changes.is_empty() {
        Verdict::Same
    } else {
        Verdict::Minor
    };
    let adopted = match verdict {
        Verdict::Significant => Vec::new(),
        _ => adopted(&before, reported),
    };
    Assessment { changes, drift: Drift(drift), verdict, adopted }
}

/// What the baseline knows nothing of and may take in.
fn adopted(before: &BTreeMap<Class, Vec<Item>>, reported: &[Factor]) -> Vec<Factor> {
    let knows = |factor: &&Factor| {
        let class = Class::of(factor.kind, &factor.name);
        !class.is_hardware() && !before.contains_key(&class)
    };
    reported.iter().filter(knows).cloned().collect()
}

/// A lost item, with what stands in its place now.
fn change(lost: &Item, found: &mut Vec<Item>) -> IdentityChange {
    let instead = found.iter().position(|candidate| candidate.name == lost.name);
    let to = instead.map(|at| found.swap_remove(at).text);
    IdentityChange { kind: lost.kind, name: lost.name.clone(), from: Some(lost.text.clone()), to }
}

fn items(factors: &[Factor]) -> BTreeMap<Class, Vec<Item>> {
    let mut classes: BTreeMap<Class, Vec<Item>> = BTreeMap::new();
    let mut disks: BTreeMap<&str, Vec<&Factor>> = BTreeMap::new();
    // Each factor counts once, however often it is said.
    for factor in factors.iter().collect::<BTreeSet<_>>() {
        let class = Class::of(factor.kind, &factor.name);
        let mut parts = factor.name.splitn(3, '/');
        if class == Class::Disks
            && let Some(number) = parts.nth(1)
        {
            disks.entry(number).or_default().push(factor);
            continue;
        }
        let key = match class {
            // A card is itself under whatever name the kernel gives its link.
            Class::NetworkCards => factor.value.clone(),
            _ => format!("{}\0{}", factor.name, factor.value),
        };
        let name = factor.name.trim_end_matches("/address").to_owned();
        classes.entry(class).or_default().push(Item {
            kind: factor.kind,
            name,
            text: factor.value.clone(),
            key,
        });
    }
    for (number, factors) in disks {
        let part = |name: &str| factors.iter().find(|f| f.name.ends_with(name)).map(|f| f.value.as_str());
        let all: Vec<_> = factors.iter().map(|f| f.value.as_str()).collect();
        let key = match part("/serial") {
            Some(serial) => serial.to_owned(),
            None => all.join("\0"),
        };
        let item = Item {
            kind: FactorKind::HardwareFingerprint,
            name: format!("disk/{number}"),
            text: all.join(" "),
            key,
        };
        classes.entry(Class::Disks).or_default().push(item);
    }
    classes
}

/// The factors that the digest of an identity covers.
pub fn identifying(factors: &[Factor]) -> impl Iterator<Item = &Factor> {
    factors.iter().filter(|f| Class::of(f.kind, &f.name).identifies())
}

/// How sure it is that a factor is what it says, in percent: what is signed by hardware, what only this machine has, what is
/// easily imitated, what a database says of an address.
pub fn confidence(kind: FactorKind, name: &str) -> u8 {
    match Class::of(kind, name) {
        Class::Tpm | Class::Boot => 100,
        Class::Board | Class::Disks | Class::NetworkCards | Class::MachineId => 90,
        Class::Country | Class::Provider => 90,
        Class::Model | Class::Processor | Class::Architecture => 80,
        Class::Program | Class::Image | Class::Kernel | Class::System => 70,
        Class::Network => 60,
        Class::City => 50,
    }
}
