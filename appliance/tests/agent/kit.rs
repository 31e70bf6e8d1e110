//! A host of the test's own, the real program on it, and a controller that the test plays itself.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use horizon_appliance::Status;
use horizon_channel::{Listener, Receiver, Sender};
use horizon_hostnet::{Events, Net};
use horizon_model::{ApplianceReport, ApplianceState, EntryBody, EntryId, PublicKey, Secret, ServerId};
use horizon_wire::{
    Message, convert, envelope,
    envelope::Context,
    key::{self, SigningKey},
    keyset::{self, KeySet, KeySetKey},
    proto::{self, KeyPhase, KeyUse, from_controller::Message as Say, to_controller::Message as Said},
    state::{Entries, Numbered, compose},
    token::RegistrationToken,
};
use nix::sched::{CloneFlags, unshare};
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const INSIDE: &str = "HORIZON_TEST_INSIDE";

/// Runs a test where it may do as it pleases: as root in a new network namespace of the thread, otherwise in a new
/// process with a user namespace, because only a process of one thread can enter one.
pub(crate) fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send) {
    if !nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .expect("the program 'unshare' (apt-get install util-linux)");
        assert!(status.success(), "{name} failed in a user namespace");
        return;
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let net = Net::open().unwrap();
            net.set_link_up("lo", true).await.unwrap();
            tokio::time::timeout(PATIENCE, Box::pin(test())).await.expect("the test hangs");
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(run);
    });
}

/// Waits until `met`, looking again whenever the host's network changes.
pub(crate) async fn until<F: Future<Output = bool>>(events: &mut Events, what: &str, met: impl Fn() -> F) {
    let wait = async {
        while !met().await {
            events.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited too long for: {what}"));
}

/// Runs a command that must succeed.
pub(crate) fn sh(line: &str) {
    let status = Command::new("sh").args(["-ec", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// The program under test, ended when dropped.
pub(crate) struct Program {
    child: tokio::process::Child,
}

impl Program {
    fn command(state: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_horizon-appliance"));
        command
            .arg("--state-dir")
            .arg(state)
            .env("HORIZON_APPLIANCE_LOG", "debug,h2=info")
            .kill_on_drop(true);
        command
    }

    pub(crate) fn run(state: &Path) -> Self {
        Self { child: Self::command(state).arg("run").spawn().unwrap() }
    }

    /// Runs it where `nft` is another program, and nothing else differs.
    pub(crate) fn run_with_nft(state: &Path, nft: &Path) -> Self {
        let real = Self::command(state);
        let mut command = tokio::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", "mount --bind \"$0\" /usr/sbin/nft; exec \"$@\""])
            .arg(nft)
            .arg(real.as_std().get_program())
            .args(real.as_std().get_args())
            .arg("run")
            .env("HORIZON_APPLIANCE_LOG", "debug,h2=info")
            .kill_on_drop(true);
        Self { child: command.spawn().unwrap() }
    }

    pub(crate) fn enrol(state: &Path, token: &str) -> Self {
        let mut command = Self::command(state);
        command.args(["enroll", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let token = token.to_owned();
        tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut stdin, token.as_bytes()).await });
        Self { child }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).unwrap();
    }

    pub(crate) async fn ended(mut self) -> bool {
        self.child.wait().await.unwrap().success()
    }
}

/// What the running appliance says of itself, once it listens.
pub(crate) async fn status(state: &Path) -> Status {
    loop {
        match horizon_appliance::ask(state).await {
            Ok(status) => return status,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A controller in the hands of the test.
pub(crate) struct Controller {
    listener: Listener,
    /// The address that tokens name.
    pub(crate) address: IpAddr,
    pub keys: [SigningKey; 3],
    pub(crate) keyset: proto::SignedKeySet,
    pub(crate) server: ServerId,
    pub(crate) secret: Secret,
    pub(crate) state: Numbered,
    /// After how long a silence appliances ask whether it is there.
    pub(crate) ping_seconds: u32,
    /// Where its other replicas are.
    pub(crate) others: Vec<String>,
}

impl Controller {
    pub(crate) fn new() -> Self {
        let keys = [1, 2, 3].map(|n| SigningKey::from_seed(Secret::new([n; 32])));
        let [root, tls, state] = &keys;
        let key = |usage, key: &SigningKey| KeySetKey {
            usage,
            key: key.public(),
            not_before: 0,
            not_after: i64::MAX,
            phase: KeyPhase::Current,
        };
        let keyset = KeySet {
            version: 1,
            root: root.public(),
            keys: vec![key(KeyUse::Tls, tls), key(KeyUse::State, state)],
            issued: 1,
            revoked: Vec::new(),
        };
        Self {
            listener: Listener::bind("0.0.0.0:0".parse().unwrap(), tls).unwrap(),
            address: [127, 0, 0, 1].into(),
            keyset: keyset.sign(root, None),
            keys,
            server: ServerId(Uuid::from_u128(77)),
            secret: Secret::new([9; 32]),
            state: Numbered::default(),
            ping_seconds: 0,
            others: Vec::new(),
        }
    }

    pub(crate) fn token(&self) -> String {
        RegistrationToken {
            controllers: [vec![self.place()], self.others.clone()].concat(),
            root: key::root_id(&self.keys[0].public()),
            key_name: "test".into(),
            secret: Secret::new([8; 32]),
        }
        .encode()
    }

    /// Where appliances reach it.
    pub(crate) fn place(&self) -> String {
        SocketAddr::new(self.address, self.listener.local_addr().unwrap().port()).to_string()
    }

    /// The next appliance that says Hello, welcomed.
    pub(crate) async fn accept(&self) -> Peer {
        loop {
            let Ok(peer) = self.listener.accept().await.unwrap().handshake().await else { continue };
            let welcome = proto::Welcome {
                version: 1,
                keysets: vec![self.keyset.clone()],
                now: 0,
                software: "test".into(),
                newest_keyset: keyset::read(&self.keyset).unwrap().version,
            };
            let binding = horizon_channel::binding(&peer.connection).unwrap();
            let (key, features) = (peer.key, peer.hello.features.clone());
            let mut peer = Peer {
                remote: peer.remote,
                key,
                features,
                binding,
                sender: peer.sender,
                receiver: peer.receiver,
            };
            peer.say(0, Say::Welcome(welcome)).await;
            return peer;
        }
    }

    /// Plays the whole registration.
    pub(crate) async fn register(&self) -> proto::Register {
        let mut peer = self.accept().await;
        let (request, said) = peer.next().await;
        let Said::Register(register) = said else { panic!("{said:?}") };
        let registered = proto::Registered {
            server_id: self.server.as_bytes().to_vec(),
            server_name: "paris-1".into(),
            verification_secret: self.secret.expose().to_vec(),
        };
        peer.say(request, Say::Registered(registered)).await;
        // The appliance closes when it has the answer.
        while peer.receiver.next().await.is_ok_and(|m| m.is_some()) {}
        register
    }

    /// Welcomes an appliance, takes its attachment, and sends what it lacks.
    pub(crate) async fn attach(&self) -> (Peer, proto::Attach) {
        let mut peer = self.accept().await;
        let (request, said) = peer.next().await;
        let Said::Attach(attach) = said else { panic!("{said:?}") };
        let attached = proto::Attached {
            heartbeat_seconds: 30,
            server_name: "paris-1".into(),
            public_address: peer.remote.ip().to_string(),
            ping_seconds: self.ping_seconds,
        };
        peer.say(request, Say::Attached(attached)).await;
        (peer, attach)
    }

    /// Changes the state.
    pub(crate) fn change(&mut self, bodies: Vec<(EntryId, EntryBody)>) {
        let state = ApplianceState { entries: bodies.into_iter().collect() };
        let generation = self.state.generation + 1;
        self.state = Numbered { epoch: 1, generation, entries: Entries::encode(&state) };
    }

    /// The state as a signed snapshot.
    pub(crate) fn snapshot(&self) -> Say {
        self.signed(&compose(self.server, &Numbered::default(), &self.state))
    }

    pub(crate) fn signed(&self, delta: &proto::StateDelta) -> Say {
        self.sealed(delta.encode_to_vec())
    }

    pub(crate) fn sealed(&self, payload: Vec<u8>) -> Say {
        Say::State(envelope::seal(Context::State, &self.keys[2], payload))
    }

    pub(crate) fn send_probe(&self, port: u16, nonce: [u8; 16]) {
        self.listener.send_probe(([127, 0, 0, 1], port).into(), &nonce).unwrap();
    }
}

/// A connected appliance.
pub(crate) struct Peer {
    remote: SocketAddr,
    /// The key that it proved.
    pub(crate) key: PublicKey,
    /// What it says that it can do.
    pub(crate) features: Vec<String>,
    /// What binds a statement to its connection.
    pub(crate) binding: [u8; 32],
    sender: Sender,
    receiver: Receiver,
}

impl Peer {
    pub(crate) async fn say(&mut self, request: u64, message: Say) {
        self.sender.send(&proto::FromController { request, message: Some(message) }).await.unwrap();
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> (u64, Said) {
        loop {
            let message = self.receiver.next().await.unwrap().expect("the appliance goes on");
            // One without content only asks whether somebody is there.
            if let Some(said) = message.message {
                return (message.request, said);
            }
        }
    }

    /// The next message that `pick` wants; others are passed over.
    pub(crate) async fn find<T>(&mut self, mut pick: impl FnMut(u64, Said) -> Option<T>) -> T {
        loop {
            let (request, said) = self.next().await;
            if let Some(found) = pick(request, said) {
                return found;
            }
        }
    }

    /// The next report that `wanted` accepts.
    pub(crate) async fn report(&mut self, wanted: impl Fn(&ApplianceReport) -> bool) -> ApplianceReport {
        self.find(|_, said| match said {
            Said::Report(report) => Some(convert::decode_report(report).unwrap()).filter(&wanted),
            _ => None,
        })
        .await
    }

    /// The next heartbeat: its request, payload and tag.
    pub(crate) async fn beat(&mut self) -> (u64, proto::HeartbeatBody, Vec<u8>, Vec<u8>) {
        self.find(|request, said| match said {
            Said::Heartbeat(beat) => {
                let body = proto::HeartbeatBody::decode(&beat.payload[..]).unwrap();
                Some((request, body, beat.payload, beat.tag))
            }
            _ => None,
        })
        .await
    }
}

/// An enrolled appliance's state directory.
pub(crate) async fn enrolled(controller: &Controller, dir: &tempfile::TempDir) -> PathBuf {
    let state = dir.path().join("state");
    let program = Program::enrol(&state, &controller.token());
    controller.register().await;
    assert!(program.ended().await);
    state
}

/// Another machine, on a link of its own.
pub(crate) struct Neighbour {
    holder: std::process::Child,
    address: String,
}

impl Neighbour {
    /// A machine in 10.200.N.0/24, whose router is this host at `link`.
    pub(crate) fn new(link: &str, n: u8) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first word says that it is in its own network.
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let address = format!("10.200.{n}.2");
        let neighbour = Self { holder, address };
        let pid = neighbour.holder.id();
        sh(&format!(
            "ip link add {link} type veth peer name wan netns {pid}
             ip address add 10.200.{n}.1/24 dev {link}; ip link set {link} up"
        ));
        neighbour.sh(&format!(
            "ip address add {}/24 dev wan; ip link set wan up; ip route add default via 10.200.{n}.1",
            neighbour.address
        ));
        neighbour
    }

    fn sh(&self, line: &str) -> bool {
        let pid = self.holder.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &pid, "sh", "-ec", line]).stdout(Stdio::null());
        command.status().unwrap().success()
    }

    /// Whether an echo comes back from another.
    pub(crate) fn reaches(&self, other: &Self) -> bool {
        self.sh(&format!("ping -c 3 -i 0.2 -W 1 {}", other.address))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
