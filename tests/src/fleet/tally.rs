//! What a fleet counts. Written by its thread, read by whoever measures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many different reasons are kept; one more counts as "other".
const MAX_REASONS: usize = 64;
/// How many errors are kept word for word.
const MAX_ERRORS: usize = 32;

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicUsize);

impl Gauge {
    pub(super) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// One that made a part of the number makes another one.
    pub(super) fn moved(&self, from: usize, to: usize) {
        self.0.fetch_add(to, Ordering::Relaxed);
        self.0.fetch_sub(from, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of one group.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) attached: Gauge,
    pub(super) verified: Gauge,
    pub(super) sessions: Gauge,
    pub(super) handshakes: Count,
    pub(super) registered: Count,
    pub(super) beats: Count,
    pub(super) acknowledged: Count,
    pub(super) states: Count,
    pub(super) state_bytes: Count,
    pub(super) unasked_bytes: Count,
    pub(super) losses: Count,
    latencies: Mutex<Option<Vec<f32>>>,
    returns: Mutex<Vec<f32>>,
    reasons: Mutex<BTreeMap<String, u64>>,
    errors: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two operations.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// Notes how long a heartbeat waited for its acknowledgement.
    pub(super) fn latency(&self, time: Duration) {
        if let Some(times) = &mut *lock(&self.latencies) {
            times.push(time.as_secs_f32() * 1e3);
        }
    }

    /// Notes how long an appliance was away.
    pub(super) fn returned(&self, time: Duration) {
        lock(&self.returns).push(time.as_secs_f32());
    }

    /// Notes why a conversation ended.
    pub(super) fn reason(&self, reason: &str) {
        let mut reasons = lock(&self.reasons);
        let known = reasons.len() < MAX_REASONS || reasons.contains_key(reason);
        *reasons.entry(if known { reason } else { "other" }.to_owned()).or_default() += 1;
    }

    /// Notes that the controller did what it must not.
    pub(super) fn error(&self, error: String) {
        let mut errors = lock(&self.errors);
        if errors.len() < MAX_ERRORS {
            errors.push(error);
        }
    }

    /// Forgets the times so far, and keeps them from now on or not.
    pub(super) fn record(&self, times: bool) -> Vec<f64> {
        let old = std::mem::replace(&mut *lock(&self.latencies), times.then(Vec::new));
        old.unwrap_or_default().into_iter().map(f64::from).collect()
    }

    /// The times appliances were away, which are forgotten by it.
    pub(super) fn take_returns(&self) -> Vec<f64> {
        std::mem::take(&mut *lock(&self.returns)).into_iter().map(f64::from).collect()
    }

    /// All of it at this moment.
    pub(super) fn look(&self) -> Counts {
        Counts {
            attached: self.attached.get(),
            verified: self.verified.get(),
            sessions: self.sessions.get(),
            handshakes: self.handshakes.get(),
            registered: self.registered.get(),
            beats: self.beats.get(),
            acknowledged: self.acknowledged.get(),
            states: self.states.get(),
            state_bytes: self.state_bytes.get(),
            unasked_bytes: self.unasked_bytes.get(),
            losses: self.losses.get(),
            reasons: lock(&self.reasons).clone(),
            errors: lock(&self.errors).clone(),
        }
    }
}

/// What a group came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Appliances the controller has taken in and not dropped.
    pub attached: usize,
    /// Those of them that proved themselves.
    pub verified: usize,
    /// Sessions in the states that they hold.
    pub sessions: usize,
    /// Handshakes so far.
    pub handshakes: u64,
    /// Registrations so far.
    pub registered: u64,
    /// Heartbeats sent so far.
    pub beats: u64,
    /// Heartbeats acknowledged so far.
    pub acknowledged: u64,
    /// States received, verified and applied so far.
    pub states: u64,
    /// Their bytes.
    pub state_bytes: u64,
    /// Bytes of messages that answered nothing an appliance had asked: states, challenges, probes.
    pub unasked_bytes: u64,
    /// Connections that ended.
    pub losses: u64,
    /// Why connections ended.
    pub reasons: BTreeMap<String, u64>,
    /// Where the controller broke the protocol; must be empty.
    pub errors: Vec<String>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attached, verified, handshakes, registered, beats, acknowledged, losses, .. } = self;
        write!(
            f,
            "{attached} attached, {verified} verified; so far {handshakes} handshakes, {registered} registrations, \
             {acknowledged} of {beats} heartbeats acknowledged, {losses} connections lost"
        )?;
        for (reason, count) in &self.reasons {
            write!(f, "\n    {count} times: {reason}")?;
        }
        self.errors.iter().try_for_each(|error| write!(f, "\n    ERROR {error}"))
    }
}
