//! Where each packet goes: to the TUN device, to a session, back to its sender as an ICMP message, or nowhere.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    flow::FlowTable,
    icmp::{self, Refusal},
    ids::{NetworkId, Slot},
    limit::TokenBucket,
    packet::{Packet, Upper, tcp},
    routes::RouteTable,
    session::{Attachment, Counters, Delivery, DropReason, Inbound, NetworkConfig, RateLimit, SessionLimits},
};

/// ICMP messages a second that one session can cause.
const ICMP_PER_SECOND: u64 = 50;
/// Smallest burst of a rate limit: a super-packet is judged as one and must fit.
const MIN_BURST: u64 = 128 * 1024;
/// How long a decision about a flow is reused without looking again. Short, so that flow timeouts are refreshed and
/// nothing is decided on what was.
const RECENT: Duration = Duration::from_millis(200);

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the TUN device.
    ToTun,
    /// It goes to a session, in a network.
    ToSession {
        /// Which session.
        slot: Slot,
        /// In which network.
        network: NetworkId,
    },
    /// It is dropped and this IP packet goes back to where it came from.
    Reply {
        /// A whole IP packet.
        message: Bytes,
        /// Why it is dropped.
        reason: DropReason,
    },
    /// It is dropped.
    Drop(DropReason),
}

/// The sessions and networks of one tunnel, as far as packets are concerned.
#[derive(Debug, Default)]
pub struct Forwarder {
    networks: HashMap<NetworkId, Network>,
    tun_routes: RouteTable<(Slot, NetworkId)>,
    sessions: SlotTable,
    /// Changes with every change of configuration, so that no decision outlives one.
    epoch: u64,
}

/// Sessions by slot.
#[derive(Debug, Default)]
struct SlotTable(Vec<Option<Session>>);

impl SlotTable {
    fn get(&self, slot: Slot) -> Option<&Session> {
        self.0.get(slot.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: Slot) -> Option<&mut Session> {
        self.0.get_mut(slot.0 as usize)?.as_mut()
    }

    fn take(&mut self, slot: Slot) -> Option<Session> {
        self.0.get_mut(slot.0 as usize)?.take()
    }

    fn insert(&mut self, slot: Slot, session: Session) {
        let index = slot.0 as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(session);
    }

    fn iter(&self) -> impl Iterator<Item = (Slot, &Session)> {
        (0..).map(Slot).zip(&self.0).filter_map(|(slot, session)| Some((slot, session.as_ref()?)))
    }
}

#[derive(Debug)]
struct Network {
    delivery: Delivery,
    /// Of switched networks: who has which address.
    members: RouteTable<Slot>,
}

#[derive(Debug)]
struct Session {
    attachments: Vec<Attached>,
    limit_from_peer: Option<TokenBucket>,
    limit_to_peer: Option<TokenBucket>,
    limits: SessionLimits,
    icmp: TokenBucket,
    counters: Counters,
    recent: Option<Recent>,
}

#[derive(Debug)]
struct Attached {
    config: Attachment,
    flows: FlowTable,
}

/// The last accepted flow of a session, so that the packets of a burst are judged once.
#[derive(Debug)]
struct Recent {
    key: RecentKey,
    verdict: Verdict,
    until: Instant,
    epoch: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct RecentKey {
    network: NetworkId,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
}

impl RecentKey {
    fn of(network: NetworkId, packet: &Packet) -> Option<Self> {
        let ports = match packet.upper {
            Upper::Tcp { flags, .. } if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 => return None,
            _ if packet.fragment.is_some() => return None,
            _ => packet.ports()?,
        };
        let Packet { source, destination, protocol, .. } = *packet;
        Some(Self { network, source, destination, protocol, ports })
    }
}

impl Forwarder {
    /// Adds or changes a network.
    pub fn set_network(&mut self, config: NetworkConfig) {
        self.epoch += 1;
        let id = config.id;
        let attached: Vec<_> = self.attachments_to(id).collect();
        for (slot, prefix) in &attached {
            self.unroute(*slot, id, *prefix);
        }
        self.networks.insert(id, Network { delivery: config.delivery, members: RouteTable::default() });
        for (slot, prefix) in attached {
            self.route(slot, id, prefix);
        }
    }

    /// Removes a network; packets in it are dropped from now on.
    pub fn remove_network(&mut self, id: NetworkId) {
        self.epoch += 1;
        let attached: Vec<_> = self.attachments_to(id).collect();
        for (slot, prefix) in attached {
            self.unroute(slot, id, prefix);
        }
        self.networks.remove(&id);
    }

    /// Adds a session, or changes one in place: its counters, flows and limits in use stay.
    pub fn set_session(&mut self, slot: Slot, attachments: Vec<Attachment>, limits: SessionLimits) {
        self.epoch += 1;
        let mut old = self.sessions.take(slot);
        if let Some(old) = &old {
            self.unroute_all(slot, old);
        }
        let mut attached = Vec::with_capacity(attachments.len());
        for config in attachments {
            let flows = old
                .as_mut()
                .and_then(|old| old.attachments.iter_mut().find(|a| a.config.network == config.network))
                .map(|a| std::mem::take(&mut a.flows))
                .unwrap_or_default();
            for prefix in &config.peer_addresses {
                self.route(slot, config.network, *prefix);
            }
            attached.push(Attached { config, flows });
        }
        let bucket = |limit: RateLimit| TokenBucket::new(limit.bytes_per_second, limit.burst.max(MIN_BURST));
        let session = match old {
            Some(old) if old.limits == limits => Session { attachments: attached, recent: None, ..old },
            old => Session {
                attachments: attached,
                limit_from_peer: limits.from_peer.map(bucket),
                limit_to_peer: limits.to_peer.map(bucket),
                limits,
                icmp: TokenBucket::new(ICMP_PER_SECOND, ICMP_PER_SECOND),
                counters: old.map(|old| old.counters).unwrap_or_default(),
                recent: None,
            },
        };
        self.sessions.insert(slot, session);
    }

    /// Removes a session and its routes.
    pub fn remove_session(&mut self, slot: Slot) {
        self.epoch += 1;
        if let Some(session) = self.sessions.take(slot) {
            self.unroute_all(slot, &session);
        }
    }

    /// The counters of a session.
    pub fn counters(&self, slot: Slot) -> Counters {
        self.sessions.get(slot).map(|session| session.counters).unwrap_or_default()
    }

    /// Counts a drop decided elsewhere.
    pub fn count_drop(&mut self, slot: Slot, reason: DropReason) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.counters.drops.count(reason);
        }
    }

    /// Counts packets handed to QUIC toward a peer.
    pub fn count_sent(&mut self, slot: Slot, packets: u64, bytes: u64) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.counters.packets_to_peer += packets;
            session.counters.bytes_to_peer += bytes;
        }
    }

    /// Decides about a packet read from the TUN device. Super-packets are judged as one.
    pub fn from_tun(&mut self, now: Instant, packet: &Packet) -> Verdict {
        let route = self.tun_routes.lookup(packet.destination).filter(|_| is_routable(packet));
        let Some((slot, network)) = route else { return Verdict::Drop(DropReason::NoRoute) };
        let Some(session) = self.sessions.get_mut(slot) else { return Verdict::Drop(DropReason::NoRoute) };
        if !session.may_send(now, packet.length) {
            return Verdict::Drop(DropReason::RateLimited);
        }
        if let Some(attached) = session.attachments.iter_mut().find(|a| a.config.network == network)
            && attached.config.inbound == Inbound::AnswersOnly
        {
            attached.flows.outbound(now, packet);
        }
        Verdict::ToSession { slot, network }
    }

    /// Decides about a packet that a session's peer sent in `network`. `bytes` is the packet that `packet` describes.
    pub fn from_session(
        &mut self,
        now: Instant,
        slot: Slot,
        network: NetworkId,
        packet: &Packet,
        bytes: &[u8],
    ) -> Verdict {
        let verdict = self.judge(now, slot, network, packet, bytes);
        if let Some(session) = self.sessions.get_mut(slot) {
            match &verdict {
                Verdict::ToTun | Verdict::ToSession { .. } => {
                    session.counters.packets_from_peer += 1;
                    session.counters.bytes_from_peer += packet.length as u64;
                }
                Verdict::Reply { reason, .. } | Verdict::Drop(reason) => {
                    session.counters.drops.count(*reason)
                }
            }
        }
        verdict
    }

    /// Builds an ICMP answer to a packet from or to a session, within the session's rate of such messages.
    pub fn icmp_answer(
        &mut self,
        now: Instant,
        slot: Slot,
        packet: &Packet,
        bytes: &[u8],
        refusal: Refusal,
    ) -> Option<Bytes> {
        let session = self.sessions.get_mut(slot)?;
        let message = icmp::answer(bytes, packet, refusal)?;
        session.icmp.take(now, 1).then_some(message)
    }

    fn judge(
        &mut self,
        now: Instant,
        slot: Slot,
        network: NetworkId,
        packet: &Packet,
        bytes: &[u8],
    ) -> Verdict {
        let Some(session) = self.sessions.get_mut(slot) else {
            return Verdict::Drop(DropReason::WrongNetwork);
        };
        if !session.may_receive(now, packet.length) {
            return Verdict::Drop(DropReason::RateLimited);
        }
        let key = RecentKey::of(network, packet);
        if let (Some(key), Some(recent)) = (&key, &session.recent)
            && recent.key == *key
            && recent.epoch == self.epoch
            && now < recent.until
        {
            let verdict = recent.verdict.clone();
            return self.charge_target(now, packet, verdict);
        }
        let Some(known) = self.networks.get(&network) else { return Verdict::Drop(DropReason::WrongNetwork) };
        let Some(attached) = session.attachments.iter_mut().find(|a| a.config.network == network) else {
            return Verdict::Drop(DropReason::WrongNetwork);
        };
        if !is_routable(packet) {
            return Verdict::Drop(DropReason::NoRoute);
        }
        let config = &attached.config;
        if !config.peer_addresses.iter().any(|prefix| prefix.contains(&packet.source)) {
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        if !config.from_peer.allow(packet) {
            return self.refuse(now, slot, packet, bytes, DropReason::Forbidden);
        }
        let verdict = match known.delivery {
            Delivery::Tun => {
                let asked = config.inbound == Inbound::Any || attached.flows.answers(now, packet, bytes);
                if !asked {
                    return Verdict::Drop(DropReason::Unsolicited);
                }
                Verdict::ToTun
            }
            Delivery::Switch => match known.members.lookup(packet.destination) {
                Some(target) if target != slot => Verdict::ToSession { slot: target, network },
                _ => return Verdict::Drop(DropReason::NoRoute),
            },
        };
        if let Some(key) = key {
            let (until, epoch) = (now + RECENT, self.epoch);
            session.recent = Some(Recent { key, verdict: verdict.clone(), until, epoch });
        }
        self.charge_target(now, packet, verdict)
    }

    /// A switched packet also counts against the limit toward its target.
    fn charge_target(&mut self, now: Instant, packet: &Packet, verdict: Verdict) -> Verdict {
        let Verdict::ToSession { slot, .. } = verdict else { return verdict };
        match self.sessions.get_mut(slot).map(|target| target.may_send(now, packet.length)) {
            Some(true) => verdict,
            Some(false) => Verdict::Drop(DropReason::RateLimited),
            None => Verdict::Drop(DropReason::NoRoute),
        }
    }

    fn refuse(
        &mut self,
        now: Instant,
        slot: Slot,
        packet: &Packet,
        bytes: &[u8],
        reason: DropReason,
    ) -> Verdict {
        match self.icmp_answer(now, slot, packet, bytes, Refusal::AdminProhibited) {
            Some(message) => Verdict::Reply { message, reason },
            None => Verdict::Drop(reason),
        }
    }

    fn attachments_to(&self, id: NetworkId) -> impl Iterator<Item = (Slot, ipnet::IpNet)> + '_ {
        self.sessions.iter().flat_map(move |(slot, session)| {
            let attached = session.attachments.iter().filter(move |a| a.config.network == id);
            attached.flat_map(move |a| a.config.peer_addresses.iter().map(move |prefix| (slot, *prefix)))
        })
    }

    fn route(&mut self, slot: Slot, id: NetworkId, prefix: ipnet::IpNet) {
        match self.networks.get_mut(&id) {
            Some(Network { delivery: Delivery::Tun, .. }) => self.tun_routes.insert(prefix, (slot, id)),
            Some(network) => network.members.insert(prefix, slot),
            None => {}
        }
    }

    fn unroute(&mut self, slot: Slot, id: NetworkId, prefix: ipnet::IpNet) {
        self.tun_routes.remove(prefix, (slot, id));
        if let Some(network) = self.networks.get_mut(&id) {
            network.members.remove(prefix, slot);
        }
    }

    fn unroute_all(&mut self, slot: Slot, session: &Session) {
        for attached in &session.attachments {
            for prefix in &attached.config.peer_addresses {
                self.unroute(slot, attached.config.network, *prefix);
            }
        }
    }
}

/// Whether a packet may leave its link: discovery and the like, which every host sends, is no traffic of a session.
fn is_routable(packet: &Packet) -> bool {
    let local = |address: IpAddr| {
        let link_local = match address {
            IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        link_local || address.is_multicast() || address.is_unspecified() || address.is_loopback()
    };
    !local(packet.source) && !local(packet.destination)
}

impl Session {
    fn may_send(&mut self, now: Instant, bytes: usize) -> bool {
        self.limit_to_peer.as_mut().is_none_or(|limit| limit.take(now, bytes as u64))
    }

    fn may_receive(&mut self, now: Instant, bytes: usize) -> bool {
        self.limit_from_peer.as_mut().is_none_or(|limit| limit.take(now, bytes as u64))
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
