//! Finding out what kind of machine this is. A source that is missing, as in a container, is simply absent.

use std::{
    fs,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use aws_lc_rs::digest::{Context, SHA256};

use horizon_appliance_core::{Disk, Facts, NetworkCard};
use horizon_hostnet::{Net, RouteKind, TABLE_MAIN};
use horizon_model::Digest;

/// The longest file that is read whole.
const MAX_BYTES: u64 = 64 * 1024;
const DMI: [&str; 10] = [
    "sys_vendor",
    "product_name",
    "product_version",
    "product_serial",
    "product_uuid",
    "board_vendor",
    "board_name",
    "board_serial",
    "chassis_serial",
    "bios_vendor",
];
const RELEASE: [&str; 3] = ["ID", "VERSION_ID", "PRETTY_NAME"];
/// What the release file says of the image that the system was started from (os-release(5)).
const IMAGE: [&str; 2] = ["IMAGE_ID", "IMAGE_VERSION"];
/// Disks that come and go or are made of files and memory.
const PASSING_DISKS: [&str; 6] = ["loop", "ram", "zram", "dm-", "sr", "fd"];
const SECTOR_BYTES: u64 = 512;

/// The running program does not change.
static PROGRAM: OnceLock<Option<Digest>> = OnceLock::new();

/// Where facts about the host are found.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The root of the file system that describes it.
    pub root: PathBuf,
    /// A file with the digest or the version of the image that it was started from.
    pub image: Option<PathBuf>,
}

/// Everything that could be found out now.
pub(crate) async fn collect(net: &Net, host: &HostFacts) -> Facts {
    let mut facts = still(&host.root);
    if let Some(image) = host.image.as_deref().and_then(line) {
        facts.image.push(("file".to_owned(), image));
    }
    facts.program = PROGRAM.get_or_init(|| digest(Path::new("/proc/self/exe")).ok()).map(|d| d.to_string());
    if let Ok(links) = net.links().await {
        facts.cards = links
            .into_iter()
            .filter(|l| !l.loopback)
            .filter_map(|l| Some(NetworkCard { address: l.hardware_address?, link: l.name }))
            .collect();
    }
    facts.gateways = gateways(net).await;
    facts
}

async fn gateways(net: &Net) -> Vec<IpAddr> {
    let routes = net.routes(TABLE_MAIN).await.unwrap_or_default();
    let default =
        routes.into_iter().filter(|r| r.destination.prefix_len() == 0 && r.kind == RouteKind::Unicast);
    default.filter_map(|r| r.gateway).collect()
}

/// What files below `root` tell.
fn still(root: &Path) -> Facts {
    let dmi = |name: &&str| Some(((*name).to_owned(), line(&root.join("sys/class/dmi/id").join(name))?));
    let os_release = text(&root.join("etc/os-release")).unwrap_or_default();
    let (processor, processors) = processor(&text(&root.join("proc/cpuinfo")).unwrap_or_default());
    Facts {
        dmi: DMI.iter().filter_map(dmi).collect(),
        processor,
        processors,
        disks: disks(&root.join("sys/block")),
        resolvers: resolvers(&text(&root.join("etc/resolv.conf")).unwrap_or_default()),
        machine_id: line(&root.join("etc/machine-id")),
        release: release(&os_release, &RELEASE),
        image: release(&os_release, &IMAGE),
        kernel: line(&root.join("proc/sys/kernel/osrelease")),
        architecture: std::env::consts::ARCH.to_owned(),
        ..Facts::default()
    }
}

fn processor(text: &str) -> (Option<String>, usize) {
    let value = |name: &str| {
        text.lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == name)
            .map(|(_, v)| v.trim().to_owned())
    };
    let count = text.lines().filter(|l| l.starts_with("processor")).count();
    (value("model name").or_else(|| value("Model")).or_else(|| value("Hardware")), count)
}

fn disks(block: &Path) -> Vec<Disk> {
    let Ok(entries) = fs::read_dir(block) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| {
            let name = e.file_name();
            let name = name.to_string_lossy();
            !PASSING_DISKS.iter().any(|p| name.starts_with(p))
        })
        .filter_map(|e| {
            let path = e.path();
            let sectors: u64 = line(&path.join("size"))?.parse().ok()?;
            (sectors > 0).then(|| Disk {
                model: line(&path.join("device/model")),
                serial: line(&path.join("device/serial")).or_else(|| line(&path.join("device/wwid"))),
                bytes: sectors.saturating_mul(SECTOR_BYTES),
            })
        })
        .collect()
}

fn resolvers(text: &str) -> Vec<IpAddr> {
    let server = |l: &str| l.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(|l| server(l.trim())).collect()
}

fn release(text: &str, names: &[&str]) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|l| l.split_once('='));
    pairs
        .filter(|(name, _)| names.contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
    let mut hash = Context::new(&SHA256);
    let mut piece = [0; 8192];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    Ok(Digest(out))
}

fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn line(path: &Path) -> Option<String> {
    text(path).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use horizon_appliance_core::describe;
    use horizon_model::FactorKind;

    use super::*;

    fn put(root: &Path, name: &str, content: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn files_are_read_as_they_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "sys/class/dmi/id/sys_vendor", "Example Ltd\n");
        put(
            root,
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: CPU 3000\n\nprocessor\t: 1\nmodel name\t: CPU 3000\n",
        );
        put(root, "sys/block/sda/size", "2048\n");
        put(root, "sys/block/sda/device/model", "Disk 9   \n");
        put(root, "sys/block/loop0/size", "99\n");
        put(root, "etc/resolv.conf", "# c\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n options x\n");
        put(root, "etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nHOME_URL=\"x\"\n");
        let facts = still(root);
        assert_eq!(facts.dmi, [("sys_vendor".into(), "Example Ltd".into())]);
        assert_eq!((facts.processor.as_deref(), facts.processors), (Some("CPU 3000"), 2));
        assert_eq!(facts.disks, [Disk { model: Some("Disk 9".into()), serial: None, bytes: 1 << 20 }]);
        assert_eq!(facts.resolvers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(facts.release, [("ID".into(), "debian".into()), ("VERSION_ID".into(), "12".into())]);
        let nothing = still(&root.join("nothing"));
        assert_eq!((nothing.disks, nothing.kernel), (Vec::new(), None));
    }

    #[tokio::test]
    async fn this_machine_has_factors_of_three_kinds() {
        let factors =
            describe(&collect(&Net::open().unwrap(), &HostFacts { root: "/".into(), image: None }).await);
        for kind in [FactorKind::HardwareFingerprint, FactorKind::RuntimeEnvironment] {
            assert!(factors.iter().any(|f| f.kind == kind), "{kind:?}");
        }
    }
}
