//! The connection to the kernel.

use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::Handle;
use tokio::task::AbortHandle;

use crate::error::NetError;

/// A connection to the kernel's routing tables in the network namespace it was opened in. Clones share it.
#[derive(Clone, Debug)]
pub struct Net {
    pub(crate) handle: Handle,
    _task: Arc<Task>,
}

#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Net {
    /// Opens a connection. Its background task runs on the current tokio runtime until the last clone is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| NetError::io("open", "a netlink socket", &e))?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, _task: Arc::new(Task(task.abort_handle())) })
    }
}

/// Collects a dump.
pub(crate) async fn dump<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    what: &'static str,
) -> Result<Vec<T>, NetError> {
    stream.try_collect().await.map_err(|e| NetError::netlink("list", what, &e))
}

/// Turns "is already there" into success.
pub(crate) fn present(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(e) if e.is_present() => Ok(()),
        other => other,
    }
}

/// Turns "is not there" into success.
pub(crate) fn absent(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(e) if e.is_absent() => Ok(()),
        other => other,
    }
}
