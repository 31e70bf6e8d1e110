//! Appliances that arrive: so many at once that the database keeps up with them, and heartbeats with it. Whoever would wait for
//! longer than an appliance gives an attempt is told at once when to come back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// How many are looked at at once; as many again may be at their first proof. Both wait for the database most of the time, which
/// has a connection for about as many.
const AT_ONCE: usize = 16;
/// The longest that one may be expected to wait for its turn: well below the 15 s that an appliance gives an attempt, of which
/// the handshake takes its part.
const PATIENCE: Duration = Duration::from_secs(4);
/// How old an attempt may be when its turn comes. What is begun for an older one is likely to be for nobody, and takes the time of
/// those who still wait: on a machine that is overloaded, all of it.
const FRESH: Duration = Duration::from_secs(8);
/// The shortest that one is sent away for.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest that one is sent away for: no appliance waits longer, whatever it is told.
const LONGEST: Duration = Duration::from_secs(60);
/// Over how long turns are counted.
const WINDOW: Duration = Duration::from_millis(500);
/// Turns in a second that are expected before any were counted.
const FIRST_RATE: f64 = 200.0;
/// The fewest that are expected, however slow the database is.
const LEAST_RATE: f64 = 20.0;
/// How much of the expectation a window replaces.
const WEIGHT: f64 = 0.3;

/// Lets appliances in.
#[derive(Debug)]
pub(super) struct Arrivals {
    begin: Semaphore,
    prove: Semaphore,
    queue: Mutex<Queue>,
    start: Instant,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            begin: Semaphore::new(AT_ONCE),
            prove: Semaphore::new(AT_ONCE),
            queue: Mutex::new(Queue::new()),
            start: Instant::now(),
        }
    }
}

/// The turn of one of them, until it is dropped.
pub(super) struct Turn<'a> {
    arrivals: &'a Arrivals,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.arrivals.queue().done(self.arrivals.start.elapsed());
    }
}

/// One that waits.
struct Waits<'a>(&'a Arrivals);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.queue().waiting -= 1;
    }
}

impl Arrivals {
    /// Waits for a turn, in the order of arrival, for an attempt that began at `since`.
    ///
    /// # Errors
    /// When the turn would come too late, or did: how long to stay away.
    pub(super) async fn turn(&self, since: Instant) -> Result<Option<Turn<'_>>, Duration> {
        self.queue().enter(self.start.elapsed(), since.elapsed())?;
        let waits = Waits(self);
        let permit = self.begin.acquire().await;
        drop(waits);
        if since.elapsed() > FRESH {
            return Err(self.queue().away(self.start.elapsed()));
        }
        // The semaphore is never closed.
        Ok(permit.ok().map(|permit| Turn { arrivals: self, _permit: permit }))
    }

    /// Waits until one that was let in may prove itself: before all that have not begun.
    pub(super) async fn proof(&self) -> Option<SemaphorePermit<'_>> {
        self.prove.acquire().await.ok()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change is one step, so what is counted is whole whatever thread panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many wait, and how fast they are let in. Times count from any one moment.
#[derive(Debug)]
struct Queue {
    waiting: usize,
    /// Turns that ended in the window.
    done: u32,
    /// Whether somebody waited during all of the window.
    busy: bool,
    window: Duration,
    /// Turns a second, as far as is known.
    rate: f64,
    /// Until when those who were sent away fill the turns to come.
    booked: Duration,
}

impl Queue {
    fn new() -> Self {
        Self {
            waiting: 0,
            done: 0,
            busy: false,
            window: Duration::ZERO,
            rate: FIRST_RATE,
            booked: Duration::ZERO,
        }
    }

    /// Adds one whose attempt has this age, or says how long it is to stay away.
    fn enter(&mut self, now: Duration, age: Duration) -> Result<(), Duration> {
        self.look(now);
        let wait = self.wait();
        if wait <= PATIENCE && age + wait <= FRESH {
            self.waiting += 1;
            return Ok(());
        }
        Err(self.away(now))
    }

    /// How long one would wait that came now.
    fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.waiting as f64 / self.rate)
    }

    /// How long one is to stay away. Each is given a turn of its own, after those who wait and those who were sent away before.
    fn away(&mut self, now: Duration) -> Duration {
        let turn = self.booked.max(now + self.wait().max(SHORTEST));
        if turn >= now + LONGEST {
            return LONGEST;
        }
        self.booked = turn + Duration::from_secs_f64(1.0 / self.rate);
        turn - now
    }

    /// A turn ended.
    fn done(&mut self, now: Duration) {
        self.done += 1;
        self.look(now);
    }

    fn look(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.window);
        // What nobody waited for says how many came, not how many may.
        self.busy &= self.waiting > 0;
        if passed < WINDOW {
            return;
        }
        let seen = f64::from(self.done) / passed.as_secs_f64();
        let rate = if self.busy { self.rate + (seen - self.rate) * WEIGHT } else { self.rate.max(seen) };
        self.rate = rate.max(LEAST_RATE);
        (self.window, self.done, self.busy) = (now, 0, self.waiting > 0);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_are_limited_and_proofs_do_not_wait_for_them() {
        let (arrivals, now) = (Arrivals::default(), Instant::now());
        let held: Vec<_> =
            (0..AT_ONCE).map(|_| arrivals.turn(now).now_or_never().unwrap().unwrap().unwrap()).collect();
        assert_eq!(arrivals.queue().waiting, 0);
        let mut waiting = Box::pin(arrivals.turn(now));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(arrivals.queue().waiting, 1);
        assert!(arrivals.proof().now_or_never().unwrap().is_some());
        drop(held);
        assert!(waiting.as_mut().now_or_never().is_some());
        drop(waiting);
        let queue = arrivals.queue();
        assert_eq!((queue.waiting, queue.done), (0, u32::try_from(AT_ONCE + 1).unwrap()));
    }

    #[test]
    fn those_who_come_too_late_get_turns_of_their_own() {
        let mut queue = Queue::new();
        let room = (FIRST_RATE * PATIENCE.as_secs_f64()) as usize;
        let mut enter = || queue.enter(Duration::ZERO, Duration::ZERO);
        assert!((0..=room).all(|_| enter().is_ok()));
        let away: Vec<_> = (0..100).map(|_| enter().unwrap_err()).collect();
        assert!(away[0] >= PATIENCE && away.is_sorted_by(|a, b| a < b));
        let spread = (away[99] - away[0]).as_secs_f64();
        assert!((spread - 99.0 / FIRST_RATE).abs() < 0.01);
    }

    #[test]
    fn a_slow_database_is_noticed_while_somebody_waits_and_a_quiet_hour_is_not_slow() {
        let mut queue = Queue::new();
        for _ in 0..10 {
            queue.enter(Duration::ZERO, Duration::ZERO).unwrap();
        }
        for step in 1..100 {
            queue.look(WINDOW * step);
        }
        assert!((queue.rate - LEAST_RATE).abs() < 1.0);
        queue.waiting = 0;
        let quiet = Duration::from_secs(3600);
        queue.look(quiet);
        let before = queue.rate;
        queue.look(quiet * 2);
        assert!((queue.rate - before).abs() < f64::EPSILON);
        for turn in 0..1000 {
            queue.done(quiet * 2 + Duration::from_millis(turn));
        }
        assert!(queue.rate > 900.0);
    }

    #[test]
    fn an_attempt_that_is_old_is_sent_away_for_a_short_time() {
        let (arrivals, now) = (Arrivals::default(), Instant::now());
        let Some(since) = now.checked_sub(FRESH + SHORTEST) else { return };
        let away = arrivals.turn(since).now_or_never().unwrap().map(|_| ()).unwrap_err();
        assert!(away >= SHORTEST && away <= PATIENCE, "{away:?}");
        assert!(arrivals.turn(now).now_or_never().unwrap().is_ok());
        // One that grew old while it waited gives its turn to the next.
        assert_eq!((arrivals.queue().waiting, arrivals.begin.available_permits()), (0, AT_ONCE));
    }

    proptest! {
        /// Whatever happens: nobody is let in who would wait for long, and nobody is sent away for longer than it listens.
        #[test]
        fn waits_are_bounded(steps in prop::collection::vec((0u64..2000, 0u8..3, 0u64..10_000), 1..400)) {
            let (mut queue, mut now) = (Queue::new(), Duration::ZERO);
            for (pause, what, age) in steps {
                now += Duration::from_millis(pause);
                match what {
                    0 => match queue.enter(now, Duration::from_millis(age)) {
                        Ok(()) => {
                            let wait = (queue.waiting - 1) as f64 / queue.rate;
                            prop_assert!(wait <= PATIENCE.as_secs_f64() + 0.001);
                            prop_assert!(wait + age as f64 / 1e3 <= FRESH.as_secs_f64() + 0.001);
                        }
                        Err(away) => prop_assert!(away > Duration::ZERO && away <= LONGEST),
                    },
                    1 => {
                        queue.waiting = queue.waiting.saturating_sub(1);
                        queue.done(now);
                    }
                    _ => queue.look(now),
                }
                prop_assert!(queue.rate >= LEAST_RATE);
            }
        }
    }
}
