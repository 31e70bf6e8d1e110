//! A web server that tells its visitors which address they come from.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Host;

/// The longest a request may take: a broken path must fail the test, not hang it.
const LIMIT: Duration = Duration::from_secs(5);

/// How many bytes follow the visitor's address when `/large` is asked for.
const LARGE: usize = 1 << 20;

/// Listens on port 80 of a host, both families; answers every request with the visitor's address in plain text, and
/// that for `/large` with a megabyte after it.
pub struct WebServer {
    visitors: Arc<Mutex<Vec<IpAddr>>>,
}

impl WebServer {
    /// Starts it; it serves until the process ends.
    pub fn start(host: &Host) -> Result<Self> {
        let visitors = Arc::<Mutex<Vec<IpAddr>>>::default();
        let listener = host.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))).context("web server")?;
        let seen = visitors.clone();
        std::thread::Builder::new().name("web server".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = seen.clone();
                std::thread::spawn(move || {
                    let _ = serve(stream, &seen);
                });
            }
        })?;
        Ok(Self { visitors })
    }

    /// Everyone who has asked, in order.
    pub fn visitors(&self) -> Vec<IpAddr> {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<IpAddr>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut large = false;
    for line in BufReader::new(stream.try_clone()?.take(16 << 10)).lines() {
        let line = line?;
        large |= line.starts_with("GET /large ");
        if line.is_empty() {
            break;
        }
    }
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
    let body = format!("{peer}\n{}", if large { " ".repeat(LARGE) } else { String::new() });
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())
}

/// What the web server at `address` answers to a visitor on `host`; fails after 5 s of silence.
pub fn http_get(host: &Host, address: IpAddr) -> Result<String> {
    let (_, body) = http(host, SocketAddr::new(address, 80), "/")?;
    Ok(body.trim().to_owned())
}

/// The status and the body that an HTTP server answers to a GET from a host; fails after 5 s of silence.
pub fn http(host: &Host, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let fetch = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(2 << 20).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = host.run(fetch).with_context(|| format!("{} cannot reach http://{to}", host.name()))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
