//! Packets on their way between the TUN device, the sessions' queues and QUIC.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use horizon_tunnel_core::{
    forward::Verdict,
    fragment::{Fit, fit},
    header::{DatagramHeader, WHOLE_LEN},
    icmp::Refusal,
    ids::{NetworkId, Slot},
    mss,
    offload::{self, ChecksumState, TunFraming, VIRTIO_NET_HDR_LEN, VirtioNetHeader},
    packet::{Packet, Upper},
    queue::Pushed,
};
use rustix::io::Errno;

use super::{Driver, links::Link, tun_port::TunPort};
use crate::{DropReason, TunDevice, TunnelEvent, ViolationKind};

/// Bytes read from the TUN device in one turn of the loop.
const TUN_BYTES_PER_TURN: usize = 256 * 1024;
/// Reads in one turn.
const TUN_READS_PER_TURN: usize = 256;
/// Bytes that wait for the only session before reading the TUN device pauses. Its own queue then holds packets back,
/// which senders notice without any loss.
const HOLD_TUN_ABOVE: usize = 128 * 1024;

impl Driver {
    pub(super) fn attach_tun(&mut self, device: TunDevice) {
        self.tun = Some(TunPort::new(device));
    }

    /// Whether reading the TUN device pauses. With several connected sessions it never does, so that none waits for
    /// another; their queues drop instead.
    pub(super) fn tun_is_held(&self) -> bool {
        self.connected == 1 && self.budget.used() > HOLD_TUN_ABOVE
    }

    pub(super) fn read_tun(&mut self) {
        let Some(mut tun) = self.tun.take() else { return };
        let mut bytes = 0;
        for turn in 0..TUN_READS_PER_TURN {
            // Always one, also while reading pauses: it is how the loss of the device is noticed.
            if turn > 0 && (bytes > TUN_BYTES_PER_TURN || self.tun_is_held()) {
                break;
            }
            match tun.device.read(&mut tun.buffer) {
                Ok(length) => {
                    bytes += length;
                    self.counters.tun_reads += 1;
                    self.take_from_tun(&mut tun, length);
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => {
                    return self.emit(TunnelEvent::TunLost { error: io::Error::from(error) });
                }
            }
        }
        self.tun = Some(tun);
    }

    fn take_from_tun(&mut self, tun: &mut TunPort, length: usize) {
        let (virtio, start) = match tun.device.framing() {
            TunFraming::Plain => (VirtioNetHeader::default(), 0),
            TunFraming::Offload { .. } => match VirtioNetHeader::parse(&tun.buffer[..length]) {
                Ok(virtio) => (virtio, VIRTIO_NET_HDR_LEN),
                Err(_) => return self.counters.drops.count(DropReason::Malformed),
            },
        };
        let mtu = usize::from(tun.device.mtu());
        let bytes = &mut tun.buffer[start..length];
        let Ok(packet) = Packet::parse(bytes) else {
            return self.counters.drops.count(DropReason::Malformed);
        };
        let (slot, network) = match self.forwarder.from_tun(self.now, &packet) {
            Verdict::ToSession { slot, network } => (slot, network),
            Verdict::Drop(reason) | Verdict::Reply { reason, .. } => {
                return self.counters.drops.count(reason);
            }
            Verdict::ToTun => return,
        };
        let Some(session) = self.sessions.get(slot.0 as usize).and_then(Option::as_ref) else { return };
        let path = session.path;
        if session.active.is_none() {
            return self.forwarder.count_drop(slot, DropReason::NotConnected);
        }
        let settled = path.settled.is_some_and(|at| at <= self.now);
        // Each packet that a super-packet is cut into has this length at most.
        let single = match (virtio.gso, packet.upper) {
            (Some(gso), Upper::Tcp { header, .. }) => packet.l4 + header + usize::from(gso.size),
            (Some(gso), _) => packet.l4 + 8 + usize::from(gso.size),
            (None, _) => packet.length,
        };
        let single = single.min(packet.length);
        if let Fit::TooBig { mtu } = fit(single, path.max_datagram, packet.dont_fragment, settled) {
            self.forwarder.count_drop(slot, DropReason::TooBig);
            let refusal = Refusal::TooBig { mtu };
            let answer = self.forwarder.icmp_answer(self.now, slot, &packet, bytes, refusal);
            if let Some((info, message)) =
                answer.and_then(|message| Some((Packet::parse(&message).ok()?, message)))
            {
                tun.push(&message, &info, false);
            }
            return;
        }
        if virtio.gso.is_none() {
            let fits = if settled { path.max_datagram.saturating_sub(WHOLE_LEN).min(mtu) } else { mtu };
            mss::clamp(bytes, &packet, fits, virtio.checksum != ChecksumState::Partial);
        }
        let Self { arena, sessions, budget, forwarder, .. } = self;
        let Some(Some(session)) = sessions.get_mut(slot.0 as usize) else { return };
        let cut = offload::split(bytes, &virtio, &packet, network, arena, |datagram| {
            match session.queue.push(budget, datagram) {
                Pushed::Queued { dropped } => {
                    (0..dropped).for_each(|_| forwarder.count_drop(slot, DropReason::QueueFull));
                }
                Pushed::MemoryFull => forwarder.count_drop(slot, DropReason::MemoryFull),
            }
        });
        if cut.is_err() {
            self.forwarder.count_drop(slot, DropReason::Malformed);
        }
        self.wake_session(slot);
    }

    /// Takes one datagram of a session's peer.
    pub(super) fn deliver(&mut self, slot: Slot, datagram: Bytes) {
        let now = self.now;
        let Ok((header, start)) = DatagramHeader::parse(&datagram) else {
            return self.forwarder.count_drop(slot, DropReason::Malformed);
        };
        let (network, partial) = (header.network, header.partial_checksum);
        let (packet, whole) = match header.fragment {
            None => (datagram.slice(start..), Some(datagram)),
            Some(fragment) => {
                let Some(session) = self.session(slot) else { return };
                match session.reassembler.insert(now, network, fragment, &datagram[start..]) {
                    Ok(Some(packet)) => (packet, None),
                    Ok(None) => return,
                    Err(_) => return self.forwarder.count_drop(slot, DropReason::Reassembly),
                }
            }
        };
        let Ok(info) = Packet::parse(&packet) else {
            return self.forwarder.count_drop(slot, DropReason::Malformed);
        };
        match self.forwarder.from_session(now, slot, network, &info, &packet) {
            Verdict::ToTun => match &mut self.tun {
                Some(tun) => tun.push(&packet, &info, partial),
                None => self.forwarder.count_drop(slot, DropReason::Tun),
            },
            Verdict::ToSession { slot: target, network } => {
                // A whole packet goes on in the very datagram it came in.
                let datagram = whole.unwrap_or_else(|| whole_datagram(network, partial, &packet));
                self.switch(slot, target, network, datagram, &info);
            }
            Verdict::Reply { message, reason } => {
                self.violate(slot, reason);
                self.enqueue(slot, whole_datagram(network, false, &message));
            }
            Verdict::Drop(reason) => self.violate(slot, reason),
        }
    }

    /// Passes a packet from one session to another.
    fn switch(&mut self, from: Slot, to: Slot, network: NetworkId, datagram: Bytes, info: &Packet) {
        let now = self.now;
        let Some(path) =
            self.session(to).filter(|session| session.active.is_some()).map(|session| session.path)
        else {
            return self.forwarder.count_drop(to, DropReason::NotConnected);
        };
        let settled = path.settled.is_some_and(|at| at <= now);
        if let Fit::TooBig { mtu } = fit(info.length, path.max_datagram, info.dont_fragment, settled) {
            self.forwarder.count_drop(to, DropReason::TooBig);
            let (packet, refusal) = (&datagram[WHOLE_LEN..], Refusal::TooBig { mtu });
            if let Some(message) = self.forwarder.icmp_answer(now, from, info, packet, refusal) {
                self.enqueue(from, whole_datagram(network, false, &message));
            }
            return;
        }
        self.enqueue(to, datagram);
    }

    fn enqueue(&mut self, slot: Slot, datagram: Bytes) {
        let Some(Some(session)) = self.sessions.get_mut(slot.0 as usize) else { return };
        match session.queue.push(&mut self.budget, datagram) {
            Pushed::Queued { dropped } => {
                (0..dropped).for_each(|_| self.forwarder.count_drop(slot, DropReason::QueueFull));
            }
            Pushed::MemoryFull => self.forwarder.count_drop(slot, DropReason::MemoryFull),
        }
        self.wake_session(slot);
    }

    fn wake_session(&mut self, slot: Slot) {
        if let Some(index) = self.session(slot).and_then(|session| session.active) {
            self.mark_dirty(index);
        }
    }

    /// Moves packets from the session's queue into QUIC, as many as it takes.
    pub(super) fn feed(&mut self, link: &mut Link) {
        let Some(Some(session)) = self.sessions.get_mut(link.slot.0 as usize) else { return };
        let (mut packets, mut bytes) = (0, 0);
        let mut datagrams = link.connection.datagrams();
        let max = datagrams.max_size().unwrap_or(0);
        while let Some(length) = session.queue.next_len() {
            // Fragments need a little more room than the packet.
            if datagrams.send_buffer_space() < length + length / 8 + 1024 {
                break;
            }
            let Some(datagram) = session.queue.pop(&mut self.budget) else { break };
            packets += 1;
            bytes += (length - WHOLE_LEN) as u64;
            if length <= max {
                // Room and size were checked; what QUIC refuses all the same is lost like any packet.
                let _ = datagrams.send(datagram, false);
                continue;
            }
            let Ok((header, start)) = DatagramHeader::parse(&datagram) else { continue };
            let parts =
                session.fragmenter.cut(&datagram[start..], header.network, header.partial_checksum, max);
            if parts.is_empty() {
                self.forwarder.count_drop(link.slot, DropReason::TooBig);
            }
            for part in parts {
                let _ = datagrams.send(part, false);
            }
        }
        self.forwarder.count_sent(link.slot, packets, bytes);
    }

    /// Writes what the TUN device still has to get in this turn.
    pub(super) fn flush_tun(&mut self) {
        let Some(tun) = &mut self.tun else { return };
        tun.flush();
        let state = std::mem::take(&mut tun.writer);
        self.counters.tun_writes += state.writes;
        (0..state.refused).for_each(|_| self.counters.drops.count(DropReason::Tun));
        if let Some(error) = state.lost {
            self.tun = None;
            self.emit(TunnelEvent::TunLost { error: error.into() });
        }
    }

    fn violate(&mut self, slot: Slot, reason: DropReason) {
        let kind = match reason {
            DropReason::SpoofedSource => ViolationKind::SpoofedSource,
            DropReason::WrongNetwork => ViolationKind::WrongNetwork,
            DropReason::Forbidden => ViolationKind::ForbiddenDestination,
            DropReason::Unsolicited => ViolationKind::UnsolicitedInbound,
            _ => return,
        };
        self.report_violation(slot, kind);
    }

    pub(super) fn report_violation(&mut self, slot: Slot, kind: ViolationKind) {
        let now = self.now;
        let Some(session) = self.session(slot) else { return };
        let id = session.config.id;
        if session.violations.take(now, 1) {
            self.emit(TunnelEvent::Violation { session: id, kind });
        }
    }
}

fn whole_datagram(network: NetworkId, partial_checksum: bool, packet: &[u8]) -> Bytes {
    let mut datagram = BytesMut::with_capacity(WHOLE_LEN + packet.len());
    datagram.put_slice(&DatagramHeader::encode_whole(network, partial_checksum));
    datagram.put_slice(packet);
    datagram.freeze()
}
