//! What this process knows about its leadership, for everybody who acts only as a leader.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::election::Moment;
use crate::{stop::Stop, store::LeaderEpoch};

/// What this replica is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nobody answered yet.
    #[default]
    Undecided,
    /// Another replica leads, or nobody does, as far as is known.
    Follower {
        /// The name of the leader.
        leader: Option<String>,
    },
    /// This replica leads, under this epoch.
    Leader(LeaderEpoch),
}

impl Standing {
    /// The epoch, of a leader.
    pub fn epoch(&self) -> Option<LeaderEpoch> {
        match self {
            Self::Leader(epoch) => Some(*epoch),
            _ => None,
        }
    }
}

/// The leadership of this replica. A clone speaks of the same.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    standing: watch::Sender<Standing>,
    /// Until when it holds, in nanoseconds since the machine started.
    until: AtomicU64,
    deposed: tokio::sync::Notify,
}

/// The time of the clock that nobody sets and that goes on while the machine sleeps.
pub(super) fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Moment(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()))
}

fn nanoseconds(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_nanos()).unwrap_or(u64::MAX)
}

impl Leadership {
    /// Leads under an epoch for good, as one without rivals does.
    pub fn always(epoch: LeaderEpoch) -> Self {
        let leadership = Self::default();
        leadership.leading(epoch, Moment::NEVER);
        leadership
    }

    /// The epoch under which this replica leads, or `None` when it does not, or when its lease is over although nothing
    /// could tell it yet. Ask right before each act that only a leader may do.
    pub fn leads(&self) -> Option<LeaderEpoch> {
        let epoch = self.0.standing.borrow().epoch()?;
        (nanoseconds(now()) < self.0.until.load(Ordering::Acquire)).then_some(epoch)
    }

    /// What this replica is.
    pub fn standing(&self) -> Standing {
        self.0.standing.borrow().clone()
    }

    /// What this replica is, whenever that changes.
    pub fn subscribe(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// The database knows a newer leader than this epoch: steps down at once.
    pub fn fenced(&self, epoch: LeaderEpoch) {
        if self.0.standing.borrow().epoch() == Some(epoch) {
            self.following(None);
            self.0.deposed.notify_one();
        }
    }

    /// Ends when somebody was told that it is [fenced](Self::fenced).
    pub(super) async fn deposed(&self) {
        self.0.deposed.notified().await;
    }

    /// Does `work` while this replica leads, anew whenever it begins to, until it is to stop or the work ends by itself.
    /// Work that is under way when the leadership ends is dropped.
    pub(crate) async fn while_leading<W: Future<Output = ()>>(&self, mut stop: Stop, work: impl Fn() -> W) {
        let mut standing = self.subscribe();
        loop {
            let leads = async { standing.wait_for(|standing| standing.epoch().is_some()).await.is_ok() };
            tokio::select! {
                goes_on = leads => if !goes_on { return },
                () = stop.requested() => return,
            }
            let leads_no_more =
                async { standing.wait_for(|standing| standing.epoch().is_none()).await.is_ok() };
            tokio::select! {
                () = work() => return,
                goes_on = leads_no_more => if !goes_on { return },
                () = stop.requested() => return,
            }
        }
    }

    pub(crate) fn leading(&self, epoch: LeaderEpoch, until: Moment) {
        self.0.until.store(nanoseconds(until), Ordering::Release);
        self.set(Standing::Leader(epoch));
    }

    pub(crate) fn following(&self, leader: Option<String>) {
        self.set(Standing::Follower { leader });
    }

    fn set(&self, next: Standing) {
        self.0.standing.send_if_modified(|standing| {
            let changed = *standing != next;
            *standing = next;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_over_is_no_leadership() {
        let leadership = Leadership::default();
        assert_eq!((leadership.leads(), leadership.standing()), (None, Standing::Undecided));
        leadership.leading(LeaderEpoch(3), now().after(Duration::from_secs(3600)));
        assert_eq!(leadership.leads(), Some(LeaderEpoch(3)));
        leadership.leading(LeaderEpoch(3), now());
        assert_eq!(leadership.leads(), None);
        assert_eq!(leadership.standing().epoch(), Some(LeaderEpoch(3)), "nothing told it yet");
    }

    #[test]
    fn only_the_epoch_that_was_fenced_ends() {
        let leadership = Leadership::always(LeaderEpoch(4));
        leadership.fenced(LeaderEpoch(3));
        assert_eq!(leadership.leads(), Some(LeaderEpoch(4)));
        leadership.fenced(LeaderEpoch(4));
        assert_eq!(leadership.standing(), Standing::Follower { leader: None });
    }
}
