//! What makes a thread a host of its own.

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Moves the calling thread into new network, mount and host-name namespaces, with `/etc`, `/var/lib` and `/run` of
/// its own, so that nothing done there touches the machine.
pub(super) fn isolate(name: &str, dir: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("cannot make namespaces")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("cannot make the mounts private")?;
    nix::unistd::sethostname(name).context("cannot set the host name")?;
    // The namespace's own view of /sys/class/net; where it is not allowed, the old view is harmless.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    tmpfs("/run")?;
    // What programs share there ends with the host; where there is none, nothing is shared.
    let _ = tmpfs("/dev/shm");
    farm("/var/lib", &dir.join("var-lib"), &["horizon"])?;
    farm("/etc", &dir.join("etc"), &["resolv.conf", "machine-id", "hostname", "horizon"])?;
    std::fs::write("/etc/resolv.conf", "# the lab's hosts know no name server\n")?;
    std::fs::write("/etc/hostname", format!("{name}\n"))?;
    std::fs::write("/etc/machine-id", machine_id(dir))?;
    // Addresses are usable at once: no duplicate detection, no router solicitation, in a network that has no doubt.
    for setting in ["accept_dad", "accept_ra", "router_solicitations"] {
        for scope in ["all", "default"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/{setting}"), "0");
        }
    }
    Ok(())
}

fn tmpfs(at: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("mode=0755"))
        .with_context(|| format!("cannot mount {at}"))
}

/// Replaces a directory by a writable one whose entries lead to the old ones, except those in `without`.
///
/// A file bound over `/etc/resolv.conf` could not be replaced by rename, which is how programs write it.
fn farm(at: &str, old: &Path, without: &[&str]) -> Result<()> {
    std::fs::create_dir(old)?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(at), old, None::<&str>, bind, None::<&str>).with_context(|| format!("cannot bind {at}"))?;
    tmpfs(at)?;
    for entry in std::fs::read_dir(old)? {
        let entry = entry?;
        if without.iter().all(|name| entry.file_name() != *name) {
            symlink(entry.path(), Path::new(at).join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// 32 hexadecimal digits that differ from host to host and from lab to lab.
fn machine_id(dir: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let id = hasher.finish();
    format!("{id:016x}{:016x}\n", id.rotate_left(32) ^ 0x5851_f42d_4c95_7f2d)
}
