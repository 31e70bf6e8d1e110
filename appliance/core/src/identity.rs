//! Which facts tell this machine from another, and in which form they leave it: what is harmless (a disk's model) as it
//! is, what names the one machine (a serial number, a hardware address) as a digest.

use std::net::IpAddr;

use horizon_model::{Factor, FactorKind};
use horizon_wire::{convert::MAX_FACTORS, key::sha256};

const MAX_NAME_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 256;
/// How many of a kind are named; a storage server has hundreds of disks.
const MAX_OF_A_KIND: usize = 16;
/// Digests are of a labelled value, so that they match nobody else's tables of serial numbers.
const LABEL: &[u8] = b"horizon identity factor v1\0";

/// What was found out about the machine. What could not be read is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Board and chassis by DMI name (`sys_vendor`, `product_name`, `board_serial`, `product_uuid`).
    pub dmi: Vec<(String, String)>,
    /// The processor's model.
    pub processor: Option<String>,
    /// The number of processors.
    pub processors: usize,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network cards and what is like them.
    pub cards: Vec<NetworkCard>,
    /// The next hops of default routes.
    pub gateways: Vec<IpAddr>,
    /// The resolvers.
    pub resolvers: Vec<IpAddr>,
    /// The machine's id, made when its system was installed.
    pub machine_id: Option<String>,
    /// `NAME`, `VERSION_ID` and the like of the system's release file.
    pub release: Vec<(String, String)>,
    /// The same of the image that the system was started from: `IMAGE_ID` and `IMAGE_VERSION`, or `file` for a file's content.
    pub image: Vec<(String, String)>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The processor architecture.
    pub architecture: String,
    /// SHA-256 of the running program, in hexadecimal.
    pub program: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its model, where it tells one.
    pub model: Option<String>,
    /// Its serial number, where it tells one.
    pub serial: Option<String>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkCard {
    /// The link's name.
    pub link: String,
    /// Its hardware address.
    pub address: Vec<u8>,
}

/// Whether a link is made by programs for themselves (this appliance's device, containers, other tunnels) and says
/// nothing lasting about the machine.
pub fn is_own_or_passing(link: &str) -> bool {
    const PREFIXES: [&str; 14] = [
        "hzn", "veth", "docker", "br-", "virbr", "vnet", "cni", "flannel", "cali", "lxc", "lxd", "tun",
        "tap", "wg",
    ];
    link == "lo" || PREFIXES.iter().any(|p| link.starts_with(p))
}

/// The factors, named and in order, at most as many as a message carries.
pub fn describe(facts: &Facts) -> Vec<Factor> {
    let mut list = Factors::default();
    let hardware = FactorKind::HardwareFingerprint;
    for (name, value) in &facts.dmi {
        list.add(hardware, &format!("dmi/{name}"), value, names_one_machine(name));
    }
    if let Some(processor) = &facts.processor {
        list.add(hardware, "processor/model", processor, false);
    }
    if facts.processors > 0 {
        list.add(hardware, "processor/count", &facts.processors.to_string(), false);
    }
    let mut disks: Vec<_> = facts.disks.iter().collect();
    disks.sort_by(|a, b| (&a.serial, &a.model, a.bytes).cmp(&(&b.serial, &b.model, b.bytes)));
    for (i, disk) in disks.into_iter().take(MAX_OF_A_KIND).enumerate() {
        if let Some(model) = &disk.model {
            list.add(hardware, &format!("disk/{i}/model"), model, false);
        }
        if let Some(serial) = &disk.serial {
            list.add(hardware, &format!("disk/{i}/serial"), serial, true);
        }
        list.add(hardware, &format!("disk/{i}/bytes"), &disk.bytes.to_string(), false);
    }
    let network = FactorKind::NetworkSignature;
    let mut cards: Vec<_> = facts.cards.iter().filter(|c| !is_own_or_passing(&c.link)).collect();
    cards.sort_by(|a, b| a.link.cmp(&b.link));
    for card in cards.iter().take(MAX_OF_A_KIND) {
        let address: Vec<_> = card.address.iter().map(|b| format!("{b:02x}")).collect();
        list.add(hardware, &format!("network-card/{}/address", card.link), &address.join(":"), true);
    }
    let links: Vec<_> = cards.iter().map(|c| c.link.as_str()).collect();
    list.add(network, "links", &links.join(" "), false);
    for (name, addresses) in [("gateways", &facts.gateways), ("resolvers", &facts.resolvers)] {
        let mut texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        texts.sort();
        texts.dedup();
        list.add(network, name, &texts.join(" "), false);
    }
    let runtime = FactorKind::RuntimeEnvironment;
    if let Some(id) = &facts.machine_id {
        list.add(runtime, "machine-id", id, true);
    }
    for (name, value) in &facts.release {
        list.add(runtime, &format!("release/{name}"), value, false);
    }
    for (name, value) in &facts.image {
        list.add(runtime, &format!("image/{name}"), value, false);
    }
    if let Some(kernel) = &facts.kernel {
        list.add(runtime, "kernel", kernel, false);
    }
    list.add(runtime, "architecture", &facts.architecture, false);
    if let Some(program) = &facts.program {
        list.add(runtime, "program/sha256", program, false);
    }
    list.0.sort();
    list.0.truncate(MAX_FACTORS);
    list.0
}

fn names_one_machine(dmi: &str) -> bool {
    dmi.ends_with("_serial") || dmi.ends_with("_uuid") || dmi.ends_with("_tag")
}

/// What makers leave in place of a value.
fn is_placeholder(value: &str) -> bool {
    const EMPTY: [&str; 11] = [
        "",
        "none",
        "0",
        "default string",
        "not specified",
        "not applicable",
        "system serial number",
        "to be filled by o.e.m.",
        "unknown",
        "n/a",
        "00:00:00:00:00:00",
    ];
    EMPTY.contains(&value.to_ascii_lowercase().as_str())
}

#[derive(Default)]
struct Factors(Vec<Factor>);

impl Factors {
    fn add(&mut self, kind: FactorKind, name: &str, value: &str, hash: bool) {
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        let value = value.trim();
        if is_placeholder(value) {
            return;
        }
        let value = if hash {
            let labelled = [LABEL, unplaced(name).as_bytes(), b"\0", value.as_bytes()].concat();
            format!("sha256:{}", sha256(&labelled))
        } else {
            cut(value, MAX_VALUE_BYTES)
        };
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        self.0.push(Factor { kind, name: cut(&name, MAX_NAME_BYTES), value });
    }
}

/// The name without its number or link: a disk in another place, or a card under another name, is the same one.
fn unplaced(name: &str) -> String {
    let mut parts: Vec<_> = name.split('/').collect();
    if parts.len() == 3 {
        parts.remove(1);
    }
    parts.join("/")
}

/// The longest beginning of at most `limit` bytes.
fn cut(text: &str, limit: usize) -> String {
    text.chars()
        .scan(0, |used, c| {
            *used += c.len_utf8();
            (*used <= limit).then_some(c)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        Facts {
            dmi: vec![
                ("sys_vendor".into(), "Example Ltd".into()),
                ("board_serial".into(), "SN-1234".into()),
                ("product_serial".into(), "To be filled by O.E.M.".into()),
            ],
            processor: Some("Example CPU 3000".into()),
            processors: 2,
            disks: vec![Disk { model: Some("Disk 9".into()), serial: Some("D-77".into()), bytes: 1 << 40 }],
            cards: vec![
                NetworkCard { link: "eth0".into(), address: vec![2, 0, 0, 0, 0, 1] },
                NetworkCard { link: "hzn0".into(), address: vec![2, 0, 0, 0, 0, 2] },
            ],
            gateways: vec!["192.0.2.1".parse().unwrap()],
            resolvers: vec!["192.0.2.53".parse().unwrap()],
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
            release: vec![("ID".into(), "debian".into())],
            image: vec![("IMAGE_VERSION".into(), "7".into())],
            kernel: Some("6.1.0".into()),
            architecture: "x86_64".into(),
            program: Some("ab".repeat(32)),
        }
    }

    #[test]
    fn what_names_the_machine_is_hashed_and_the_rest_is_readable() {
        let factors = describe(&facts());
        let value = |name: &str| factors.iter().find(|f| f.name == name).map(|f| f.value.as_str());
        assert_eq!(value("dmi/sys_vendor"), Some("Example Ltd"));
        assert_eq!(value("disk/0/model"), Some("Disk 9"));
        assert_eq!(value("gateways"), Some("192.0.2.1"));
        assert_eq!(value("links"), Some("eth0"));
        assert_eq!(value("dmi/product_serial"), None);
        for name in ["dmi/board_serial", "disk/0/serial", "network-card/eth0/address", "machine-id"] {
            assert!(value(name).unwrap().starts_with("sha256:"), "{name}");
        }
        assert!(factors.iter().all(|f| !f.value.contains("1234") && !f.name.contains("hzn0")));
        let kinds: std::collections::BTreeSet<_> = factors.iter().map(|f| f.kind).collect();
        assert_eq!(kinds.len(), 3);
        assert_eq!(describe(&facts()), factors);
    }

    #[test]
    fn a_disk_and_a_card_are_the_same_in_other_places() {
        let mut moved = facts();
        moved.disks.insert(0, Disk { model: None, serial: Some("A-1".into()), bytes: 1 });
        moved.cards[0].link = "enp3s0".into();
        let (before, after) = (describe(&facts()), describe(&moved));
        let value = |list: &[Factor], name: &str| list.iter().find(|f| f.name == name).unwrap().value.clone();
        assert_eq!(value(&before, "disk/0/serial"), value(&after, "disk/1/serial"));
        assert_eq!(value(&before, "network-card/eth0/address"), value(&after, "network-card/enp3s0/address"));
    }

    #[test]
    fn nothing_known_is_still_something() {
        let factors = describe(&Facts { architecture: "x86_64".into(), ..Facts::default() });
        assert_eq!(factors.len(), 1);
    }

    proptest! {
        #[test]
        fn factors_fit_a_message(values in prop::collection::vec(("[a-z_]{0,80}", "\\PC{0,400}"), 0..200)) {
            let facts = Facts { dmi: values, ..facts() };
            let sent = horizon_wire::convert::encode_factors(&describe(&facts));
            prop_assert!(horizon_wire::convert::decode_factors(sent).is_ok());
        }
    }
}
