//! What the controller is asked for the session: a ticket, another server.

use horizon_client_core::session::Answer;
use horizon_model::SessionId;
use horizon_wire::{
    convert,
    proto::{self, from_controller, to_controller},
};

use super::{Actor, Granted, Internal};
use crate::service::answers::{open_ticket, server_views, unreadable};

impl Actor {
    pub(super) fn request(&self, attempt: u64, server: String, take_over: Option<SessionId>) {
        let (link, inner, key) = (self.out.link.clone(), self.inner.clone(), self.key);
        let device = self.enrolment.as_ref().map(|e| e.device);
        tokio::spawn(async move {
            let take_over = take_over.map(|s| s.as_bytes().to_vec()).unwrap_or_default();
            let message = to_controller::Message::RequestSession(proto::RequestSession { server, take_over });
            let answer = match link.ask(message).await {
                Ok((from_controller::Message::Ticket(envelope), keyset)) => {
                    open_ticket(&envelope, &keyset, &key, device)
                        .map(|ticket| Box::new(Granted { ticket, envelope }))
                        .map_err(Answer::Failed)
                }
                Ok((from_controller::Message::Conflict(conflict), _)) => {
                    Err(convert::decode_conflict(conflict)
                        .map_or_else(|_| Answer::Failed(unreadable()), Answer::Conflict))
                }
                Ok(_) => Err(Answer::Failed(unreadable())),
                Err(failure) => Err(Answer::Failed(failure)),
            };
            // Nobody listens any more only when the service ends.
            let _ = inner.send(Internal::Answered { attempt, answer }).await;
        });
    }

    /// Looks for an available server that offers what the session in use was granted.
    pub(super) fn find(&self, attempt: u64, instead_of: String) {
        let (link, inner) = (self.out.link.clone(), self.inner.clone());
        let granted = self.current.as_ref().map(|c| c.ticket.capabilities.clone()).unwrap_or_default();
        tokio::spawn(async move {
            let answer = link.ask(to_controller::Message::ListServers(proto::ListServers {})).await;
            let server = match answer {
                Ok((from_controller::Message::Servers(list), _)) => {
                    server_views(list).unwrap_or_default().into_iter().find(|server| {
                        server.available
                            && server.name != instead_of
                            && granted.iter().all(|capability| server.capabilities.contains(capability))
                    })
                }
                _ => None,
            };
            // Nobody listens any more only when the service ends.
            let _ = inner.send(Internal::Found { attempt, server: server.map(|s| s.name) }).await;
        });
    }
}
