//! Where statuses go besides the store: to the objects of the source, when it keeps them.

use std::sync::Arc;

use horizon_controller_core::{
    ObjectVersion, Stored,
    status::{Notice, Status},
};
use horizon_crds::{Problem, ResourceId};

/// Takes the statuses of resources to where their admins look.
pub trait StatusSink: Send + Sync + 'static {
    /// Shows statuses, soon: it does not wait. It gets every status that was looked at, also those that read as before,
    /// and all of them after this replica became the leader: what an object shows already is not written again. What could
    /// not be shown is tried again behind this, until a newer status takes its place or this replica does not lead any more.
    fn show(&self, batch: Vec<StatusWrite>);

    /// Says something that is about no single resource. It does not wait either.
    fn notice(&self, _notice: Notice) {}
}

/// The status of one resource.
#[derive(Clone, Debug)]
pub struct StatusWrite {
    /// Which.
    pub id: ResourceId,
    /// The version of the source's object that this is about; `None` when the source has none.
    pub object: Option<ObjectVersion>,
    /// What it shows.
    pub what: Shown,
}

/// What is shown of a resource.
#[derive(Clone, Debug)]
pub enum Shown {
    /// It is in force.
    InForce {
        /// What is in force. The object may have changed since.
        stored: Arc<Stored>,
        /// Its status.
        status: Box<Status>,
        /// The status before, if there was one.
        before: Option<Box<Status>>,
        /// What is wrong with its document now; what is in force is older then.
        problems: Vec<Problem>,
    },
    /// It is not in force.
    Rejected {
        /// Why; nothing when that is over and it is merely not there.
        problems: Vec<Problem>,
    },
}
