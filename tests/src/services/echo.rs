//! Single packets there and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Host;

/// A host's UDP port that returns what it gets.
pub struct UdpEcho {
    address: SocketAddr,
}

impl UdpEcho {
    /// Starts it on any free port of one of the host's addresses; it serves until the process ends.
    pub fn start(host: &Host, on: IpAddr) -> Result<Self> {
        let socket = host.run(move || UdpSocket::bind((on, 0))).context("UDP echo")?;
        let address = socket.local_addr()?;
        std::thread::Builder::new().name("UDP echo".to_owned()).spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        })?;
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Sends `payload` from a host and returns the answer; `None` when none comes within `limit`.
pub fn udp_ask(host: &Host, to: SocketAddr, payload: &[u8], limit: Duration) -> Result<Option<Vec<u8>>> {
    let payload = payload.to_owned();
    let asked = host.run(move || -> std::io::Result<Option<Vec<u8>>> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect(to)?;
        // Without a route, or after a refusal by ICMP, there is no answer either.
        if socket.send(&payload).is_err() {
            return Ok(None);
        }
        let mut buffer = vec![0; 65_535];
        Ok(socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
    });
    asked.with_context(|| format!("{} cannot send to {to}", host.name()))
}
