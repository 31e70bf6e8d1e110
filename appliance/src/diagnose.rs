//! Everything that an appliance needs, looked at one by one, each with what to do when it is missing.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
    time::Duration,
};

use horizon_appliance_core::TABLE_NAME;
use horizon_channel::{ConnectOptions, connect};
use horizon_hostnet::{Nft, Sysctls};
use horizon_wire::keyset::Anchor;
use serde::Serialize;

use crate::{
    link, out, privilege,
    status::{self, Status},
    store::{Enrolment, Store, StoreError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
const DEFAULT_PORT: u16 = 7443;
/// The clock may differ from the KeySet's by so much, in milliseconds.
const CLOCK_TOLERANCE: i64 = 5 * 60 * 1000;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    /// It is as it should be.
    Fine,
    /// It may be in the way.
    Doubtful,
    /// The appliance cannot work like this.
    Failed,
    /// It could not be looked at.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// What was found.
    pub(crate) verdict: Verdict,
    /// The same in words.
    pub(crate) detail: String,
    /// What to do; empty when there is nothing to do.
    pub(crate) remedy: String,
}

impl Check {
    fn fine(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fine, detail: detail.into(), remedy: String::new() }
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::fine(name, detail) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, remedy: remedy.into(), ..Self::fine(name, detail) }
    }

    fn doubtful(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Doubtful, ..Self::failed(name, detail, remedy) }
    }
}

/// Looks at everything. Nothing is changed.
pub(crate) async fn diagnose(state_dir: &Path) -> Vec<Check> {
    let running = status::ask(state_dir).await.ok();
    let (state, enrolment) = state(state_dir);
    let nft = Nft::default();
    let mut checks = vec![privileges(), device(), packet_filter(&nft).await];
    checks.extend(forwarding(running.is_some()));
    checks.extend(other_filters(&nft, &running).await);
    checks.push(state);
    let (controller, clock) = controller(state_dir, enrolment.as_ref()).await;
    checks.extend([controller, clock, port(&running), process(&running)]);
    checks
}

/// The checks as text.
pub(crate) fn text(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let verdict = match check.verdict {
            Verdict::Fine => "ok",
            Verdict::Doubtful => "WARN",
            Verdict::Failed => "FAIL",
            Verdict::Skipped => "-",
        };
        vec![verdict.to_owned(), check.name.to_owned(), check.detail.clone()]
    };
    let mut text = out::table(&["", "CHECK", "FOUND"], &checks.iter().map(row).collect::<Vec<_>>());
    let remedies: Vec<_> = checks.iter().filter(|c| !c.remedy.is_empty()).collect();
    if !remedies.is_empty() {
        text.push_str("\nWhat to do:\n");
    }
    for check in remedies {
        text.push_str(&format!("  {}: {}\n", check.name, check.remedy));
    }
    text
}

fn privileges() -> Check {
    let name = "privileges";
    match privilege::net_admin() {
        Some(true) => Check::fine(name, "CAP_NET_ADMIN is there"),
        Some(false) => Check::failed(name, "CAP_NET_ADMIN is missing", privilege::REMEDY),
        None => Check::skipped(name, "the kernel does not tell"),
    }
}

fn device() -> Check {
    let name = "TUN devices";
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::fine(name, format!("{path} can be opened")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Check::failed(
            name,
            format!("{path} is missing"),
            "load the module (modprobe tun); in a container, pass the device (--device /dev/net/tun)",
        ),
        Err(e) => Check::failed(
            name,
            format!("{path} cannot be opened: {e}"),
            "run it as root, or let its user open it (chmod 0666 /dev/net/tun)",
        ),
    }
}

async fn packet_filter(nft: &Nft) -> Check {
    let name = "nftables";
    match nft.version().await {
        Err(error) => Check::failed(name, error.to_string(), "install it: apt-get install nftables"),
        Ok(version) => match nft.table("inet", TABLE_NAME).await {
            Ok(_) => Check::fine(name, version),
            Err(error) => Check::failed(name, error.to_string(), "run it as root, or with CAP_NET_ADMIN"),
        },
    }
}

fn forwarding(running: bool) -> Vec<Check> {
    let sysctls = Sysctls::default();
    let check = |(name, setting): (&'static str, &str)| match sysctls.read(setting) {
        Ok(value) if value == "1" => Check::fine(name, "the kernel forwards"),
        Ok(_) if running => Check::doubtful(
            name,
            "the kernel does not forward, though the appliance runs",
            "none if no egress is declared; otherwise see: horizon-appliance status",
        ),
        Ok(value) => match sysctls.write(setting, &value) {
            Ok(()) => Check::fine(name, "off now; switched on while the appliance runs"),
            Err(error) => Check::failed(
                name,
                format!("off, and cannot be switched on: {error}"),
                format!(
                    "run it as root, or switch it on on the host: sysctl -w {}=1",
                    setting.replace('/', ".")
                ),
            ),
        },
        Err(error) => {
            Check::doubtful(name, error.to_string(), "without it, only the other protocol is forwarded")
        }
    };
    [("forwarding of IPv4", "net/ipv4/ip_forward"), ("forwarding of IPv6", "net/ipv6/conf/all/forwarding")]
        .map(check)
        .into()
}

async fn other_filters(nft: &Nft, running: &Option<Status>) -> Vec<Check> {
    let Ok(chains) = nft.base_chains().await else { return Vec::new() };
    let device = running.as_ref().and_then(|s| s.tunnel.as_ref()).map_or("hzn0", |t| t.device.as_str());
    let port = tunnel_port(running);
    let foreign = |hook: &str| {
        let drops = |c: &&horizon_hostnet::BaseChain| c.drops && c.hook == hook && c.table != TABLE_NAME;
        chains.iter().find(drops).map(|c| format!("{} {} {}", c.family, c.table, c.name))
    };
    let mut checks = Vec::new();
    if let Some(chain) = foreign("forward") {
        checks.push(Check::doubtful(
            "other packet filters",
            format!("the chain {chain} drops what it does not name"),
            format!("allow the tunnel in it: nft insert rule {chain} iifname {device} accept; nft insert rule {chain} oifname {device} ct state established,related accept"),
        ));
    }
    if let Some(chain) = foreign("input") {
        checks.push(Check::doubtful(
            "the host's own firewall",
            format!("the chain {chain} drops what it does not name"),
            format!("allow the tunnel's port in it: nft insert rule {chain} udp dport {port} accept"),
        ));
    }
    if checks.is_empty() {
        checks.push(Check::fine("other packet filters", "none drops by default"));
    }
    checks
}

fn state(state_dir: &Path) -> (Check, Option<Enrolment>) {
    let name = "state on disk";
    let look = || -> Result<(Option<Enrolment>, String), StoreError> {
        let store = Store::existing(state_dir)?;
        let Some(enrolment) = store.enrolment()? else { return Ok((None, String::new())) };
        let key = store.key()?.is_some();
        let generation = store.state(enrolment.server_id)?.generation;
        let keyset = store.keyset()?.map_or(0, |k| k.version);
        let secrets = store.secrets()?.is_some();
        let detail = format!(
            "enrolled as {}; key {}, verification secret {}, KeySet {keyset}, state generation {generation}",
            enrolment.server_name,
            if key { "present" } else { "MISSING" },
            if secrets { "present" } else { "MISSING" },
        );
        Ok((Some(enrolment).filter(|_| key && secrets), detail))
    };
    match look() {
        Ok((Some(enrolment), detail)) => (Check::fine(name, detail), Some(enrolment)),
        Ok((None, detail)) if detail.is_empty() => (not_enrolled(name), None),
        Ok((None, detail)) => (
            Check::failed(
                name,
                detail,
                "enrol again with a new token: horizon-appliance enroll --force TOKEN",
            ),
            None,
        ),
        Err(StoreError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            (not_enrolled(name), None)
        }
        Err(error) => (Check::failed(name, error.to_string(), "see the message"), None),
    }
}

fn not_enrolled(name: &'static str) -> Check {
    Check::failed(
        name,
        "this appliance is not enrolled",
        "get a token on the controller (horizon-controller token SERVER) and run: horizon-appliance enroll TOKEN",
    )
}

async fn controller(state_dir: &Path, enrolment: Option<&Enrolment>) -> (Check, Check) {
    let (name, clock) = ("controller", "clock");
    let stored = Store::existing(state_dir).and_then(|s| Ok((s.key()?, s.keyset()?)));
    let (Some(enrolment), Ok((Some(identity), keyset))) = (enrolment, stored) else {
        return (Check::skipped(name, "not enrolled"), Check::skipped(clock, "not enrolled"));
    };
    let anchor = keyset.map_or(Anchor::Root(enrolment.root), Anchor::KeySet);
    let started = tokio::time::Instant::now();
    let attempt = connect(ConnectOptions {
        addresses: &enrolment.controllers,
        identity: &identity,
        anchor: &anchor,
        hello: link::hello(),
        fwmark: None,
        timeout: CONNECT_TIMEOUT,
    });
    match Box::pin(attempt).await {
        Ok(channel) => {
            let took = started.elapsed().as_millis();
            let detail = format!("{} answers at {} in {took} ms", channel.software, channel.remote);
            let early = channel.keyset.issued - link::unix_millis();
            channel.requests.farewell("diagnosed").await;
            let time = if early > CLOCK_TOLERANCE {
                Check::doubtful(
                    clock,
                    format!("it is {} s before the organisation's KeySet was made", early / 1000),
                    "set the clock: timedatectl set-ntp true",
                )
            } else {
                Check::fine(clock, "it fits the organisation's KeySet")
            };
            (Check::fine(name, detail), time)
        }
        Err(error) => {
            let remedy = format!(
                "check that the controller runs, that its address is right ({}), and that UDP to it is not blocked",
                enrolment.controllers.join(", ")
            );
            (
                Check::failed(name, error.to_string(), remedy),
                Check::skipped(clock, "no controller to compare with"),
            )
        }
    }
}

fn tunnel_port(running: &Option<Status>) -> u16 {
    running.as_ref().and_then(|s| s.tunnel.as_ref()).map_or(DEFAULT_PORT, |t| t.port)
}

fn port(running: &Option<Status>) -> Check {
    let name = "tunnel port";
    let port = tunnel_port(running);
    if let Some(tunnel) = running.as_ref().and_then(|s| s.tunnel.as_ref()) {
        return match tunnel.reachability.as_str() {
            "missed" => Check::failed(
                name,
                tunnel.reachability_words.clone(),
                format!("open UDP port {port} toward this host"),
            ),
            _ => Check::fine(name, tunnel.reachability_words.clone()),
        };
    }
    let free = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
    match free {
        Ok(_) => Check::fine(name, format!("UDP port {port} is free")),
        Err(error) => Check::failed(
            name,
            format!("UDP port {port} cannot be used: {error}"),
            format!("see who holds it (ss -ulpn 'sport = :{port}'), or declare another port for the Server"),
        ),
    }
}

fn process(running: &Option<Status>) -> Check {
    let name = "running appliance";
    match running {
        None => Check::skipped(name, "none runs with this state directory"),
        Some(status) if status.state.problems.is_empty() => {
            Check::fine(name, format!("generation {} is in force", status.state.generation))
        }
        Some(status) => {
            let problems: Vec<_> =
                status.state.problems.iter().map(|p| format!("{}: {}", p.entry, p.message)).collect();
            Check::failed(name, problems.join("; "), "see the messages; the log has more")
        }
    }
}
