//! Hardening changes the process that does it, so this test is a process of its own, and the only test in it.

use std::fs;

use horizon_hardening::{Program, harden};

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_hardened_process_dumps_nothing_and_has_no_more_rights_than_it_needs() {
    let done = harden(Program::Controller);
    assert!(done.no_dumps && done.no_new_privileges && done.dropped, "{done:?}");
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    let effective = u64::from_str_radix(&field(&status, "CapEff"), 16).unwrap();
    let permitted = u64::from_str_radix(&field(&status, "CapPrm"), 16).unwrap();
    // chown, dac_override, fowner, net_bind_service: linux/capability.h.
    let kept = 1 | 1 << 1 | 1 << 3 | 1 << 10;
    assert_eq!((effective & !kept, permitted & !kept), (0, 0), "{status}");
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let locked: u64 = field(&fs::read_to_string("/proc/self/status").unwrap(), "VmLck")
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .unwrap();
    assert_eq!(done.locked, locked > 0, "{done:?}: {locked} kB");
}
