//! Whether this process may configure the network.

use std::fs;

/// What to do where it may not.
pub(crate) const REMEDY: &str = "run it as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN";
/// linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;

/// Whether `CAP_NET_ADMIN` is in effect; `None` when the kernel does not tell.
pub(crate) fn net_admin() -> Option<bool> {
    effective(&fs::read_to_string("/proc/self/status").ok()?).map(|bits| bits & (1 << CAP_NET_ADMIN) != 0)
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(effective("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000001000\n"), Some(1 << CAP_NET_ADMIN));
        assert_eq!(effective("CapEff:\tzz\n"), None);
        assert_eq!(effective(""), None);
    }
}
