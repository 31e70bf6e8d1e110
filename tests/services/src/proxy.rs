//! A network that can be slow, cut or dead, between a service and who uses it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Site;
use crate::site::Keeper;

/// How much is passed on at once.
const PIECE: usize = 16 * 1024;

/// Passes TCP connections on to a service, as slowly as it is told to.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
    keeper: Arc<Keeper>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Before each piece towards the client, in milliseconds.
    delay: AtomicU64,
    refusing: AtomicBool,
    ended: AtomicBool,
    bytes: AtomicU64,
    held: Mutex<bool>,
    released: Condvar,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens at `site` and passes on to `target`, which must be reachable there.
    pub fn start(site: &Site, target: SocketAddr) -> Result<Self> {
        let keeper = Arc::new(Keeper::new(site, "proxy-")?);
        let address = keeper.free()?;
        let listener = keeper.run(move || TcpListener::bind(address))??;
        let shared = Arc::new(Shared::default());
        let (state, site) = (Arc::clone(&shared), Arc::clone(&keeper));
        let acceptor = std::thread::Builder::new().name("proxy".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                if state.ended.load(Ordering::Relaxed) {
                    return;
                }
                if state.refusing.load(Ordering::Relaxed) {
                    continue;
                }
                if let Ok(Ok(server)) = site.run(move || TcpStream::connect(target)) {
                    let _ = pass_both(&state, &client, &server);
                }
            }
        })?;
        Ok(Self { shared, address, acceptor: Some(acceptor), keeper })
    }

    /// Where to connect instead of to the service.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes passed on so far, both ways together.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// From now on, each piece of an answer (16 KiB at most) arrives this much later.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Passes nothing on and says nothing (`true`), as a network whose packets are dropped, or goes on (`false`).
    pub fn hold(&self, hold: bool) {
        *self.shared.held.lock().unwrap_or_else(PoisonError::into_inner) = hold;
        self.shared.released.notify_all();
    }

    /// Closes each new connection at once (`true`), or serves again (`false`).
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Ordering::Relaxed);
    }

    /// Closes all connections there are.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.hold(false);
        self.cut();
        let address = self.address;
        // Wakes the acceptor, which then sees that it has ended.
        let _ = self.keeper.run(move || TcpStream::connect(address).map(drop));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn pass_both(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    let mut streams = shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
    streams.extend([client.try_clone()?, server.try_clone()?]);
    drop(streams);
    for (from, to, delayed) in [(client, server, false), (server, client, true)] {
        let (from, to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(shared));
        std::thread::Builder::new().name("proxy".into()).spawn(move || pass(&shared, from, to, delayed))?;
    }
    Ok(())
}

fn pass(shared: &Shared, mut from: TcpStream, mut to: TcpStream, delayed: bool) {
    let mut piece = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if delayed {
            let end = Instant::now() + Duration::from_millis(shared.delay.load(Ordering::Relaxed));
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                std::thread::park_timeout(left);
            }
        }
        let held = shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.released.wait_while(held, |held| *held).unwrap_or_else(PoisonError::into_inner));
        shared.bytes.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
