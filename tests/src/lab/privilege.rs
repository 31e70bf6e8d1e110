//! Whether this process may make namespaces, and how it comes to that.

use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// How the lab came to be allowed to make namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The process is root (perhaps in a container or user namespace).
    Root,
    /// The process made a user namespace in which it is root.
    UserNamespace,
}

/// Makes an ordinary user's process root in a user namespace of its own. Call it first in `main`: the kernel refuses
/// it to a process with more than one thread.
pub fn become_lab_root() -> Result<Privilege> {
    if getuid().is_root() {
        return Ok(Privilege::Root);
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).context(NO_NAMESPACE)?;
    std::fs::write("/proc/self/setgroups", "deny").context(NO_NAMESPACE)?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context(NO_NAMESPACE)?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context(NO_NAMESPACE)?;
    Ok(Privilege::UserNamespace)
}

const NO_NAMESPACE: &str = "this user may not make user namespaces. Either run the same command as root (sudo), or \
allow it once: `sudo sysctl kernel.unprivileged_userns_clone=1` on Debian, `sudo sysctl \
kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu 23.10 and later";

/// Fails with a remedy unless hosts can be made here and can open TUN devices.
pub(super) fn check() -> Result<()> {
    if !getuid().is_root() {
        bail!(
            "the lab needs root, or a user namespace: run `make test` or `make demo`, or prefix the command with \
               `unshare --user --map-root-user`"
        );
    }
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("this user may not open /dev/net/tun: run as root, or `sudo chmod 0666 /dev/net/tun`")
        }
        Err(error) => {
            bail!(
                "cannot open /dev/net/tun ({error}): load the driver with `modprobe tun`; in a container, start it \
                   with `--device /dev/net/tun`"
            )
        }
    }
}
