//! A controller and a server that speak the real protocols and decide nothing by themselves.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use horizon_channel::{Listener, Peer};
use horizon_model::{
    Capability, DeviceId, Inbound, KeyId, NetworkId, PublicKey, Secret, ServerId, SessionConflict, SessionId,
    TaggedSecret, Ticket, TicketNetwork,
};
use horizon_tunnel as tunnel;
use horizon_wire::{
    convert,
    envelope::{self, Context},
    key::{self, SigningKey},
    keyset::{KeySet, KeySetKey},
    proto::{
        self, KeyPhase, KeyUse, RefusalCode, from_controller::Message as From, to_controller::Message as To,
    },
    refusal::Refusal,
    token::PersonalKey,
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use uuid::Uuid;

const KEY_ID: KeyId = KeyId(Uuid::from_u128(11));
const DEVICE: DeviceId = DeviceId(Uuid::from_u128(12));

/// What a session is granted: its own addresses, routes and resolvers.
pub(crate) struct Grant {
    addresses: Vec<&'static str>,
    routes: Vec<&'static str>,
    dns: Vec<&'static str>,
}

/// Everything over IPv4 through the server.
pub(crate) fn full_tunnel() -> Grant {
    Grant { addresses: vec!["100.64.0.5/16"], routes: vec!["0.0.0.0/0"], dns: vec!["100.64.0.1"] }
}

struct State {
    grant: Grant,
    sessions: Vec<SessionId>,
    elsewhere: Option<SessionId>,
    push: Vec<mpsc::Sender<From>>,
    serial: u128,
}

struct Shared {
    root: SigningKey,
    tls: SigningKey,
    tickets: SigningKey,
    appliance: SigningKey,
    keyset: proto::SignedKeySet,
    tunnel: tunnel::TunnelHandle,
    tunnel_address: SocketAddr,
    state: Mutex<State>,
}

/// A controller on a loopback port, and a server's tunnel on another.
pub(crate) struct Organisation {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Arc<Listener>,
    runtime: Option<tokio::runtime::Runtime>,
    _tunnel: tunnel::Tunnel,
}

fn seed(n: u8) -> SigningKey {
    SigningKey::from_seed(Secret::new([n; 32]))
}

impl Organisation {
    pub(crate) fn start(grant: Grant) -> Self {
        let appliance = seed(4);
        let identity = tunnel::Identity::from_seed(appliance.seed().expose()).unwrap();
        let mut config = tunnel::TunnelConfig::new(identity);
        config.listen = "127.0.0.1:0".parse().unwrap();
        let running =
            tunnel::Tunnel::start(config, Box::new(|event| eprintln!("server: {event:?}"))).unwrap();
        let state = State { grant, sessions: Vec::new(), elsewhere: None, push: Vec::new(), serial: 100 };
        let (root, tls, tickets) = (seed(1), seed(2), seed(3));
        let keyset = keyset(&root, &tls, &tickets);
        let shared = Arc::new(Shared {
            root,
            tls,
            tickets,
            appliance,
            keyset,
            tunnel: running.handle(),
            tunnel_address: running.local_addr(),
            state: Mutex::new(state),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let listener = Arc::new(Listener::bind("127.0.0.1:0".parse().unwrap(), &shared.tls).unwrap());
        drop(entered);
        let address = listener.local_addr().unwrap();
        let (accepting, known) = (listener.clone(), shared.clone());
        runtime.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let shared = known.clone();
                tokio::spawn(async move {
                    if let Ok(peer) = incoming.handshake().await {
                        converse(peer, shared).await;
                    }
                });
            }
        });
        Self { shared, address, listener, runtime: Some(runtime), _tunnel: running }
    }

    fn personal_key(&self, secret: u8) -> String {
        PersonalKey {
            controllers: vec![self.address.to_string()],
            root: key::root_id(&self.shared.root.public()),
            id: KEY_ID,
            secret: TaggedSecret::new(&[secret; 32], [secret; 4]),
        }
        .encode()
    }

    pub(crate) fn key(&self) -> String {
        self.personal_key(7)
    }

    pub(crate) fn wrong_key(&self) -> String {
        self.personal_key(8)
    }

    pub(crate) fn tunnel_port(&self) -> u16 {
        self.shared.tunnel_address.port()
    }

    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.shared.state.lock().unwrap().sessions.clone()
    }

    /// Another device of the user holds the session.
    pub(crate) fn hold_elsewhere(&self) {
        self.shared.state.lock().unwrap().elsewhere = Some(SessionId(Uuid::from_u128(77)));
    }

    /// Ends every session, as a change of policy does.
    pub(crate) fn end_sessions(&self, reason: &str) {
        let mut state = self.shared.state.lock().unwrap();
        for session in std::mem::take(&mut state.sessions) {
            self.shared.tunnel.remove_session(tunnel::SessionId(*session.as_bytes()), reason).unwrap();
            let ended = proto::SessionEnded { session: session.as_bytes().to_vec(), reason: reason.into() };
            for push in &state.push {
                let _ = push.try_send(From::SessionEnded(ended.clone()));
            }
        }
    }

    /// How many channels there were so far.
    pub(crate) fn channels(&self) -> usize {
        self.shared.state.lock().unwrap().push.len()
    }

    /// Asks every device to use another replica: one that is not there, or this again.
    pub(crate) fn send_elsewhere(&self) {
        let addresses = vec!["127.0.0.1:1".to_owned(), self.address.to_string()];
        for push in &self.shared.state.lock().unwrap().push {
            // Channels of before are gone.
            let _ = push.try_send(From::GoElsewhere(proto::GoElsewhere { addresses: addresses.clone() }));
        }
    }

    /// The server forgets every session, and the next names other resolvers.
    pub(crate) fn regrant(&self, dns: Vec<&'static str>) {
        let mut state = self.shared.state.lock().unwrap();
        state.grant.dns = dns;
        for session in std::mem::take(&mut state.sessions) {
            self.shared.tunnel.remove_session(tunnel::SessionId(*session.as_bytes()), "restarted").unwrap();
        }
    }

    /// Takes the controller away; the server stays. Returns where it was.
    pub(crate) fn stop_controller(&mut self) -> String {
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(self.listener.close("stopped"));
            runtime.shutdown_background();
        }
        self.address.to_string()
    }
}

fn keyset(root: &SigningKey, tls: &SigningKey, tickets: &SigningKey) -> proto::SignedKeySet {
    let now = Timestamp::now().as_millisecond();
    let listed = |usage, key: &SigningKey| KeySetKey {
        usage,
        key: key.public(),
        not_before: now - 3_600_000,
        not_after: now + 3_600_000,
        phase: KeyPhase::Current,
    };
    let keys = vec![listed(KeyUse::Tls, tls), listed(KeyUse::Ticket, tickets)];
    KeySet { version: 1, root: root.public(), keys, issued: 1, revoked: Vec::new() }.sign(root, None)
}

async fn converse(mut peer: Peer, shared: Arc<Shared>) {
    let welcome = proto::Welcome {
        version: 1,
        keysets: vec![shared.keyset.clone()],
        now: Timestamp::now().as_millisecond(),
        software: "test".into(),
        newest_keyset: 1,
    };
    let (push, mut pushed) = mpsc::channel(8);
    shared.state.lock().unwrap().push.push(push);
    let mut message = (0, From::Welcome(welcome));
    loop {
        let sent = proto::FromController { request: message.0, message: Some(message.1) };
        if peer.sender.send(&sent).await.is_err() {
            return;
        }
        message = loop {
            tokio::select! {
                Some(pushed) = pushed.recv() => break (0, pushed),
                received = peer.receiver.next() => {
                    let Ok(Some(proto::ToController { request, message: Some(asked) })) = received else { return };
                    if let Some(answer) = answer(&shared, &peer.key, asked) {
                        break (request, answer);
                    }
                }
            }
        };
    }
}

fn refused(code: RefusalCode, message: &str, remedy: &str) -> From {
    From::Refused(Refusal::new(code, message, remedy).into())
}

fn answer(shared: &Shared, device_key: &PublicKey, asked: To) -> Option<From> {
    let mut state = shared.state.lock().unwrap();
    Some(match asked {
        To::EnrolDevice(enrol) if enrol.secret == [7; 36] && enrol.key_id == KEY_ID.as_bytes() => {
            From::DeviceEnrolled(proto::DeviceEnrolled {
                device_id: DEVICE.as_bytes().to_vec(),
                user: "ana".into(),
            })
        }
        To::EnrolDevice(_) => {
            refused(RefusalCode::Revoked, "the personal key was revoked", "ask for another")
        }
        To::ListServers(_) => From::Servers(proto::Servers {
            servers: vec![proto::ServerSummary {
                name: "paris-1".into(),
                available: true,
                capabilities: convert::encode_capabilities(&[Capability::Vpn]),
                ..proto::ServerSummary::default()
            }],
        }),
        // Whose appliance is asked and never answers.
        To::RequestSession(request) if request.server == "slow-1" => return None,
        To::RequestSession(request) if request.server == "paris-1" => {
            match state.elsewhere {
                Some(held) if request.take_over != held.as_bytes() => {
                    return Some(From::Conflict(convert::encode_conflict(&SessionConflict {
                        session: held,
                        device_name: "desktop".into(),
                        server_name: "paris-1".into(),
                        since: Timestamp::now(),
                    })));
                }
                _ => state.elsewhere = None,
            }
            let ticket = ticket(shared, &mut state, device_key);
            From::Ticket(envelope::seal(Context::Ticket, &shared.tickets, convert::encode_ticket(&ticket)))
        }
        To::RequestSession(_) => refused(
            RefusalCode::Policy,
            "no policy lets ana use oslo-1",
            "[[resource]]\nkind = \"AccessPolicy\"",
        ),
        To::EndSession(end) => {
            state.sessions.retain(|s| end.session != s.as_bytes());
            return None;
        }
        _ => refused(RefusalCode::Malformed, "not for this test", ""),
    })
}

fn ticket(shared: &Shared, state: &mut State, device_key: &PublicKey) -> Ticket {
    state.serial += 1;
    let session = SessionId(Uuid::from_u128(state.serial));
    state.sessions.push(session);
    let secret = Secret::new([state.serial as u8; 32]);
    let addresses: Vec<ipnet::IpNet> = state.grant.addresses.iter().map(|a| a.parse().unwrap()).collect();
    shared
        .tunnel
        .upsert_session(tunnel::SessionConfig {
            id: tunnel::SessionId(*session.as_bytes()),
            secret: tunnel::Secret32::new(*secret.expose()),
            peer_key: *device_key.as_bytes(),
            role: tunnel::Role::Accept,
            attachments: vec![tunnel::Attachment {
                network: tunnel::NetworkId(0),
                peer_addresses: addresses.iter().map(|a| ipnet::IpNet::from(a.addr())).collect(),
                from_peer: tunnel::DestinationRules::allow_all(),
                inbound: tunnel::Inbound::Any,
            }],
            limits: tunnel::SessionLimits::default(),
        })
        .unwrap();
    Ticket {
        session,
        server: ServerId(Uuid::from_u128(1)),
        server_name: "paris-1".into(),
        device: DEVICE,
        device_key: *device_key,
        appliance_key: shared.appliance.public(),
        addresses: vec![shared.tunnel_address],
        secret,
        networks: vec![TicketNetwork {
            id: NetworkId::ACCESS,
            name: String::new(),
            addresses,
            routes: state.grant.routes.iter().map(|r| r.parse().unwrap()).collect(),
            inbound: Inbound::AnswersOnly,
        }],
        dns: state.grant.dns.iter().map(|d| d.parse().unwrap()).collect(),
        capabilities: vec![Capability::Vpn],
        mtu: 1420,
        issued: Timestamp::now(),
        failover: horizon_model::Failover::Allowed,
    }
}
