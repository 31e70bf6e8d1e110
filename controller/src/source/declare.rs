//! What declares resources, whatever it is: started when this replica leads, ended when it does not any more.

use std::io;

use tokio::sync::mpsc;

use super::{Changes, Source, SourceOptions};
use crate::store::Actor;

/// Something that declares resources.
pub trait Declare: Send + Sync + 'static {
    /// Starts to watch it. The first complete [`Changes`] hold everything.
    ///
    /// # Errors
    /// When it cannot be watched at all. That it is away for a while is no error.
    fn start(&self) -> io::Result<Declared>;

    /// What it is, for people.
    fn describe(&self) -> String;

    /// Whom the audit trail names for what changes by it, where nobody better is known.
    fn actor(&self) -> Actor;
}

/// A source that is watched.
pub struct Declared {
    /// What changes.
    pub changes: mpsc::Receiver<Changes>,
    /// Dropping it ends the watching.
    pub guard: Box<dyn Send>,
}

impl Declare for SourceOptions {
    fn start(&self) -> io::Result<Declared> {
        let (source, changes) = Source::start(self.clone())?;
        Ok(Declared { changes, guard: Box::new(source) })
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn actor(&self) -> Actor {
        Actor::File("resources".into())
    }
}
