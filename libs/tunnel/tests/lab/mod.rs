//! Hosts in network namespaces, joined by veth pairs, with real TUN devices.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use horizon_tunnel::{
    Attachment, Delivery, DestinationRules, DropReason, Identity, Inbound, NetworkConfig, NetworkId, Role,
    Secret32, SessionConfig, SessionId, SessionLimits, SessionSnapshot, TunDevice, Tunnel, TunnelConfig,
    TunnelEvent, TunnelHandle,
};
use nix::sched::{CloneFlags, setns, unshare};

/// How long something may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Name of the TUN device on every host.
pub(crate) const TUN: &str = "hzn0";

const INSIDE: &str = "HORIZON_LAB_INSIDE";

/// Runs a test where it may make network namespaces: here as root, else in a user namespace of its own. Where that, or
/// opening /dev/net/tun, is not permitted, says so and does nothing.
pub(crate) fn in_lab(name: &str, test: impl FnOnce()) {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return println!("skipped {name}: /dev/net/tun: {error}");
    }
    if std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap().is_ok() {
        return test();
    }
    let permitted = Command::new("unshare").args(["-Urn", "true"]).output().is_ok_and(|o| o.status.success());
    if std::env::var_os(INSIDE).is_some() || !permitted {
        return println!("skipped {name}: this user may not make network namespaces");
    }
    let status = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// A host: a network namespace that lasts as long as this value.
pub(crate) struct Host(File);

impl Host {
    pub(crate) fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let host = thread.join().unwrap();
        host.ip("link set lo up");
        host
    }

    /// Runs something on this host; sockets and processes made there stay there.
    pub(crate) fn run<R: Send>(&self, what: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            thread.join().unwrap()
        })
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let (success, output) = self.command(&format!("ip {arguments}"));
        assert!(success, "ip {arguments}: {output}");
    }

    /// Whether a command succeeded, and what it printed.
    pub(crate) fn command(&self, line: &str) -> (bool, String) {
        let words: Vec<_> = line.split_whitespace().collect();
        let output = self.run(|| Command::new(words[0]).args(&words[1..]).output().unwrap());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Pings with `ping`'s own options; true when an answer came.
    pub(crate) fn ping(&self, arguments: &str) -> bool {
        self.command(&format!("ping -c 1 -W 1 {arguments}")).0
    }

    /// Pings until an answer comes: paths need a moment after they are made.
    pub(crate) fn ping_soon(&self, arguments: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.ping(arguments) {
            assert!(Instant::now() < deadline, "no answer to ping {arguments}");
        }
    }

    /// Joins two hosts with a cable.
    pub(crate) fn join(
        &self,
        device: &str,
        addresses: &[&str],
        other: &Self,
        other_device: &str,
        others: &[&str],
    ) {
        let far = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {device} type veth peer name {other_device} netns {far}"));
        for (host, device, addresses) in [(self, device, addresses), (other, other_device, others)] {
            host.configure(device, addresses);
        }
    }

    pub(crate) fn configure(&self, device: &str, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.ip(&format!("address add {address} dev {device} {nodad}"));
        }
        self.ip(&format!("link set {device} up"));
    }

    /// Makes a TUN device with addresses.
    pub(crate) fn tun(&self, mtu: u16, offload: bool, addresses: &[&str]) -> TunDevice {
        let device = self.run(|| TunDevice::create(TUN, mtu, offload).unwrap());
        self.configure(TUN, addresses);
        device
    }
}

/// A tunnel on a host, with what it reported.
pub(crate) struct Peer {
    pub(crate) tunnel: Tunnel,
    pub(crate) events: Receiver<TunnelEvent>,
}

pub(crate) fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32]).unwrap()
}

impl Peer {
    pub(crate) fn start(host: &Host, config: TunnelConfig) -> Self {
        let (sender, events) = channel();
        let tunnel =
            host.run(|| Tunnel::start(config, Box::new(move |event| drop(sender.send(event)))).unwrap());
        let peer = Self { tunnel, events };
        let access = NetworkConfig { id: NetworkId::ACCESS, delivery: Delivery::Tun };
        peer.handle().set_network(access).unwrap();
        peer
    }

    pub(crate) fn handle(&self) -> TunnelHandle {
        self.tunnel.handle()
    }

    pub(crate) fn port(&self) -> u16 {
        self.tunnel.local_addr().port()
    }

    /// Waits for an event that `pick` likes; others are forgotten.
    pub(crate) fn wait<R>(&self, what: &str, mut pick: impl FnMut(TunnelEvent) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    if let Some(picked) = pick(event) {
                        return picked;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("waited in vain for {what}"),
                Err(RecvTimeoutError::Disconnected) => panic!("tunnel ended while waiting for {what}"),
            }
        }
    }

    pub(crate) fn wait_up(&self) {
        self.wait("a session to come up", |event| {
            matches!(event, TunnelEvent::SessionUp { .. }).then_some(())
        });
    }

    pub(crate) fn session(&self, n: u8) -> SessionSnapshot {
        let snapshot = self.handle().stats().unwrap();
        snapshot.sessions.into_iter().find(|session| session.id == session_id(n)).unwrap()
    }

    pub(crate) fn drops(&self, n: u8, reason: DropReason) -> u64 {
        self.session(n).counters.drops.get(reason)
    }
}

pub(crate) fn session_id(n: u8) -> SessionId {
    SessionId([n; 16])
}

/// Session `n`, with a secret of its own.
pub(crate) fn session(n: u8, peer: &Identity, role: Role, attachments: Vec<Attachment>) -> SessionConfig {
    SessionConfig {
        id: session_id(n),
        secret: Secret32::new([n; 32]),
        peer_key: peer.public_key(),
        role,
        attachments,
        limits: SessionLimits::default(),
    }
}

pub(crate) fn attachment(network: u16, peer_addresses: &[&str], inbound: Inbound) -> Attachment {
    Attachment {
        network: NetworkId(network),
        peer_addresses: peer_addresses.iter().map(|a| a.parse().unwrap()).collect(),
        from_peer: DestinationRules::allow_all(),
        inbound,
    }
}

/// Addresses of client `n` inside the tunnel.
pub(crate) fn inner(n: u8) -> [String; 2] {
    [format!("10.9.0.{n}"), format!("fd09::{n}")]
}

/// What the appliance grants client `n`: its two addresses.
pub(crate) fn granted(n: u8) -> Attachment {
    let [v4, v6] = inner(n).map(|address| host_prefix(&address));
    attachment(0, &[&v4, &v6], Inbound::Any)
}

pub(crate) fn host_prefix(address: &str) -> String {
    let length = if address.contains(':') { 128 } else { 32 };
    format!("{address}/{length}")
}

/// How a lab with one client differs from the usual one.
pub(crate) struct Options {
    pub(crate) udp_payload: u16,
    pub(crate) client_fwmark: Option<u32>,
    pub(crate) tun_mtu: u16,
    pub(crate) offload: [bool; 2],
    pub(crate) client_identity: Identity,
    pub(crate) expected_appliance: Identity,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            udp_payload: 1472,
            client_fwmark: None,
            tun_mtu: 1400,
            offload: [true; 2],
            client_identity: identity(2),
            expected_appliance: identity(1),
        }
    }
}

/// An appliance at 10.9.0.1 and fd09::1 and a client at 10.9.0.2 and fd09::2, on hosts joined by a cable. The client
/// has session 2 and accepts answers only.
pub(crate) struct Lab {
    pub(crate) appliance: Peer,
    pub(crate) client: Peer,
    pub(crate) appliance_host: Host,
    pub(crate) client_host: Host,
}

pub(crate) const APPLIANCE_INNER: [&str; 2] = ["10.9.0.1/24", "fd09::1/64"];
pub(crate) const CLIENT_INNER: [&str; 2] = ["10.9.0.2/24", "fd09::2/64"];

impl Lab {
    /// A lab whose session is up.
    pub(crate) fn up() -> Self {
        let lab = Self::new(&Options::default());
        lab.appliance.wait_up();
        lab.client.wait_up();
        lab
    }

    pub(crate) fn new(options: &Options) -> Self {
        let (appliance_host, client_host) = (Host::new(), Host::new());
        let (near, far) = (["10.0.0.2/24", "fd00::2/64"], ["10.0.0.1/24", "fd00::1/64"]);
        client_host.join("eth0", &near, &appliance_host, "eth0", &far);

        let appliance = Peer::start(&appliance_host, config(identity(1), options));
        appliance
            .handle()
            .attach_tun(appliance_host.tun(options.tun_mtu, options.offload[0], &APPLIANCE_INNER))
            .unwrap();
        let accept = session(2, &identity(2), Role::Accept, vec![granted(2)]);
        appliance.handle().upsert_session(accept).unwrap();

        let mut client = config(options.client_identity.clone(), options);
        client.fwmark = options.client_fwmark;
        let client = Peer::start(&client_host, client);
        client
            .handle()
            .attach_tun(client_host.tun(options.tun_mtu, options.offload[1], &CLIENT_INNER))
            .unwrap();
        let dial = client_session(&options.expected_appliance, appliance.port());
        client.handle().upsert_session(dial).unwrap();
        Self { appliance, client, appliance_host, client_host }
    }
}

/// The client's end of session 2.
pub(crate) fn client_session(appliance: &Identity, port: u16) -> SessionConfig {
    let role = Role::Dial { addresses: vec![SocketAddr::from(([10, 0, 0, 1], port))] };
    session(2, appliance, role, vec![attachment(0, &["0.0.0.0/0", "::/0"], Inbound::AnswersOnly)])
}

pub(crate) fn config(identity: Identity, options: &Options) -> TunnelConfig {
    let mut config = TunnelConfig::new(identity);
    config.transport.max_udp_payload = options.udp_payload;
    config
}

/// Another client, number `n`, on a cable of its own.
pub(crate) fn join_client(appliance: &Peer, appliance_host: &Host, n: u8, networks: &[u16]) -> (Peer, Host) {
    let host = Host::new();
    let cable = format!("eth{n}");
    let (near, far) = (format!("10.{n}.0.2/24"), format!("10.{n}.0.1/24"));
    host.join("eth0", &[&near], appliance_host, &cable, &[&far]);
    let client = Peer::start(&host, config(identity(n), &Options::default()));
    let addresses = inner(n).map(|a| if a.contains(':') { format!("{a}/64") } else { format!("{a}/24") });
    client.handle().attach_tun(host.tun(1400, true, &addresses.each_ref().map(String::as_str))).unwrap();
    let everything = ["10.9.0.0/24", "fd09::/64"];
    let attachments = networks.iter().map(|network| {
        client
            .handle()
            .set_network(NetworkConfig { id: NetworkId(*network), delivery: Delivery::Tun })
            .unwrap();
        attachment(*network, &everything, Inbound::Any)
    });
    let remote = format!("10.{n}.0.1:{}", appliance.port()).parse().unwrap();
    let role = Role::Dial { addresses: vec![remote] };
    let dial = session(n, &identity(1), role, attachments.collect());
    admit(appliance, n, networks);
    client.handle().upsert_session(dial).unwrap();
    client.wait_up();
    (client, host)
}

/// Lets client `n` into virtual networks.
pub(crate) fn admit(appliance: &Peer, n: u8, networks: &[u16]) {
    let addresses = inner(n).map(|a| host_prefix(&a));
    let attachments = networks
        .iter()
        .map(|network| attachment(*network, &addresses.each_ref().map(String::as_str), Inbound::Any))
        .collect();
    appliance.handle().upsert_session(session(n, &identity(n), Role::Accept, attachments)).unwrap();
}
