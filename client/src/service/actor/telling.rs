//! What is told of the session: to front ends, and to the controller.

use std::time::Instant;

use horizon_client_core::{
    failure::Failure,
    ipc::{Message, Reply},
    session::Phase,
    status::{DeviceView, SessionView, Status},
};
use horizon_model::Failover;
use horizon_wire::proto::{self, from_controller, to_controller};
use tokio::sync::mpsc;

use super::{Actor, send};
use crate::service::{
    answers::{measure, server_views, unreadable},
    data::session_id,
};

impl Actor {
    pub(super) fn servers(&self, to: mpsc::Sender<Message>) {
        let link = self.out.link.clone();
        tokio::spawn(async move {
            let message = match link.ask(to_controller::Message::ListServers(proto::ListServers {})).await {
                Ok((from_controller::Message::Servers(list), _)) => match server_views(list) {
                    Some(servers) => Message::Done(Reply::Servers { servers }),
                    None => Message::Failed(unreadable()),
                },
                Ok(_) => Message::Failed(unreadable()),
                Err(failure) => Message::Failed(failure),
            };
            send(&to, message);
        });
    }

    /// Tells the controller what went through the session, so that it can be held against what the appliance counts.
    pub(super) fn report_session(&self) {
        if self.machine.phase() != Phase::Connected {
            return;
        }
        let Some((handle, session)) =
            self.current.as_ref().and_then(|c| Some((c.handle.clone()?, c.ticket.session)))
        else {
            return;
        };
        let link = self.out.link.clone();
        tokio::spawn(async move {
            let Ok(Ok(snapshot)) = tokio::task::spawn_blocking(move || handle.stats()).await else { return };
            let Some(found) = snapshot.sessions.iter().find(|s| s.id == session_id(session)) else { return };
            let report = proto::SessionReport {
                session: session.as_bytes().to_vec(),
                connected: found.path.is_some(),
                bytes_sent: found.counters.bytes_to_peer,
                bytes_received: found.counters.bytes_from_peer,
            };
            link.mention(to_controller::Message::SessionReport(report)).await;
        });
    }

    pub(super) fn report_status(&self, to: mpsc::Sender<Message>) {
        let mut status = self.status();
        let asked = self.current.as_ref().and_then(|c| Some((c.handle.clone()?, c.ticket.session)));
        tokio::spawn(async move {
            if let (Some((handle, id)), Some(session)) = (asked, &mut status.session)
                && let Ok(Ok(snapshot)) = tokio::task::spawn_blocking(move || handle.stats()).await
                && let Some(found) = snapshot.sessions.iter().find(|s| s.id == session_id(id))
            {
                measure(session, found);
            }
            send(&to, Message::Done(Reply::Status(Box::new(status))));
        });
    }

    /// Why there is no path, while there is none, and whether another server is to be expected.
    pub(super) fn trouble(&self) -> Option<Failure> {
        if self.machine.phase() != Phase::Reconnecting {
            return None;
        }
        let (message, why) = match (&self.path.trouble, self.machine.failover()) {
            (Some(trouble), policy) => (format!("the path to the server is broken: {trouble}"), policy),
            (None, Some(Failover::Never)) => {
                ("the path to the server is lost".to_owned(), Some(Failover::Never))
            }
            (None, _) => return None,
        };
        let remedy = match why {
            Some(Failover::Never) => {
                "it is tried again and again; a policy of your organisation forbids failover to another server"
            }
            _ => "it is tried again and again",
        };
        Some(Failure::failed(message, remedy))
    }

    pub(super) fn status(&self) -> Status {
        let now = Instant::now();
        let session = self.current.as_ref().filter(|_| self.machine.session().is_some()).map(|current| {
            let ticket = &current.ticket;
            let seconds = |at: Instant| at.saturating_duration_since(now).as_secs();
            SessionView {
                id: ticket.session,
                since: current.since,
                seconds: self.machine.granted().map_or(0, |g| (now - g).as_secs()),
                remote: self.machine.path().map(|p| p.remote),
                rtt_micros: None,
                pathless_seconds: self.machine.pathless_since().map(|s| (now - s).as_secs()),
                confirm_seconds: self.machine.confirm_by().map(seconds),
                addresses: ticket.networks.iter().flat_map(|n| n.addresses.iter().copied()).collect(),
                routes: ticket.networks.iter().flat_map(|n| n.routes.iter().copied()).collect(),
                dns: ticket.dns.clone(),
                networks: ticket.networks.iter().map(|n| n.name.clone()).filter(|n| !n.is_empty()).collect(),
                mtu: ticket.mtu,
                bytes_sent: 0,
                bytes_received: 0,
                violations: std::collections::BTreeMap::new(),
            }
        });
        let failure = self.machine.failure().cloned().or_else(|| self.trouble());
        Status {
            phase: self.machine.phase(),
            failure,
            device: self.enrolment.as_ref().map(|e| DeviceView {
                user: e.user.clone(),
                name: e.name.clone(),
                id: e.device,
            }),
            server: self.machine.server().map(str::to_owned),
            moved: self.machine.moved().cloned(),
            session,
            key_notice: self.key_notice.clone(),
            controller: self.out.link.view(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}
