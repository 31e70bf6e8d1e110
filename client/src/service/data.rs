//! The data plane of one session: a tunnel that dials the server.

use std::net::SocketAddr;

use horizon_client_core::{
    failure::Failure,
    plan::{self, MARK},
};
use horizon_model::{self as model, Ticket};
use horizon_tunnel::{
    Attachment, Delivery, DestinationRule, DestinationRules, DownReason, Identity, Inbound, NetworkConfig,
    NetworkId, Role, RuleProtocol, Secret32, SessionConfig, SessionId, SessionLimits, TunDevice, Tunnel,
    TunnelConfig, TunnelEvent, TunnelHandle,
};
use horizon_wire::key::SigningKey;
use tokio::sync::watch;

/// The most addresses of a server that are dialled.
const MAX_ADDRESSES: usize = 16;

/// What the tunnel last said. Only the newest matters, so nothing queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PathState {
    /// The server's address, while the tunnel has a connection.
    pub(super) remote: Option<SocketAddr>,
    /// Why the last connection or attempt ended.
    pub(super) trouble: Option<String>,
    /// Whether the TUN device was taken away.
    pub(super) device_lost: bool,
}

/// A running tunnel with its session.
pub(super) struct DataPlane {
    tunnel: Tunnel,
    session: model::SessionId,
}

impl DataPlane {
    /// Starts a tunnel and dials the server at once. What happens is told through `state`.
    pub(super) fn start(
        key: &SigningKey,
        ticket: &Ticket,
        state: watch::Sender<PathState>,
    ) -> Result<Self, Failure> {
        let identity = Identity::from_seed(key.seed().expose()).map_err(|e| failed(&e))?;
        let mut config = TunnelConfig::new(identity);
        config.fwmark = Some(MARK);
        state.send_replace(PathState::default());
        let events = Box::new(move |event| note(&state, event));
        let tunnel = Tunnel::start(config, events).map_err(|e| failed(&e))?;
        let mut plane = Self { tunnel, session: ticket.session };
        plane.dial(ticket)?;
        Ok(plane)
    }

    /// Dials with another ticket; a session it replaces is dropped.
    pub(super) fn dial(&mut self, ticket: &Ticket) -> Result<(), Failure> {
        let handle = self.tunnel.handle();
        for network in &ticket.networks {
            let id = NetworkId(network.id.0);
            handle.set_network(NetworkConfig { id, delivery: Delivery::Tun }).map_err(|e| failed(&e))?;
        }
        if self.session != ticket.session {
            handle
                .remove_session(session_id(self.session), "replaced by a newer session")
                .map_err(|e| failed(&e))?;
            self.session = ticket.session;
        }
        handle.upsert_session(config(ticket)?).map_err(|e| failed(&e))
    }

    /// Gives the tunnel its TUN device.
    pub(super) fn attach(&self, device: TunDevice) -> Result<(), Failure> {
        self.tunnel.handle().attach_tun(device).map_err(|e| failed(&e))
    }

    /// To ask for counters.
    pub(super) fn handle(&self) -> TunnelHandle {
        self.tunnel.handle()
    }

    /// Says goodbye to the server and removes the TUN device. Waits for both.
    pub(super) fn shutdown(self) {
        self.tunnel.shutdown();
    }
}

/// The tunnel's name of a session.
pub(super) fn session_id(id: model::SessionId) -> SessionId {
    SessionId(*id.as_bytes())
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("the tunnel cannot be started: {error}"), "")
}

fn config(ticket: &Ticket) -> Result<SessionConfig, Failure> {
    let reached = plan::reached(ticket);
    let attachments = ticket.networks.iter().map(|network| {
        let own = network.addresses.iter().map(|a| DestinationRule {
            prefix: plan::single(a.addr()),
            protocol: RuleProtocol::Any,
            ports: Vec::new(),
        });
        Ok(Attachment {
            network: NetworkId(network.id.0),
            peer_addresses: reached.iter().filter(|r| r.network == network.id).map(|r| r.to).collect(),
            from_peer: DestinationRules::new(own.collect()).map_err(|e| failed(&e))?,
            inbound: match network.inbound {
                model::Inbound::AnswersOnly => Inbound::AnswersOnly,
                model::Inbound::Any => Inbound::Any,
            },
        })
    });
    Ok(SessionConfig {
        id: session_id(ticket.session),
        secret: Secret32::new(*ticket.secret.expose()),
        peer_key: *ticket.appliance_key.as_bytes(),
        role: Role::Dial { addresses: ticket.addresses.iter().copied().take(MAX_ADDRESSES).collect() },
        attachments: attachments.collect::<Result<_, Failure>>()?,
        limits: SessionLimits::default(),
    })
}

fn note(state: &watch::Sender<PathState>, event: TunnelEvent) {
    tracing::debug!(?event, "tunnel");
    state.send_if_modified(|state| {
        let before = state.clone();
        match event {
            TunnelEvent::SessionUp { remote, .. } | TunnelEvent::PathChanged { remote, .. } => {
                state.remote = Some(remote);
                state.trouble = None;
            }
            TunnelEvent::SessionDown { reason: DownReason::Local, .. } => {}
            TunnelEvent::SessionDown { reason, .. } => {
                state.remote = None;
                state.trouble = Some(reason.to_string());
            }
            TunnelEvent::AttemptFailed { remote, reason, .. } => {
                state.trouble = Some(format!("{remote}: {reason}"));
            }
            TunnelEvent::SessionRefused { reason, .. } => state.trouble = Some(reason),
            TunnelEvent::TunLost { .. } => state.device_lost = true,
            // Violations are counted by the tunnel and shown by the status; nobody probes a client.
            TunnelEvent::Violation { .. } | TunnelEvent::Probe { .. } => {}
        }
        *state != before
    });
}
