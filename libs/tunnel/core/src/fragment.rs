//! The tunnel's own fragmentation: packets that fit no datagram travel in parts, so that nothing vanishes while the
//! path's MTU is still being found.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::{
    header::{DatagramHeader, FRAGMENT_LEN, FragmentHeader, MAX_OFFSET, WHOLE_LEN},
    ids::NetworkId,
};

/// Packets of one session that may be incomplete at a time.
pub const MAX_PENDING: usize = 16;
/// Bytes of incomplete packets kept for one session.
pub const MAX_PENDING_BYTES: usize = 128 * 1024;
/// Parts one packet may come in.
pub const MAX_PARTS: usize = 64;
/// How long parts wait for the others.
pub const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Smallest packet that every network must carry whole (IPv6's minimum MTU): always fragmented rather than refused.
pub const MIN_MTU: usize = 1280;

/// What to do with a packet on its way into a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It fits one datagram.
    Whole,
    /// It travels in parts.
    Fragment,
    /// Its sender is told that at most `mtu` bytes fit.
    TooBig {
        /// Largest packet that fits.
        mtu: u16,
    },
}

/// Decides how a packet of `length` bytes travels when datagrams hold `max_datagram` bytes. `settled` says that the
/// path's MTU has had time to be found; before, everything is fragmented rather than refused.
pub fn fit(length: usize, max_datagram: usize, dont_fragment: bool, settled: bool) -> Fit {
    let room = max_datagram.saturating_sub(WHOLE_LEN);
    if length <= room {
        Fit::Whole
    } else if length <= MIN_MTU || !settled || !dont_fragment {
        Fit::Fragment
    } else {
        Fit::TooBig { mtu: u16::try_from(room.max(MIN_MTU)).unwrap_or(u16::MAX) }
    }
}

/// Cuts packets into datagrams.
#[derive(Debug, Default)]
pub struct Fragmenter {
    next_id: u16,
}

impl Fragmenter {
    /// Cuts a packet into datagrams of at most `max_datagram` bytes. Nothing results when the packet is longer than
    /// offsets reach or the datagrams are too small for any payload.
    pub fn cut(
        &mut self,
        packet: &[u8],
        network: NetworkId,
        partial_checksum: bool,
        max_datagram: usize,
    ) -> SmallVec<[Bytes; 4]> {
        let room = max_datagram.saturating_sub(FRAGMENT_LEN);
        let mut parts = SmallVec::new();
        if packet.len() > MAX_OFFSET || room == 0 || packet.len().div_ceil(room) > MAX_PARTS {
            return parts;
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        // Even parts rather than one full and one tiny.
        let size = packet.len().div_ceil(packet.len().div_ceil(room).max(1)).max(1);
        for (index, part) in packet.chunks(size).enumerate() {
            let offset = index * size;
            let fragment =
                FragmentHeader { id, offset: offset as u16, last: offset + part.len() == packet.len() };
            let mut datagram = BytesMut::with_capacity(FRAGMENT_LEN + part.len());
            datagram.put_slice(&DatagramHeader::encode_fragment(network, partial_checksum, fragment));
            datagram.put_slice(part);
            parts.push(datagram.freeze());
        }
        parts
    }
}

/// Joins what [`Fragmenter`] cut. Bounded in packets, bytes and time; the oldest packet makes room.
#[derive(Debug, Default)]
pub struct Reassembler {
    pending: VecDeque<Pending>,
    bytes: usize,
}

#[derive(Debug)]
struct Pending {
    id: u16,
    network: NetworkId,
    since: Instant,
    end: Option<usize>,
    bytes: usize,
    parts: Vec<(usize, Bytes)>,
}

/// Why a fragment, and all of its packet that had arrived, was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReassemblyError {
    /// A part without content or beyond the largest packet.
    #[error("fragment is empty or ends beyond the largest packet")]
    Extent,
    /// Parts that overlap or contradict one another.
    #[error("fragments of one packet contradict one another")]
    Contradiction,
    /// More parts than a packet may have.
    #[error("packet in more than {MAX_PARTS} fragments")]
    TooManyParts,
}

impl Reassembler {
    /// Takes one part; returns the packet when it is complete.
    pub fn insert(
        &mut self,
        now: Instant,
        network: NetworkId,
        header: FragmentHeader,
        part: &[u8],
    ) -> Result<Option<Bytes>, ReassemblyError> {
        self.expire(now);
        let offset = usize::from(header.offset);
        let end = offset + part.len();
        if part.is_empty() || end > MAX_OFFSET {
            return Err(ReassemblyError::Extent);
        }
        let position = self.pending.iter().position(|p| p.id == header.id && p.network == network);
        let mut pending = match position.and_then(|at| self.pending.remove(at)) {
            Some(pending) => {
                self.bytes -= pending.bytes;
                pending
            }
            None => Pending { id: header.id, network, since: now, end: None, bytes: 0, parts: Vec::new() },
        };
        pending.insert(offset, end, header.last, part)?;
        if pending.end == Some(pending.bytes) {
            return pending.join().map(Some);
        }
        self.keep(pending);
        Ok(None)
    }

    fn keep(&mut self, pending: Pending) {
        while self.pending.len() >= MAX_PENDING || self.bytes + pending.bytes > MAX_PENDING_BYTES {
            match self.pending.pop_front() {
                Some(oldest) => self.bytes -= oldest.bytes,
                None => break,
            }
        }
        self.bytes += pending.bytes;
        self.pending.push_back(pending);
    }

    fn expire(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.pending.retain(|pending| {
            let keep = now.saturating_duration_since(pending.since) < REASSEMBLY_TIMEOUT;
            if !keep {
                *bytes -= pending.bytes;
            }
            keep
        });
    }
}

impl Pending {
    fn insert(&mut self, offset: usize, end: usize, last: bool, part: &[u8]) -> Result<(), ReassemblyError> {
        if self.parts.iter().any(|(at, known)| *at == offset && *known == *part) {
            return Ok(()); // the same datagram again
        }
        if self.parts.len() >= MAX_PARTS {
            return Err(ReassemblyError::TooManyParts);
        }
        let overlaps = self.parts.iter().any(|(at, known)| offset < at + known.len() && *at < end);
        let known_end = self.parts.iter().map(|(at, known)| at + known.len()).max().unwrap_or(0);
        let beyond = self.end.is_some_and(|known| last || end > known) || last && known_end > end;
        if overlaps || beyond {
            return Err(ReassemblyError::Contradiction);
        }
        if last {
            self.end = Some(end);
        }
        self.bytes += part.len();
        // A part that waits must not keep the much larger chunk of memory that it was received in.
        self.parts.push((offset, Bytes::copy_from_slice(part)));
        Ok(())
    }

    /// Without overlaps and with as many bytes as the end says, the parts cover the whole packet.
    fn join(mut self) -> Result<Bytes, ReassemblyError> {
        self.parts.sort_unstable_by_key(|(offset, _)| *offset);
        let mut packet = BytesMut::with_capacity(self.bytes);
        for (offset, part) in self.parts {
            if offset != packet.len() {
                return Err(ReassemblyError::Contradiction);
            }
            packet.put_slice(&part);
        }
        Ok(packet.freeze())
    }
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
