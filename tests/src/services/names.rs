//! A name server with one answer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::lab::Host;

/// Listens on UDP port 53 of a host and answers every question for an IPv4 address with the same one.
pub struct NameServer {
    askers: Arc<Mutex<Vec<IpAddr>>>,
}

impl NameServer {
    /// Starts it; it serves until the process ends.
    pub fn start(host: &Host, answer: Ipv4Addr) -> Result<Self> {
        let askers = Arc::<Mutex<Vec<IpAddr>>>::default();
        let on = host.v4();
        let socket = host.run(move || UdpSocket::bind((on, 53))).context("name server")?;
        let seen = askers.clone();
        std::thread::Builder::new().name("name server".to_owned()).spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(reply) = reply(&buffer[..length], answer) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(from.ip());
                    let _ = socket.send_to(&reply, from);
                }
            }
        })?;
        Ok(Self { askers })
    }

    /// Everyone who has asked, in order.
    pub fn askers(&self) -> Vec<IpAddr> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// RFC 1035: the question's header and name again, flagged as an answer, and for type A one record.
fn reply(query: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    let name = query.get(12..)?.iter().position(|&byte| byte == 0)?;
    let end = 12 + name + 5;
    let question = query.get(12..end)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let mut reply = query.get(..2)?.to_vec();
    reply.extend([0x84, 0x00, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend(question);
    if is_a {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(answer.octets());
    }
    Some(reply)
}

/// What a resolver that reads the host's `/etc/resolv.conf` would learn about `name`: asks its first server.
pub fn resolve(host: &Host, name: &str) -> Result<Option<Ipv4Addr>> {
    let config = host.read("/etc/resolv.conf")?;
    let server =
        config.lines().find_map(|line| line.strip_prefix("nameserver ")).context("no name server")?;
    let to = SocketAddr::new(server.trim().parse()?, 53);
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let answer = super::udp_ask(host, to, &query, std::time::Duration::from_secs(3))?;
    Ok(answer.and_then(|bytes| bytes.last_chunk::<4>().copied()).map(Ipv4Addr::from))
}
