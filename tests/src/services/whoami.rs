//! Who one is to the far end, packet by packet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::Host;

/// A UDP port that answers every packet with the packet itself and the address it came from.
pub struct WhoAmI {
    address: SocketAddr,
}

impl WhoAmI {
    /// Starts it on a host's IPv4 address; it serves until the process ends.
    pub fn start(host: &Host) -> Result<Self> {
        let on = host.v4();
        let socket = host.run(move || UdpSocket::bind((on, 0))).context("who am I")?;
        let address = socket.local_addr()?;
        std::thread::Builder::new().name("who am I".to_owned()).spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer[..32]) {
                if let IpAddr::V4(seen) = from.ip() {
                    buffer[length..length + 4].copy_from_slice(&seen.octets());
                    let _ = socket.send_to(&buffer[..length + 4], from);
                }
            }
        })?;
        Ok(Self { address })
    }
}

/// A stream of small packets from a host to a [`WhoAmI`], a millisecond apart.
pub struct Probe {
    socket: UdpSocket,
    to: SocketAddr,
    sent: Vec<Instant>,
}

impl Probe {
    /// A probe from `host`; its source address follows the host's routes, packet by packet.
    pub fn new(host: &Host, to: &WhoAmI) -> Result<Self> {
        let socket = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Self { socket, to: to.address, sent: Vec::new() })
    }

    /// Sends until `done` answers, which is told of every packet that came back: when it was sent, when it came, and
    /// under which address it was seen; and of every millisecond in which none came.
    pub fn watch<T>(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(Option<Seen>) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        self.sent.clear();
        while Instant::now() < end {
            let number = u32::try_from(self.sent.len())?.to_be_bytes();
            self.sent.push(Instant::now());
            // Without a route there is nobody to be seen by.
            let _ = self.socket.send_to(&number, self.to);
            let mut buffer = [0; 64];
            let seen = match self.socket.recv(&mut buffer) {
                Ok(8) => self.read(&buffer),
                _ => None,
            };
            if let Some(value) = done(seen) {
                return Ok(value);
            }
        }
        anyhow::bail!("nothing changed for the probe within {limit:?}")
    }

    /// Sends until `settled`, which is asked twice a second, and returns how long the longest silence was. That of the end
    /// counts too, and so does asking, which sends nothing meanwhile. Every packet must be seen under `source`.
    pub fn longest_silence(
        &mut self,
        limit: Duration,
        source: IpAddr,
        mut settled: impl FnMut() -> bool,
    ) -> Result<Duration> {
        const LOOK: Duration = Duration::from_millis(500);
        let (mut last, mut longest, mut next_look) = (Instant::now(), Duration::ZERO, Instant::now());
        self.watch(limit, |seen| {
            if let Some(seen) = seen {
                assert_eq!(seen.source, source, "a packet left beside the tunnel");
                longest = longest.max(seen.came.duration_since(last));
                last = seen.came;
            }
            if Instant::now() < next_look {
                return None;
            }
            next_look = Instant::now() + LOOK;
            settled().then(|| longest.max(last.elapsed()))
        })
    }

    fn read(&self, answer: &[u8]) -> Option<Seen> {
        let number = u32::from_be_bytes(*answer.first_chunk()?);
        let source = Ipv4Addr::from(*answer.get(4..)?.first_chunk::<4>()?);
        Some(Seen { sent: *self.sent.get(number as usize)?, came: Instant::now(), source: source.into() })
    }
}

/// A packet that came back.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it was sent.
    pub sent: Instant,
    /// When it came back.
    pub came: Instant,
    /// Under which address the far end saw it.
    pub source: IpAddr,
}
