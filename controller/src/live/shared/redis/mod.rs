//! Redis behind its circuit breaker: nothing here waits long, and whoever is told that it is away asks the database.

mod breaker;
mod connect;
mod url;

pub use url::{RedisUrl, RedisUrlError};

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redis::{Cmd, PushInfo, RedisError, RedisResult, ServerErrorKind, Value, aio::MultiplexedConnection};
use thiserror::Error;
use tokio::sync::mpsc;

use self::{
    breaker::{Breaker, Fault, State},
    connect::Connection,
};
use super::super::LiveMetrics;

/// Redis is not to be had now.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("Redis is not to be had now")]
pub(super) struct Away;

/// How a process uses Redis.
pub(super) struct Redis {
    url: RedisUrl,
    breaker: Mutex<Breaker>,
    /// The connection, with its number.
    connection: tokio::sync::Mutex<(u64, Option<Connection>)>,
    /// What was last wrong with it, in words.
    trouble: Mutex<String>,
    /// When it was last found to be back.
    back: Mutex<Option<Instant>>,
    metrics: LiveMetrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Redis {
    pub(super) fn new(url: RedisUrl, metrics: LiveMetrics) -> Self {
        Self {
            url,
            breaker: Mutex::default(),
            connection: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            back: Mutex::default(),
            metrics,
        }
    }

    pub(super) fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// Whether it was to be had when it was last used.
    pub(super) fn usable(&self) -> bool {
        lock(&self.breaker).admits()
    }

    /// Whether it was to be had for so long without a break.
    pub(super) fn steady(&self, long: Duration) -> bool {
        self.usable() && lock(&self.back).is_none_or(|back| back.elapsed() >= long)
    }

    /// Why it is not.
    pub(super) fn trouble(&self) -> String {
        lock(&self.trouble).clone()
    }

    /// Carries commands out, in any order, and returns what each was answered.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Away> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        if !self.usable() {
            self.metrics.redis_operation("avoided");
            return Err(Away);
        }
        let answers = self.attempt(commands).await?;
        lock(&self.breaker).succeeded();
        Ok(answers)
    }

    /// The same, also after the breaker opened: now and then it goes out all the same, and closes the breaker if it goes
    /// well. There must be a command among them that writes: a full server and a replica still answer questions.
    pub(super) async fn probe(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Away> {
        if !lock(&self.breaker).admits_probe(Instant::now()) {
            return Err(Away);
        }
        self.show_state();
        let answers = self.attempt(commands).await?;
        let before = {
            let mut breaker = lock(&self.breaker);
            let before = breaker.state();
            breaker.probe_succeeded();
            before
        };
        if before != State::Closed {
            *lock(&self.back) = Some(Instant::now());
            tracing::info!(redis = %self.url, "Redis is back");
        }
        self.show_state();
        Ok(answers)
    }

    /// Hears what is published in channels; see [`connect::subscribe`].
    pub(super) async fn subscribe(
        &self,
        channels: &[String],
        queue: mpsc::Sender<PushInfo>,
        lost: impl Fn() + Send + Sync + 'static,
    ) -> RedisResult<MultiplexedConnection> {
        connect::subscribe(&self.url, channels, queue, lost).await
    }

    async fn attempt(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Away> {
        let started = Instant::now();
        let (number, connection) = self.connected().await;
        let answers = match connection {
            Ok(mut connection) => connection.run(commands).await,
            Err(error) => Err(error),
        };
        let answers = answers.and_then(|answers| {
            answers
                .into_iter()
                .map(|answer| answer.and_then(Value::extract_error))
                .collect::<RedisResult<_>>()
        });
        self.metrics.redis_seconds.observe(started.elapsed().as_secs_f64());
        match answers {
            Ok(answers) => {
                self.metrics.redis_operation("ok");
                Ok(answers)
            }
            Err(error) => {
                self.failed(number, &error).await;
                Err(Away)
            }
        }
    }

    /// The connection; a new one if there is none.
    async fn connected(&self) -> (u64, RedisResult<Connection>) {
        let mut held = self.connection.lock().await;
        // Whoever waited here while others found out that it is away need not try again.
        if held.1.is_none() && lock(&self.breaker).state() == State::Open {
            return (held.0, Err(RedisError::from((redis::ErrorKind::Io, "it is away"))));
        }
        if let Some(connection) = &held.1 {
            return (held.0, Ok(connection.clone()));
        }
        held.0 += 1;
        let opened = Connection::open(&self.url).await;
        held.1 = opened.as_ref().ok().cloned();
        (held.0, opened)
    }

    async fn failed(&self, number: u64, error: &RedisError) {
        let fault = fault(error);
        self.metrics.redis_operation(match fault {
            Fault::Refused => "refused",
            Fault::Unreachable => "unreachable",
        });
        let opened = {
            let mut breaker = lock(&self.breaker);
            let before = breaker.state();
            breaker.failed(fault, Instant::now());
            before == State::Closed && breaker.state() == State::Open
        };
        // It may have moved: the next one asks anew where it is.
        let mut held = self.connection.lock().await;
        if held.0 == number {
            held.1 = None;
        }
        drop(held);
        *lock(&self.trouble) = error.to_string();
        if opened {
            tracing::warn!(redis = %self.url, %error, "Redis is away; the database is asked instead");
        }
        self.show_state();
    }

    fn show_state(&self) {
        self.metrics.redis_breaker.set(match lock(&self.breaker).state() {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }
}

/// What an error means. An answer that shows a fault in a command of ours is refused like any other: falling back is
/// right then too.
fn fault(error: &RedisError) -> Fault {
    let transient = matches!(
        error.kind(),
        redis::ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::Moved | ServerErrorKind::Ask)
    );
    if error.is_io_error() || transient || error.code().is_none() {
        Fault::Unreachable
    } else {
        Fault::Refused
    }
}
