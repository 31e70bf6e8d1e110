//! Packets waiting for a session's connection: bounded for each session and for all together.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a queued packet costs besides its bytes.
const OVERHEAD: usize = 64;
/// A packet that waits keeps the whole chunk of memory that it was cut from, a quarter of a mebibyte. Smaller packets
/// than this, and all that wait behind so many bytes, are therefore copied: else a peer that reads nothing could hold
/// thousands of chunks with a queue of small packets.
const COPY_BELOW: usize = 1024;
const COPY_BEHIND: usize = 256 * 1024;

/// Memory shared by all queues of a tunnel.
#[derive(Debug)]
pub struct MemoryBudget {
    used: usize,
    limit: usize,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { used: 0, limit }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// The queue of one session. When it is full the oldest packets make room: their loss is noticed soonest, and what is
/// newest is worth most.
#[derive(Debug)]
pub struct ByteQueue {
    packets: VecDeque<Bytes>,
    cost: usize,
    limit: usize,
}

/// What became of a packet offered to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits; this many older packets were dropped for it.
    Queued {
        /// Packets dropped.
        dropped: usize,
    },
    /// The memory of all queues is used up: it was dropped.
    MemoryFull,
}

impl ByteQueue {
    /// A queue for at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { packets: VecDeque::new(), cost: 0, limit }
    }

    /// Adds a packet.
    pub fn push(&mut self, budget: &mut MemoryBudget, packet: Bytes) -> Pushed {
        let cost = packet.len() + OVERHEAD;
        let mut dropped = 0;
        while self.cost + cost > self.limit && self.pop(budget).is_some() {
            dropped += 1;
        }
        if budget.used + cost > budget.limit {
            return Pushed::MemoryFull;
        }
        let copied = packet.len() < COPY_BELOW || self.cost > COPY_BEHIND;
        budget.used += cost;
        self.cost += cost;
        self.packets.push_back(if copied { Bytes::copy_from_slice(&packet) } else { packet });
        Pushed::Queued { dropped }
    }

    /// Length of the oldest packet.
    pub fn next_len(&self) -> Option<usize> {
        self.packets.front().map(Bytes::len)
    }

    /// Takes the oldest packet.
    pub fn pop(&mut self, budget: &mut MemoryBudget) -> Option<Bytes> {
        let packet = self.packets.pop_front()?;
        let cost = packet.len() + OVERHEAD;
        self.cost -= cost;
        budget.used -= cost;
        Some(packet)
    }

    /// Drops everything; returns how many packets that were. Their memory is given back to the system.
    pub fn clear(&mut self, budget: &mut MemoryBudget) -> usize {
        let dropped = self.packets.len();
        budget.used -= self.cost;
        self.cost = 0;
        self.packets = VecDeque::new();
        dropped
    }

    /// Packets waiting.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes waiting, with what they cost besides.
    pub fn cost(&self) -> usize {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let mut budget = MemoryBudget::new(10_000);
        let mut queue = ByteQueue::new(3 * (100 + OVERHEAD));
        for n in 0..3u8 {
            assert_eq!(queue.push(&mut budget, vec![n; 100].into()), Pushed::Queued { dropped: 0 });
        }
        assert_eq!(queue.push(&mut budget, vec![3; 100].into()), Pushed::Queued { dropped: 1 });
        assert_eq!(queue.pop(&mut budget).unwrap()[0], 1);
        assert_eq!(queue.clear(&mut budget), 2);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_waits_long_or_is_small_does_not_keep_the_memory_it_came_in() {
        let mut budget = MemoryBudget::new(1 << 20);
        let mut queue = ByteQueue::new(1 << 20);
        let chunk = Bytes::from(vec![7; 64 * 1024]);
        let inside = |packet: &Bytes| chunk.as_ptr_range().contains(&packet.as_ptr());
        queue.push(&mut budget, chunk.slice(10..1400));
        queue.push(&mut budget, chunk.slice(10..60));
        assert!(inside(&queue.pop(&mut budget).unwrap()));
        let small = queue.pop(&mut budget).unwrap();
        assert!(!inside(&small) && small == chunk.slice(10..60));
        while queue.cost() <= COPY_BEHIND {
            queue.push(&mut budget, chunk.slice(0..1400));
        }
        queue.push(&mut budget, chunk.slice(0..1400));
        let kept = std::iter::from_fn(|| queue.pop(&mut budget)).filter(inside).count();
        assert_eq!(kept, COPY_BEHIND.div_ceil(1400 + OVERHEAD));
    }

    #[test]
    fn the_common_budget_holds() {
        let mut budget = MemoryBudget::new(400);
        let (mut one, mut two) = (ByteQueue::new(10_000), ByteQueue::new(10_000));
        assert_eq!(one.push(&mut budget, vec![0; 200].into()), Pushed::Queued { dropped: 0 });
        assert_eq!(two.push(&mut budget, vec![0; 200].into()), Pushed::MemoryFull);
        one.pop(&mut budget);
        assert_eq!(two.push(&mut budget, vec![0; 200].into()), Pushed::Queued { dropped: 0 });
    }
}
