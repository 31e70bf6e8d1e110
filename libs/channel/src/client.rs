//! The side of appliances and devices.

use std::{
    collections::HashMap,
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use horizon_model::PublicKey;
use horizon_wire::{
    frame::MAX_FROM_CONTROLLER,
    key::SigningKey,
    keyset::{self, Anchor, KeySet, KeySetError},
    proto::{self, KeyUse, RefusalCode, from_controller, to_controller},
    refusal::Refusal,
    version,
};
use thiserror::Error;
use tokio::{
    net::lookup_host,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    frames::{ReceiveError, Receiver, SendError, Sender},
    tls,
};

/// Delay between attempts to reach a controller's addresses (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// How often a controller may send a peer that slept for long another part of its KeySets. With 1024 in each part, that is more
/// than fit into its own files.
const MAX_PARTS: usize = 16;
/// How long the others are waited for after one controller has refused.
const OTHERS: Duration = Duration::from_secs(1);
/// How many addresses are tried.
const MAX_ATTEMPTS: usize = 16;
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether a controller that was silent came back to life.
const LOOK: Duration = Duration::from_millis(100);
/// How long the end of a conversation may take to reach the controller.
const FAREWELL: Duration = Duration::from_secs(1);
/// Messages that wait to be sent or read; the connection's flow control holds the rest back.
const QUEUE: usize = 64;

/// How to reach a controller.
#[derive(Debug)]
pub struct ConnectOptions<'a> {
    /// Controllers as `host:port`, best first.
    pub addresses: &'a [String],
    /// The key to prove.
    pub identity: &'a SigningKey,
    /// Where trust starts.
    pub anchor: &'a Anchor,
    /// What to say first; versions and the KeySet version are filled in.
    pub hello: proto::Hello,
    /// The mark of the socket (`SO_MARK`), so that routing rules can tell it from what goes through a tunnel.
    pub fwmark: Option<u32>,
    /// The longest the whole attempt may take.
    pub timeout: Duration,
}

/// Why no controller answered as it should.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No address led anywhere.
    #[error("no controller can be reached: {}", Reasons(.0))]
    Unreachable(Vec<(String, String)>),
    /// The controller refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The controller's KeySets do not descend from the root that is trusted.
    #[error("the controller at {address} is not to be trusted: {error}")]
    Trust {
        /// Which controller.
        address: String,
        /// Why.
        error: KeySetError,
    },
    /// The controller's TLS key is not in its KeySet.
    #[error(
        "the controller at {address} is not to be trusted: its TLS key {key} is not in the organisation's KeySet"
    )]
    UntrustedTlsKey {
        /// Which controller.
        address: String,
        /// The key it proved.
        key: PublicKey,
    },
    /// The controller said something else than Welcome.
    #[error("the controller at {0} did not answer as a controller does")]
    Protocol(String),
}

struct Reasons<'a>(&'a [(String, String)]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (address, reason)) in self.0.iter().enumerate() {
            write!(f, "{}{address}: {reason}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a request has no answer.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The controller refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection ended first.
    #[error("the connection to the controller is gone")]
    Gone,
    /// No answer came in time.
    #[error("the controller did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
}

/// A conversation with a controller.
#[derive(Debug)]
pub struct Channel {
    /// The organisation's newest keys.
    pub keyset: KeySet,
    /// The same as signed bytes, to be kept.
    pub keyset_raw: Option<proto::SignedKeySet>,
    /// To ask and to tell.
    pub requests: Requests,
    /// What the controller says unasked. It ends with the connection.
    pub inbox: mpsc::Receiver<from_controller::Message>,
    /// The local address of the connection.
    pub local: SocketAddr,
    /// The controller's address.
    pub remote: SocketAddr,
    /// What the controller calls itself.
    pub software: String,
}

type Waiting = HashMap<u64, oneshot::Sender<from_controller::Message>>;

#[derive(Debug)]
struct Shared {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    next: AtomicU64,
    waiting: Mutex<Option<Waiting>>,
    /// The newest KeySet, and the same as signed bytes.
    keyset: Mutex<(KeySet, Option<proto::SignedKeySet>)>,
}

impl Shared {
    fn keyset(&self) -> MutexGuard<'_, (KeySet, Option<proto::SignedKeySet>)> {
        // It is replaced as a whole.
        self.keyset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes newer KeySets that the controller showed.
    fn take_keysets(&self, shown: &proto::KeySets) -> Result<(), String> {
        let mut held = self.keyset();
        let newest =
            keyset::walk(&Anchor::KeySet(held.0.clone()), &shown.keysets).map_err(|e| e.to_string())?;
        let revoked = tls::peer_key(&self.connection).is_some_and(|key| newest.revokes(&key));
        if newest.version > held.0.version {
            *held = (newest, shown.keysets.last().cloned());
        }
        match revoked {
            true => Err("the key that this controller proved was revoked".into()),
            false => Ok(()),
        }
    }

    /// The requests that wait; `None` once the connection has ended.
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // The map is whole between any two of its operations, so a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The asking side of a channel.
#[derive(Clone, Debug)]
pub struct Requests {
    outbox: mpsc::Sender<proto::ToController>,
    shared: Arc<Shared>,
}

impl Requests {
    /// Asks, and waits for the answer.
    pub async fn request(
        &self,
        message: to_controller::Message,
    ) -> Result<from_controller::Message, RequestError> {
        let request = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.shared.waiting().as_mut().ok_or(RequestError::Gone)?.insert(request, answer);
        let _forget = Forget { shared: &self.shared, request };
        // A controller that does not read holds a request up as well as one that does not answer.
        let answered = async {
            let message = proto::ToController { request, message: Some(message) };
            self.outbox.send(message).await.map_err(|_| RequestError::Gone)?;
            answered.await.map_err(|_| RequestError::Gone)
        };
        match timeout(REQUEST_TIMEOUT, answered).await {
            Ok(Ok(from_controller::Message::Refused(refused))) => Err(RequestError::Refused(refused.into())),
            Ok(answer) => answer,
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// The organisation's newest keys that the controller showed, and the same as signed bytes, to be kept.
    pub fn keyset(&self) -> (KeySet, Option<proto::SignedKeySet>) {
        self.shared.keyset().clone()
    }

    /// Says which KeySet was kept.
    pub async fn keyset_held(&self, version: u64) -> Result<(), RequestError> {
        self.notify(to_controller::Message::KeysetHeld(proto::KeySetHeld { version })).await
    }

    /// Tells something that has no answer.
    pub async fn notify(&self, message: to_controller::Message) -> Result<(), RequestError> {
        let message = proto::ToController { request: 0, message: Some(message) };
        match timeout(REQUEST_TIMEOUT, self.outbox.send(message)).await {
            Ok(sent) => sent.map_err(|_| RequestError::Gone),
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// Ends the conversation.
    pub fn close(&self, reason: &str) {
        self.shared.connection.close(0u32.into(), reason.as_bytes());
    }

    /// Ends the conversation and waits until the controller was told, for a program that is about to exit.
    pub async fn farewell(&self, reason: &str) {
        self.close(reason);
        // A controller that is gone need not be waited for longer.
        let _ = timeout(FAREWELL, self.shared.endpoint.wait_idle()).await;
    }

    /// Waits until the controller does not answer any more although it should: nothing came from it for `quiet`, and nothing
    /// within `patience` once it was asked. The connection still stands then, and may come back to life.
    pub async fn silence(&self, quiet: Duration, patience: Duration) {
        let mut heard = self.heard();
        loop {
            sleep(quiet).await;
            if self.heard() == heard {
                // A queue that is full, or a stream that is blocked, asks as well.
                let _ = self.outbox.try_send(proto::ToController::default());
                sleep(patience).await;
                if self.heard() == heard {
                    return;
                }
            }
            heard = self.heard();
        }
    }

    /// Waits until something comes from the controller.
    pub async fn sign_of_life(&self) {
        let heard = self.heard();
        while self.heard() == heard {
            sleep(LOOK).await;
        }
    }

    /// How many datagrams came from the controller.
    fn heard(&self) -> u64 {
        self.shared.connection.stats().udp_rx.datagrams
    }

    /// What binds a statement to this connection: see [`tls::binding`].
    pub fn binding(&self) -> Option<[u8; 32]> {
        tls::binding(&self.shared.connection)
    }

    /// Why the connection ended; `None` while it lives.
    pub fn close_reason(&self) -> Option<String> {
        self.shared.connection.close_reason().map(|e| e.to_string())
    }
}

/// Forgets a request that is no longer waited for, also when its future was dropped.
struct Forget<'a> {
    shared: &'a Shared,
    request: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&self.request);
        }
    }
}

/// Reaches a controller: dials its addresses in order with a small delay, and takes the first that proves itself. A name
/// that takes long to resolve holds no other address up.
pub async fn connect(options: ConnectOptions<'_>) -> Result<Channel, ConnectError> {
    let options = &options;
    let begin = Instant::now();
    let mut lookups: FuturesUnordered<_> = options
        .addresses
        .iter()
        .take(MAX_ATTEMPTS)
        .map(|name| async move { (name, lookup_host(name.as_str()).await.map(Vec::from_iter)) })
        .collect();
    let mut attempts = FuturesUnordered::new();
    let mut started = 0;
    let mut reasons = Vec::new();
    let mut verdict = None;
    let mut judged = None;
    let all = async {
        loop {
            tokio::select! {
                biased;
                Some((name, found)) = lookups.next() => match found {
                    Ok(addresses) => {
                        for address in addresses.into_iter().take(MAX_ATTEMPTS - started) {
                            let at = begin + STAGGER * u32::try_from(started).unwrap_or(u32::MAX);
                            started += 1;
                            attempts.push(async move {
                                sleep_until(at).await;
                                (name, attempt(options, name, address).await)
                            });
                        }
                    }
                    Err(e) => reasons.push((name.clone(), e.to_string())),
                },
                Some((name, result)) = attempts.next() => match result {
                    Ok(channel) => return Some(channel),
                    Err(AttemptError::Unreachable(reason)) => reasons.push((name.clone(), reason)),
                    // A controller that answers but refuses says more than one that cannot be reached.
                    Err(AttemptError::Final(error)) => {
                        verdict = Some(error);
                        judged.get_or_insert_with(|| Instant::now() + OTHERS);
                    }
                },
                // The others may say yes, but those that are gone say nothing at all.
                () = async { sleep_until(judged.unwrap_or(begin)).await }, if judged.is_some() => return None,
                else => return None,
            }
        }
    };
    match timeout(options.timeout, all).await {
        Ok(Some(channel)) => Ok(channel),
        Ok(None) => Err(verdict.unwrap_or(ConnectError::Unreachable(reasons))),
        Err(_) => Err(verdict.unwrap_or_else(|| {
            let waited = format!("no answer within {} s", options.timeout.as_secs());
            reasons.extend(options.addresses.iter().map(|a| (a.clone(), waited.clone())));
            ConnectError::Unreachable(reasons)
        })),
    }
}

/// A refusal of somebody who has not proved to be the organisation's controller. Whoever is on the way can say it, so it
/// must not end anything: it counts as trouble that may pass, and what it asks people to do is not passed on.
fn hearsay(name: &str, refusal: &Refusal) -> Refusal {
    use RefusalCode as C;
    let code = match refusal.code {
        soft @ (C::Unspecified | C::Version | C::Malformed | C::Unavailable | C::Limit | C::Internal) => soft,
        C::Unauthenticated | C::Expired | C::Revoked | C::Used | C::Policy | C::Clone | C::NotFound => {
            C::Unavailable
        }
    };
    let message = format!(
        "{name} refused without proof that it is a controller of the organisation: {}",
        refusal.message
    );
    Refusal { code, message, remedy: String::new(), retry_after_seconds: refusal.retry_after_seconds }
}

enum AttemptError {
    Unreachable(String),
    Final(ConnectError),
}

impl From<io::Error> for AttemptError {
    fn from(e: io::Error) -> Self {
        Self::Unreachable(e.to_string())
    }
}

impl From<quinn::ConnectionError> for AttemptError {
    fn from(e: quinn::ConnectionError) -> Self {
        Self::Unreachable(e.to_string())
    }
}

impl From<SendError> for AttemptError {
    fn from(e: SendError) -> Self {
        Self::Unreachable(e.to_string())
    }
}

impl From<ReceiveError> for AttemptError {
    fn from(e: ReceiveError) -> Self {
        Self::Unreachable(e.to_string())
    }
}

/// What opening a conversation led to.
enum Opened {
    Channel(Box<Channel>),
    /// There are more KeySets than one Welcome carries: this is how far it led.
    More(KeySet),
}

async fn attempt(
    options: &ConnectOptions<'_>,
    name: &str,
    address: SocketAddr,
) -> Result<Channel, AttemptError> {
    let mut anchor = options.anchor.clone();
    for _ in 0..MAX_PARTS {
        match open(options, &anchor, name, address).await? {
            Opened::Channel(channel) => return Ok(*channel),
            Opened::More(keyset) => anchor = Anchor::KeySet(keyset),
        }
    }
    Err(AttemptError::Final(ConnectError::Protocol(name.to_owned())))
}

async fn open(
    options: &ConnectOptions<'_>,
    anchor: &Anchor,
    name: &str,
    address: SocketAddr,
) -> Result<Opened, AttemptError> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    if let Some(mark) = options.fwmark {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)
            .map_err(io::Error::from)?;
    }
    let endpoint =
        quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
    let config =
        tls::client_config(options.identity).map_err(|e| AttemptError::Unreachable(e.to_string()))?;
    let connection = endpoint
        .connect_with(config, address, "controller")
        .map_err(|e| AttemptError::Unreachable(e.to_string()))?
        .await?;
    let (send, receive) = connection.open_bi().await?;
    let (mut sender, mut receiver) = (Sender::new(send), Receiver::new(receive, MAX_FROM_CONTROLLER));
    let hello = proto::Hello {
        min_version: version::MIN,
        max_version: version::MAX,
        keyset_version: anchor.version(),
        ..options.hello.clone()
    };
    let opening = proto::ToController { request: 0, message: Some(to_controller::Message::Hello(hello)) };
    sender.send_to_controller(&opening).await?;

    let refuse = |error| Err(AttemptError::Final(error));
    let first: Option<proto::FromController> = receiver.read().await?;
    let welcome = match first.and_then(|m| m.message) {
        Some(from_controller::Message::Welcome(welcome)) => welcome,
        Some(from_controller::Message::Refused(refused)) => {
            let held = |key: PublicKey| match anchor {
                Anchor::KeySet(held) => held.allows(KeyUse::Tls, &key, unix_millis().max(held.issued)),
                Anchor::Root(_) => false,
            };
            let refusal = Refusal::from(refused);
            let proven = tls::peer_key(&connection).is_some_and(held);
            return refuse(ConnectError::Refused(if proven { refusal } else { hearsay(name, &refusal) }));
        }
        _ => return refuse(ConnectError::Protocol(name.to_owned())),
    };
    let keyset = match keyset::walk(anchor, &welcome.keysets) {
        Ok(keyset) => keyset,
        Err(error) => return refuse(ConnectError::Trust { address: name.to_owned(), error }),
    };
    if keyset.version > anchor.version() && welcome.newest_keyset > keyset.version {
        connection.close(0u32.into(), b"more KeySets are needed");
        return Ok(Opened::More(keyset));
    }
    // A machine whose clock starts in the past must still find its way: a KeySet is valid when it was issued.
    let now = unix_millis().max(keyset.issued);
    match tls::peer_key(&connection) {
        Some(key) if keyset.allows(KeyUse::Tls, &key, now) => {}
        Some(key) => return refuse(ConnectError::UntrustedTlsKey { address: name.to_owned(), key }),
        None => return refuse(ConnectError::Protocol(name.to_owned())),
    }

    let local = endpoint.local_addr()?;
    let (outbox, queued) = mpsc::channel(QUEUE);
    let (deliver, inbox) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        endpoint,
        connection: connection.clone(),
        next: AtomicU64::new(1),
        waiting: Mutex::new(Some(HashMap::new())),
        keyset: Mutex::new((keyset.clone(), welcome.keysets.last().cloned())),
    });
    tokio::spawn(write(sender, queued));
    tokio::spawn(read(receiver, deliver, shared.clone()));
    Ok(Opened::Channel(Box::new(Channel {
        keyset,
        keyset_raw: welcome.keysets.into_iter().last(),
        requests: Requests { outbox, shared },
        inbox,
        local,
        remote: connection.remote_address(),
        software: welcome.software,
    })))
}

async fn write(mut sender: Sender, mut queued: mpsc::Receiver<proto::ToController>) {
    while let Some(message) = queued.recv().await {
        if sender.send_to_controller(&message).await.is_err() {
            return;
        }
    }
    sender.finish().await;
}

/// Hands answers to those who asked and the rest to the inbox, until the connection ends.
async fn read(mut receiver: Receiver, inbox: mpsc::Sender<from_controller::Message>, shared: Arc<Shared>) {
    loop {
        let (request, message) = match receiver.read::<proto::FromController>().await {
            Ok(Some(proto::FromController { request, message: Some(message) })) => (request, message),
            // A message of a later version.
            Ok(Some(_)) => continue,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "the control channel ended");
                break;
            }
        };
        if request == 0 {
            // Before anything that is signed by a key of theirs.
            let taken = match &message {
                from_controller::Message::Keysets(shown) => shared.take_keysets(shown),
                _ => Ok(()),
            };
            if inbox.send(message).await.is_err() {
                break;
            }
            if let Err(why) = taken {
                tracing::warn!(%why, "the controller showed KeySets after which it is not to be trusted");
                shared.connection.close(1u32.into(), why.as_bytes());
                break;
            }
        } else if let Some(answer) = shared.waiting().as_mut().and_then(|w| w.remove(&request)) {
            // Who asked may have stopped waiting.
            let _ = answer.send(message);
        }
    }
    // Closing what has ended would hide why it did.
    if shared.connection.close_reason().is_none() {
        shared.connection.close(0u32.into(), b"done");
    }
    // Dropping the senders tells those who wait; none can be added any more.
    shared.waiting().take();
}

fn unix_millis() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
