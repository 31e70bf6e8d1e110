//! Namespaces for a test, and a picture of the host's network in them.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use horizon_hostnet::Net;

/// Says to this program that it is in its namespaces already.
const INSIDE: &str = "HORIZON_TEST_INSIDE";

/// Runs a test in a user, network and mount namespace of its own, by starting this program again inside.
pub(crate) fn inside(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        runtime().block_on(async { Net::open().unwrap().set_link_up("lo", true).await.unwrap() });
        return test();
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare (util-linux) is needed");
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

/// A runtime for a look at the kernel.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `ip` with the words of a line.
pub(crate) fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip (iproute2) is needed");
    assert!(output.status.success(), "ip {line}: {output:?}");
}

/// Deletes a link, as somebody might by hand.
pub(crate) fn delete_link(name: &str) {
    runtime().block_on(async { Net::open().unwrap().delete_link(name).await.unwrap() });
}

/// The link that an ordinary packet to an address would leave by; `None` when it could not leave.
pub(crate) fn leaves_by(to: &str) -> Option<String> {
    runtime().block_on(async {
        let net = Net::open().unwrap();
        let found = net.lookup(to.parse().unwrap(), 0).await.ok()?;
        net.links().await.unwrap().into_iter().find(|l| l.index == found.link).map(|l| l.name)
    })
}

/// Everything of the host that a session may change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture(Vec<String>);

impl Picture {
    /// What is so now.
    pub(crate) fn take(resolv_conf: &Path) -> Self {
        let mut lines = runtime().block_on(async {
            let net = Net::open().unwrap();
            let mut lines: Vec<String> =
                net.links().await.unwrap().iter().map(|l| format!("{} {}", l.name, l.up)).collect();
            lines.extend(net.addresses().await.unwrap().iter().map(|a| format!("{a:?}")));
            lines.extend(
                net.rules()
                    .await
                    .unwrap()
                    .iter()
                    .map(|r| format!("{r:?} to {:?}", r.destination.map(|d| d.to_string()))),
            );
            for table in [254, 18521, 18522] {
                lines.extend(net.routes(table).await.unwrap().iter().map(|r| format!("{r:?}")));
            }
            lines
        });
        let found = std::fs::symlink_metadata(resolv_conf).unwrap();
        lines.push(format!("resolv.conf link={} mode={:o}", found.is_symlink(), found.mode()));
        lines.push(std::fs::read_to_string(resolv_conf).unwrap());
        Self(lines)
    }

    /// In how many lines a text appears.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.0.iter().filter(|line| line.contains(text)).count()
    }

    /// Whether a text appears anywhere.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }
}
