//! A tunnel without traffic sleeps. Apart from the other tests, because it counts this process's threads at work.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says why"
)]

mod lab;

use std::{fs, time::Duration};

use lab::{Lab, in_lab};

/// How often the tunnels' threads were woken so far.
fn wakeups() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let loops = tasks
        .map(|task| task.unwrap().path())
        .filter(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == "horizon-tunnel");
    loops
        .map(|task| {
            let status = fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn nothing_wakes_an_idle_tunnel() {
    in_lab("nothing_wakes_an_idle_tunnel", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        let quiet = || lab.client.events.recv_timeout(Duration::from_secs(2)).is_err();
        // The path's MTU is found and every acknowledgement sent before it is quiet for the first time.
        while !quiet() {}
        let before = wakeups();
        assert!(before > 0);
        assert!(quiet());
        // A neighbour solicitation or two are the kernel's affair.
        let after = wakeups();
        assert!(after - before < 10, "{} wake-ups in two seconds", after - before);
    });
}
