//! Notice that the network configuration changed, from whatever hand.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use rtnetlink::sys::{
    AsyncSocket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::error::NetError;

/// What changed. Which one of its kind is for the observer to find out: changes are merged, never queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links came, went or changed.
    pub links: bool,
    /// Addresses came, went or changed.
    pub addresses: bool,
    /// Routes came, went or changed.
    pub routes: bool,
    /// Policy routing rules came, went or changed.
    pub rules: bool,
    /// Kernel settings of links changed (forwarding, reverse path filtering).
    pub settings: bool,
    /// nftables tables, chains, sets or rules came, went or changed.
    pub nftables: bool,
}

impl Changes {
    const ALL_ROUTE: Self =
        Self { links: true, addresses: true, routes: true, rules: true, settings: true, nftables: false };

    /// Whether nothing changed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            links: self.links | other.links,
            addresses: self.addresses | other.addresses,
            routes: self.routes | other.routes,
            rules: self.rules | other.rules,
            settings: self.settings | other.settings,
            nftables: self.nftables | other.nftables,
        }
    }
}

/// A subscription to changes.
pub struct Events {
    route: TokioSocket,
    /// Absent where the kernel or the privileges do not allow it; then only a sweep finds changes.
    netfilter: Option<TokioSocket>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("nftables", &self.netfilter.is_some()).finish_non_exhaustive()
    }
}

// linux/rtnetlink.h, as bits of the legacy group mask.
const ROUTE_GROUPS: u32 =
    group(1) | group(5) | group(7) | group(8) | group(9) | group(11) | group(19) | group(24) | group(25);
// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: u32 = 7;
/// Larger than any notification; what does not fit is cut, and only the head of a message is read.
const BUFFER_BYTES: usize = 32 * 1024;
/// struct nlmsghdr of linux/netlink.h.
const HEADER_BYTES: usize = 16;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

impl Events {
    /// Subscribes in the network namespace of this thread.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, NetError> {
        let object = "notice of network changes";
        let route = subscribe(NETLINK_ROUTE, ROUTE_GROUPS, None)
            .map_err(|e| NetError::io("subscribe to", object, &e))?;
        let netfilter = subscribe(NETLINK_NETFILTER, 0, Some(NFTABLES_GROUP))
            .inspect_err(
                |error| tracing::info!(%error, "no notice of nftables changes; only sweeps find them"),
            )
            .ok();
        Ok(Self { route, netfilter, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Whether changes of nftables are noticed.
    pub fn sees_nftables(&self) -> bool {
        self.netfilter.is_some()
    }

    /// Waits for changes and returns all that have happened since the last call. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Changes, NetError> {
        poll_fn(|cx| self.poll(cx))
            .await
            .map_err(|e| NetError::io("receive", "notice of network changes", &e))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Changes>> {
        let mut changes = Changes::default();
        while let Some(message) = receive(&self.route, &mut self.buffer, cx)? {
            changes = changes.or(message.map_or(Changes::ALL_ROUTE, route_changes));
        }
        if let Some(socket) = &self.netfilter {
            while receive(socket, &mut self.buffer, cx)?.is_some() {
                changes.nftables = true;
            }
        }
        if changes.is_empty() { Poll::Pending } else { Poll::Ready(Ok(changes)) }
    }
}

fn subscribe(protocol: isize, groups: u32, member: Option<u32>) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    if let Some(group) = member {
        socket.socket_mut().add_membership(group)?;
    }
    Ok(socket)
}

/// One datagram: `None` when there is none now, `Some(None)` when some were lost.
fn receive<'b>(
    socket: &TokioSocket,
    buffer: &'b mut [u8],
    cx: &mut Context<'_>,
) -> io::Result<Option<Option<&'b [u8]>>> {
    let mut into = &mut *buffer;
    match socket.poll_recv(cx, &mut into) {
        Poll::Pending => Ok(None),
        Poll::Ready(Ok(())) => {
            let left = into.len();
            let used = buffer.len() - left;
            Ok(Some(Some(&buffer[..used])))
        }
        Poll::Ready(Err(e)) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
            Ok(Some(None))
        }
        Poll::Ready(Err(e)) => Err(e),
    }
}

/// What the messages of one datagram are about. Numbers are those of linux/rtnetlink.h.
fn route_changes(mut datagram: &[u8]) -> Changes {
    let mut changes = Changes::default();
    while let Some(head) = datagram.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        match u16::from_ne_bytes([head[4], head[5]]) {
            16 | 17 => changes.links = true,
            20 | 21 => changes.addresses = true,
            24 | 25 => changes.routes = true,
            32 | 33 => changes.rules = true,
            80 | 81 => changes.settings = true,
            _ => {}
        }
        let aligned = length.max(HEADER_BYTES).next_multiple_of(4);
        datagram = datagram.get(aligned..).unwrap_or_default();
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let length = HEADER_BYTES + body;
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_of_one_datagram_are_merged() {
        let datagram = [message(16, 3), message(24, 0)].concat();
        let expected = Changes { links: true, routes: true, ..Changes::default() };
        assert_eq!(route_changes(&datagram), expected);
        // Cut, or with a length that is none: no panic and no endless loop.
        assert_eq!(route_changes(&datagram[..17]), Changes { links: true, ..Changes::default() });
        assert!(route_changes(&[0; 64]).is_empty());
        assert!(route_changes(&[]).is_empty());
    }
}
