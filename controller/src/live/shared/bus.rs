//! The bus between replicas: what one says, all hear, or learn that they missed something. Messages travel over Redis, and
//! over the database when Redis is away or somebody cannot hear it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Inner, keys,
    message::{self, Encoded, Item, Message, Way},
    roster,
    sequence::Sequence,
};
use crate::{
    live::{Hint, Live as _},
    stop::Stop,
};

/// How many items wait to be sent; what finds the queue full is not sent, and others look at everything.
pub(super) const OUTBOX: usize = 16_384;
/// How many messages from Redis wait to be read.
const INBOX: usize = 4_096;
/// How many items are sent in one go.
const BATCH: usize = 1_024;
/// How often a replica says that it is there.
pub(super) const BEAT: Duration = Duration::from_secs(3);
/// For how long it is believed to be.
const LATELY: Duration = Duration::from_secs(10);
/// How long a notification may take.
const NOTIFY_PATIENCE: Duration = Duration::from_secs(3);
/// Between attempts to hear.
const RETRY: Duration = Duration::from_millis(500);
/// How often it is made sure that Redis would still be heard.
const PING: Duration = Duration::from_secs(5);
/// When nothing was heard for so long although something was said, the connection is taken for broken.
const SILENCE: Duration = Duration::from_secs(15);
/// At most once in this time everybody here looks at everything.
const EVERYTHING_PAUSE: Duration = Duration::from_secs(1);
/// How many messages of its own a replica waits to hear, for the lag.
const ECHOES: usize = 1_024;

/// The state of the bus.
pub(super) struct Bus {
    outbox: mpsc::Sender<Item>,
    /// Items were not sent.
    unsent: AtomicBool,
    heard: [Mutex<Sequence>; 2],
    hears: [AtomicBool; 2],
    /// When messages of its own were sent over Redis.
    echoes: Mutex<VecDeque<(u64, Instant)>>,
    /// Everybody here must look at everything.
    missed: AtomicBool,
    missed_wake: Notify,
    /// Numbers of the messages sent, by way.
    sent: [AtomicU64; 2],
    /// A sign of life is due before its time.
    beat_now: Notify,
}

impl Bus {
    pub(super) fn new() -> (Self, mpsc::Receiver<Item>) {
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let bus = Self {
            outbox,
            unsent: AtomicBool::new(false),
            heard: Default::default(),
            hears: Default::default(),
            echoes: Mutex::default(),
            missed: AtomicBool::new(false),
            missed_wake: Notify::new(),
            sent: Default::default(),
            beat_now: Notify::new(),
        };
        (bus, queue)
    }

    /// Tells all other replicas, soon.
    pub(super) fn say(&self, item: Item) {
        if self.outbox.try_send(item).is_err() {
            self.unsent.store(true, Ordering::Relaxed);
        }
    }

    /// Whether Redis is heard.
    pub(super) fn hears_redis(&self) -> bool {
        self.hears[Way::Redis as usize].load(Ordering::Relaxed)
    }

    /// Whether notifications of the database are heard.
    pub(super) fn hears_database(&self) -> bool {
        self.hears[Way::Database as usize].load(Ordering::Relaxed)
    }

    /// Whether some replica cannot hear Redis.
    pub(super) fn anybody_deaf(&self) -> bool {
        let now = Instant::now().into_std();
        self.heard.iter().any(|heard| super::lock(heard).anybody_deaf(now, LATELY))
    }

    /// A message of its own will be heard over Redis.
    fn expect_echo(&self, number: u64) {
        let mut echoes = super::lock(&self.echoes);
        if echoes.len() == ECHOES {
            echoes.pop_front();
        }
        echoes.push_back((number, Instant::now()));
    }

    /// Hints were lost.
    pub(super) fn missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
        self.missed_wake.notify_one();
    }
}

/// Sends what waits, until the word to stop came and nothing waits any more.
pub(super) async fn send(shared: Arc<Inner>, mut queue: mpsc::Receiver<Item>, mut stop: Stop) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut items = Vec::new();
        let ends = tokio::select! {
            biased;
            _ = queue.recv_many(&mut items, BATCH) => false,
            _ = beat.tick() => false,
            () = shared.bus.beat_now.notified() => false,
            () = stop.requested() => true,
        };
        shared.metrics.set_queue_depth("live_outbox", queue.len());
        shared.send(items).await;
        if ends {
            let mut rest = Vec::new();
            while let Ok(item) = queue.try_recv() {
                rest.push(item);
            }
            shared.send(rest).await;
            return;
        }
    }
}

impl Inner {
    async fn send(&self, mut items: Vec<Item>) {
        if self.bus.unsent.swap(false, Ordering::Relaxed) {
            items.insert(0, Item::Hint(Hint::Everything));
        }
        let (cached, events): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| matches!(item, Item::Cached(..)));
        if let Some(redis) = &self.redis {
            let gone = cached.iter().filter_map(|item| match item {
                Item::Cached(name, id) => Some(roster::command("DEL", &[self.keys.cache(name, *id)])),
                _ => None,
            });
            // What cannot be taken away now is gone with its lifetime.
            let _ = redis.run(gone.collect()).await;
        }
        let ways = [(keys::EVENTS, events, true), (keys::INVALIDATE, cached, false)];
        for (channel, items, beats) in ways {
            let mut left: Vec<Encoded> = items.iter().map(message::encode).collect();
            self.live_metrics.count_hints("sent", left.len());
            // An empty message is a sign of life.
            let mut first = beats;
            while first || !left.is_empty() {
                first = false;
                let rest = left.split_off(message::pack(&left).min(left.len()));
                if !self.send_message(channel, &left).await {
                    self.bus.unsent.store(true, Ordering::Relaxed);
                    self.live_metrics.count_hints("dropped", left.len() + rest.len());
                    return;
                }
                left = rest;
            }
        }
    }

    /// Sends one message. Returns whether it may have reached everybody.
    async fn send_message(&self, channel: &str, items: &[Encoded]) -> bool {
        let deaf = self.redis.is_some() && !self.bus.hears_redis();
        let text = |way: Way| {
            let number = self.bus.sent[way as usize].fetch_add(1, Ordering::Relaxed);
            (number, message::write(&self.bus_key, way, self.replica, number, deaf, items))
        };
        let mut told = false;
        if let Some(redis) = self.redis.as_ref().filter(|redis| redis.usable()) {
            let (number, text) = text(Way::Redis);
            self.bus.expect_echo(number);
            let mut publish = Cmd::new();
            publish.arg("PUBLISH").arg(self.keys.channel(channel)).arg(text);
            told = redis.run(vec![publish]).await.is_ok();
        }
        if let Some(database) = self.database.as_ref().filter(|_| !told || self.bus.anybody_deaf()) {
            let (_, text) = text(Way::Database);
            match timeout(NOTIFY_PATIENCE, database.notify(&text)).await {
                Ok(Ok(())) => told = true,
                Ok(Err(error)) => tracing::debug!(%error, "replicas could not be notified"),
                Err(_) => tracing::debug!("replicas could not be notified in time"),
            }
        }
        told
    }

    /// Takes a message from the bus. What no replica wrote says nothing.
    fn hear(&self, way: Way, text: &[u8]) {
        let Some(Message { from, number, deaf, items }) = message::read(&self.bus_key, way, text) else {
            self.live_metrics.count_hints("malformed", 1);
            return;
        };
        if from == self.replica {
            self.heard_itself(way, number);
            return;
        }
        let now = Instant::now().into_std();
        if super::lock(&self.bus.heard[way as usize]).heard(from, number, deaf, now) {
            self.bus.missed();
        }
        self.live_metrics.count_hints("received", items.len());
        for item in items {
            match item {
                Item::Hint(Hint::Everything) => self.bus.missed(),
                Item::Hint(hint) => {
                    let changed = self.cache.changed(&hint);
                    // Whoever says so by way of the database may be unable to forget it in Redis.
                    if let Some(id) = changed.filter(|_| way == Way::Database && self.redis.is_some()) {
                        self.bus.say(Item::Cached(super::cache::SERVERS.to_owned(), id));
                    }
                    self.here.publish(hint);
                }
                Item::Server(server) => self.mirror.server_changed(server),
                Item::Device(device) => self.mirror.device_changed(device),
                Item::Roster => self.mirror.everything_changed(),
                Item::Lockout(address, left) => self.here.lock_out(address, left, jiff::Timestamp::now()),
                Item::DeadToken(token, left) => self.here.kill_token(token, left, jiff::Timestamp::now()),
                Item::Cached(name, id) => self.cache.forget(&name, id),
            }
        }
    }

    fn heard_itself(&self, way: Way, number: u64) {
        if way == Way::Redis {
            let mut echoes = super::lock(&self.bus.echoes);
            while let Some((sent, at)) = echoes.front().copied().filter(|(sent, _)| *sent <= number) {
                echoes.pop_front();
                if sent == number {
                    self.live_metrics.bus_seconds.observe(at.elapsed().as_secs_f64());
                }
            }
        }
    }
}

/// Has everybody here look at everything after hints were lost, at most once a second.
pub(super) async fn heal(shared: Arc<Inner>, mut stop: Stop) {
    let mut look = interval(EVERYTHING_PAUSE);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            () = shared.bus.missed_wake.notified() => {}
            _ = look.tick() => {}
        }
        let now = Instant::now().into_std();
        let overdue = shared.bus.heard.iter().map(|heard| super::lock(heard).overdue(now));
        if overdue.fold(false, |any, one| any | one) {
            shared.bus.missed.store(true, Ordering::Relaxed);
        }
        if shared.bus.missed.swap(false, Ordering::Relaxed) {
            shared.live_metrics.hints_lost.inc();
            shared.cache.forget_all();
            shared.mirror.everything_changed();
            shared.here.publish(Hint::Everything);
            tokio::select! {
                () = stop.requested() => return,
                () = sleep(EVERYTHING_PAUSE) => {}
            }
        }
    }
}

/// Hears Redis for as long as nobody says stop.
pub(super) async fn hear_redis(shared: Arc<Inner>, mut stop: Stop) {
    let Some(redis) = shared.redis.clone() else { return };
    let channels = [keys::EVENTS, keys::INVALIDATE].map(|channel| shared.keys.channel(channel));
    loop {
        let (sender, mut queue) = mpsc::channel(INBOX);
        let lost = {
            let shared = Arc::downgrade(&shared);
            move || {
                if let Some(shared) = shared.upgrade() {
                    shared.bus.missed();
                }
            }
        };
        let subscribed = tokio::select! {
            () = stop.requested() => return,
            subscribed = redis.subscribe(&channels, sender, lost) => subscribed,
        };
        match subscribed {
            Ok(mut connection) => {
                shared.hears(Way::Redis, true);
                let mut ping = interval(PING);
                ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        () = stop.requested() => return,
                        push = queue.recv() => match push {
                            Some(PushInfo { kind: PushKind::Message, data }) => {
                                if let [_, Value::BulkString(text)] = &data[..] {
                                    shared.hear(Way::Redis, text);
                                }
                            }
                            Some(PushInfo { kind: PushKind::Disconnection, .. }) | None => break,
                            Some(_) => {}
                        },
                        _ = ping.tick() => {
                            let pong = redis::cmd("PING").query_async::<Value>(&mut connection).await;
                            if let Err(error) = pong {
                                tracing::debug!(%error, "Redis is not heard");
                                break;
                            }
                        }
                    }
                }
                shared.hears(Way::Redis, false);
            }
            Err(error) => tracing::debug!(%error, "channels of Redis could not be subscribed to"),
        }
        tokio::select! {
            () = stop.requested() => return,
            () = sleep(RETRY) => {}
        }
    }
}

/// Hears notifications of the database for as long as nobody says stop.
pub(super) async fn hear_database(shared: Arc<Inner>, mut stop: Stop) {
    let Some(database) = shared.database.clone() else { return };
    loop {
        let listening = tokio::select! {
            () = stop.requested() => return,
            listening = database.listen() => listening,
        };
        match listening {
            Ok(mut told) => {
                shared.hears(Way::Database, true);
                let said = &shared.bus.sent[Way::Database as usize];
                let mut said_before = said.load(Ordering::Relaxed);
                loop {
                    tokio::select! {
                        () = stop.requested() => return,
                        text = timeout(SILENCE, told.next()) => match text {
                            Ok(Some(text)) => {
                                said_before = said.load(Ordering::Relaxed);
                                shared.hear(Way::Database, text.as_bytes());
                            }
                            Ok(None) => break,
                            // It would have heard itself.
                            Err(_) if said.load(Ordering::Relaxed) > said_before + 1 => break,
                            Err(_) => {}
                        }
                    }
                }
                shared.hears(Way::Database, false);
            }
            Err(error) => tracing::debug!(%error, "notifications of the database are not heard"),
        }
        tokio::select! {
            () = stop.requested() => return,
            () = sleep(RETRY) => {}
        }
    }
}

impl Inner {
    fn hears(&self, way: Way, hears: bool) {
        self.bus.hears[way as usize].store(hears, Ordering::Relaxed);
        if hears {
            super::lock(&self.bus.heard[way as usize]).reset();
            // What was said until now was not heard.
            self.bus.missed();
        }
        // Others learn at once whether it is deaf.
        self.bus.beat_now.notify_one();
    }
}
