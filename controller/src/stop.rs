//! The word to stop, given once and heard everywhere.

use tokio::sync::watch;

/// Gives the word. Dropping it gives the word too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Hears the word. A clone hears the same.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A pair that belongs together.
pub fn stop() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Gives the word.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Ends when the word was given.
    pub async fn requested(&mut self) {
        // An error means that the stopper is gone, which says the same.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether the word was given.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_word_is_heard_before_and_after() {
        let (stopper, mut hears) = stop();
        assert!(!hears.is_requested());
        stopper.stop();
        hears.requested().await;
        assert!(hears.clone().is_requested());
        let (stopper, mut hears) = stop();
        drop(stopper);
        hears.requested().await;
        assert!(hears.is_requested());
    }
}
