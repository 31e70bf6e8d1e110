//! A TCP connection that is in use all the time.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::Host;

/// Between two words on a connection.
const PAUSE: Duration = Duration::from_millis(5);
/// A connection on which nothing came back for so long is broken.
const BROKEN: Duration = Duration::from_secs(60);
/// Bytes of a word.
const WORD: usize = 64;

/// A host's TCP port that returns what it gets, connection by connection.
pub struct TcpEcho {
    address: SocketAddr,
}

impl TcpEcho {
    /// Starts it on any free port of one of the host's addresses; it serves until the process ends.
    pub fn start(host: &Host, on: IpAddr) -> Result<Self> {
        let listener = host.run(move || TcpListener::bind((on, 0))).context("TCP echo")?;
        let address = listener.local_addr()?;
        std::thread::Builder::new().name("TCP echo".to_owned()).spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut word = [0; WORD];
                    while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
                });
            }
        })?;
        Ok(Self { address })
    }
}

/// One connection to a [`TcpEcho`], on which words go there and back until it is dropped.
pub struct Stream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    words: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl Stream {
    /// Connects from a host.
    pub fn start(host: &Host, to: &TcpEcho) -> Result<Self> {
        let address = to.address;
        let stream = host.run(move || TcpStream::connect_timeout(&address, BROKEN))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(BROKEN))?;
        stream.set_write_timeout(Some(BROKEN))?;
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        let work = move || {
            if let Err(error) = talk(stream, &own) {
                let broken = &mut *own.broken.lock().unwrap_or_else(PoisonError::into_inner);
                *broken = Some(error.to_string());
            }
        };
        let thread = std::thread::Builder::new().name("TCP stream".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many words came back.
    pub fn words(&self) -> u64 {
        self.shared.words.load(Ordering::Relaxed)
    }

    /// Why the connection broke, if it did.
    pub fn broken(&self) -> Option<String> {
        self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until another word came back, which shows that the connection stands; says why, if it does not.
    pub fn stands(&self) -> Result<(), String> {
        let (before, end) = (self.words(), Instant::now() + BROKEN);
        loop {
            if let Some(reason) = self.broken() {
                return Err(reason);
            }
            // The word under way may have left before.
            if self.words() > before + 1 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err("nothing comes back".to_owned());
            }
            std::thread::park_timeout(PAUSE);
        }
    }
}

fn talk(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut word = [7; WORD];
    while !shared.over.load(Ordering::Relaxed) {
        stream.write_all(&word)?;
        stream.read_exact(&mut word)?;
        shared.words.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(PAUSE);
    }
    Ok(())
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
