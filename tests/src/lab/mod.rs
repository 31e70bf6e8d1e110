//! Hosts joined by links: see [`Lab`].

mod host;
mod isolate;
mod privilege;
mod process;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use host::Host;
pub use privilege::{Privilege, become_lab_root};
pub use process::{Cmd, Output, Proc};

/// How long the lab waits for anything before it calls it broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The last octet of the first host's address.
const FIRST_HOST: u8 = 10;

/// The hardware address of every switch. A bridge without one of its own borrows a port's, which goes with that port's
/// host: the others would send to it, and lose everything, until they ask anew.
const BRIDGE_ADDRESS: &str = "02:00:00:00:00:01";

/// A small internet: one switch ("the internet") to which public hosts and the routers of homes are joined.
///
/// ```text
///   public host  203.0.113.N, 2001:db8:1::N ──┐
///   public host                            ──┤ internet 203.0.113.1, 2001:db8:1::1
///   home router  203.0.113.N  (NAT, IPv4)  ──┘
///      └─ hosts 192.168.H.N, 2001:db8:H::N
/// ```
///
/// Dropping the lab ends every process in it; its folder of logs is kept when the thread is panicking, or on request.
pub struct Lab {
    // Hosts go first: their drop stops the processes that write below `dir`.
    internet: Host,
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
    next_public: u8,
    next_home: u8,
}

impl Lab {
    /// Makes the internet and nothing else. Fails with a remedy where the caller may not make namespaces.
    pub fn new() -> Result<Self> {
        privilege::check()?;
        let dir = tempfile::Builder::new().prefix("horizon-lab-").tempdir()?;
        let path = dir.path().to_owned();
        let internet = Host::new("internet", &path)?;
        internet.ip(&format!("link add br0 address {BRIDGE_ADDRESS} type bridge"))?;
        internet.ip("link set br0 up")?;
        internet.ip("addr add 203.0.113.1/24 dev br0")?;
        internet.ip("addr add 2001:db8:1::1/64 dev br0 nodad")?;
        internet.forwarding(true)?;
        Ok(Self { internet, dir: Some(dir), path, next_public: FIRST_HOST, next_home: 1 })
    }

    /// The folder with one log per process.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder of logs after the lab is gone, and says where it is.
    pub fn keep_logs(&mut self) -> PathBuf {
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
        self.path.clone()
    }

    /// How many public hosts there are, homes included.
    pub fn hosts(&self) -> u8 {
        self.next_public - FIRST_HOST
    }

    /// The switch in the middle, as a host: what is captured or dropped here is captured or dropped on the wire.
    pub fn internet(&self) -> &Host {
        &self.internet
    }

    /// A host without any link: for tests that join hosts by [`link`] themselves.
    pub fn bare_host(&self, name: &str) -> Result<Host> {
        Host::new(name, &self.path)
    }

    /// A host with public addresses of both families and a default route.
    pub fn public_host(&mut self, name: &str) -> Result<Host> {
        let mut host = Host::new(name, &self.path)?;
        let n = self.next_public;
        self.next_public = n.checked_add(1).context("the lab's public network is full")?;
        self.join_internet(&mut host, n)?;
        Ok(host)
    }

    fn join_internet(&self, host: &mut Host, n: u8) -> Result<()> {
        let port = format!("p{n}");
        link(host, "eth0", &self.internet, &port)?;
        self.internet.ip(&format!("link set {port} master br0"))?;
        host.v4 = Ipv4Addr::new(203, 0, 113, n);
        host.v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into());
        host.address("eth0", Some(Ipv4Addr::new(203, 0, 113, 1)), Some("2001:db8:1::1".parse()?))
    }

    /// A home: a router whose hosts share its IPv4 address, with IPv6 routed behind a stateful firewall.
    pub fn home(&mut self, name: &str) -> Result<Home> {
        let router = self.public_host(name)?;
        let n = self.next_home;
        self.next_home = n.checked_add(1).context("the lab has no more home networks")?;
        let v6_network = format!("2001:db8:{:x}::", 0x100 + u16::from(n));
        router.ip(&format!("link add lan address {BRIDGE_ADDRESS} type bridge"))?;
        router.ip("link set lan up")?;
        router.ip(&format!("addr add 192.168.{n}.1/24 dev lan"))?;
        router.ip(&format!("addr add {v6_network}1/64 dev lan nodad"))?;
        router.forwarding(true)?;
        router
            .cmd("nft", ["-f", "-"])
            .stdin(
                "table inet home {
                   chain out { type nat hook postrouting priority srcnat;
                     meta nfproto ipv4 oifname eth0 masquerade; }
                   chain through { type filter hook forward priority filter;
                     ct state established,related accept;
                     iifname eth0 drop; }
                 }",
            )
            .ok()?;
        self.internet.ip(&format!("-6 route add {v6_network}/64 via {}", router.v6()))?;
        Ok(Home { router, n, v6_network, next: 10, dir: self.path.clone() })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = self.keep_logs();
            eprint_line(&format!("lab: logs kept in {}", path.display()));
        }
    }
}

/// A router and the hosts behind it.
pub struct Home {
    router: Host,
    n: u8,
    v6_network: String,
    next: u8,
    dir: PathBuf,
}

impl Home {
    /// The router itself: what its hosts look like from outside.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// A host on the home's network.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        let mut host = Host::new(name, &self.dir)?;
        let n = self.next;
        self.next = n.checked_add(1).context("this home's network is full")?;
        let port = format!("p{n}");
        link(&host, "eth0", &self.router, &port)?;
        self.router.ip(&format!("link set {port} master lan"))?;
        host.v4 = Ipv4Addr::new(192, 168, self.n, n);
        host.v6 = format!("{}{:x}", self.v6_network, n).parse()?;
        host.address(
            "eth0",
            Some(Ipv4Addr::new(192, 168, self.n, 1)),
            Some(format!("{}1", self.v6_network).parse()?),
        )?;
        Ok(host)
    }
}

/// Joins two hosts by a virtual cable and raises both ends.
pub fn link(a: &Host, a_name: &str, b: &Host, b_name: &str) -> Result<()> {
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {}", b.netns().display()))?;
    a.ip(&format!("link set {a_name} up"))?;
    b.ip(&format!("link set {b_name} up"))
}

/// Asks again every few milliseconds until `check` answers, or [`PATIENCE`] is over; `what` names it in the error.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> Result<T> {
    within(PATIENCE, what, check)
}

/// As [`eventually`], with a limit of its own.
pub fn within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {limit:?} in vain for this: {what}");
        }
        pause(Duration::from_millis(10));
    }
}

/// The lines that one text has and the other lacks.
pub fn difference(before: &str, after: &str) -> String {
    let gone = before.lines().filter(|line| !after.contains(line)).map(|line| format!("- {line}\n"));
    let new = after.lines().filter(|line| !before.contains(line)).map(|line| format!("+ {line}\n"));
    gone.chain(new).collect()
}

/// The one place that lets time pass: between two looks at something that cannot be subscribed to.
pub(crate) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
