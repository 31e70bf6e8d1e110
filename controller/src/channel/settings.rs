//! Limits and patience of the control channel.

use std::time::Duration;

/// Limits and patience of the control channel. [`ChannelSettings::default`] is what a controller uses.
#[derive(Clone, Debug)]
pub struct ChannelSettings {
    /// Connections that are open at once.
    pub connections: usize,
    /// Handshakes that are under way at once; a storm of reconnections waits its turn.
    pub handshakes_at_once: usize,
    /// Messages per second that one peer may send for long; twice as many may come at once.
    pub messages_per_second: u32,
    /// How long an appliance may take to answer a challenge.
    pub challenge_patience: Duration,
    /// How often an appliance is looked at again; `None`: as often as the policy says.
    pub challenge_pace: Option<Duration>,
    /// How often a live session of an appliance is looked at; `None`: as often as the policy says that it is challenged.
    pub look_pace: Option<Duration>,
    /// How long a session must last before it is looked at, and its ends contradict each other before it ends.
    pub look_patience: Duration,
    /// How long the live incarnation of a server may take to answer when another one comes.
    pub clone_patience: Duration,
    /// How long an appliance may take to take in a session.
    pub session_patience: Duration,
    /// How long an appliance must be gone before its session can be taken over without its word.
    pub takeover_grace: Duration,
    /// How long a session lives that no connection carries and whose device has no channel.
    pub session_idle: Duration,
    /// How often what times out is looked for.
    pub sweep: Duration,
    /// How often it is looked for changes of which no hint came.
    pub changes: Duration,
    /// How long peers may take to leave for other replicas before this one stops.
    pub leave_patience: Duration,
    /// How long a dial-back probe may take.
    pub probe_patience: Duration,
    /// How long a peer may leave a message unread.
    pub send_patience: Duration,
    /// The largest state of an appliance, in bytes: a whole one must fit a message.
    pub state_bytes: usize,
}

/// The most peers that have not proved who they are, however many connections there may be.
const MOST_UNPROVEN: usize = 10_000;

impl ChannelSettings {
    /// How many peers there may be that have not proved who they are.
    pub(super) fn unproven(&self) -> usize {
        (self.connections / 2).min(MOST_UNPROVEN)
    }
}

impl Default for ChannelSettings {
    fn default() -> Self {
        Self {
            connections: 120_000,
            handshakes_at_once: 256,
            messages_per_second: 100,
            challenge_patience: Duration::from_secs(10),
            challenge_pace: None,
            look_pace: None,
            look_patience: Duration::from_secs(90),
            clone_patience: Duration::from_secs(5),
            session_patience: Duration::from_secs(10),
            takeover_grace: Duration::from_secs(90),
            session_idle: Duration::from_secs(300),
            sweep: Duration::from_secs(10),
            changes: Duration::from_secs(2),
            leave_patience: Duration::from_secs(15),
            probe_patience: Duration::from_secs(3),
            send_patience: Duration::from_secs(10),
            state_bytes: horizon_wire::state::MAX_STATE_BYTES,
        }
    }
}
