//! What the owner asks for.

use super::Driver;
use crate::{PathSnapshot, SessionSnapshot, Snapshot, handle::Command, socket::canonical};

impl Driver {
    pub(super) fn take_commands(&mut self) {
        let mut count = [0; 8];
        // Resets the counter, so that poll sleeps again; commands sent meanwhile raise it anew.
        let _ = rustix::io::read(&*self.wake, &mut count);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::UpsertSession(config) => self.upsert_session(*config),
                Command::RemoveSession { id, text } => self.remove_session(id, &text),
                Command::SetNetwork(network) => self.forwarder.set_network(network),
                Command::RemoveNetwork(id) => self.forwarder.remove_network(id),
                Command::AttachTun(device) => self.attach_tun(*device),
                Command::DetachTun => self.tun = None,
                Command::Stats(reply) => {
                    // Whoever asked may have gone.
                    let _ = reply.try_send(self.snapshot());
                }
                Command::Stop { graceful } => {
                    if graceful {
                        self.close_all();
                    }
                    self.stopping = true;
                    return;
                }
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let sessions = self.by_id.iter().filter_map(|(id, slot)| {
            let session = self.sessions.get(slot.0 as usize)?.as_ref()?;
            let link = session.active.and_then(|index| self.links.get(index)?.as_deref());
            let path = link.map(|link| {
                let stats = link.connection.stats().path;
                PathSnapshot {
                    remote: canonical(link.connection.remote_address()),
                    rtt: stats.rtt,
                    mtu: session.path.max_datagram.saturating_sub(horizon_tunnel_core::header::WHOLE_LEN),
                    sent_packets: stats.sent_packets,
                    lost_packets: stats.lost_packets,
                    congestion_window: stats.cwnd,
                }
            });
            let counters = self.forwarder.counters(*slot);
            Some(SessionSnapshot { id: *id, counters, queued_packets: session.queue.len(), path })
        });
        let global = crate::GlobalCounters { queued_bytes: self.budget.used(), ..self.counters };
        Snapshot { sessions: sessions.collect(), global, tun_attached: self.tun.is_some() }
    }
}
