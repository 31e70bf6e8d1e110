//! A synthetic fleet: many appliances in one thread, each with its own Ed25519 key, address, QUIC connection, verification
//! secret and state, who talk to a real controller as real appliances do. What is simulated is the machine around them:
//! they apply states by verifying and keeping them.
//!
//! Everything stays on the loopback device, every appliance on an address of its own in 127.0.0.0/8.

mod appliance;
mod database;
mod devices;
mod driver;
mod enrol;
pub mod kubernetes;
mod lone;
mod organisation;
mod port;
pub mod rotation;
pub mod security;
mod tally;
mod trial;

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use horizon_model::{RootId, ServerId};

pub use appliance::{Acknowledged, Enrolment};
pub use database::Database;
pub use devices::Device;
pub use lone::Lone;
pub use organisation::OrganisationOptions;
pub use tally::Counts;
pub use trial::{Returned, Steady, Storm, Trial};

use appliance::Organisation;
use driver::Driver;
use tally::Tally;

/// Which appliances of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The many.
    Fleet,
    /// A few whose service is measured while things happen to the many.
    Bystanders,
}

impl Group {
    const COUNT: usize = 2;
}

/// An appliance to be simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of its Ed25519 key.
    pub seed: [u8; 32],
    /// Who it is.
    pub enrolment: Enrolment,
    /// To whom it belongs.
    pub group: Group,
}

/// What an appliance was promised.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The server it is.
    pub server: ServerId,
    /// To whom it belongs.
    pub group: Group,
    /// The newest heartbeat that was acknowledged since the appliance last asked to be attached.
    pub newest: Option<Acknowledged>,
    /// All of them, of a fleet that remembers.
    pub all: Vec<Acknowledged>,
}

/// What the fleet's thread is told.
enum Command {
    Connect { group: Group, over: Duration },
    Hold(bool),
    Drop { group: Group, farewell: bool },
    Ledger(mpsc::Sender<Vec<Entry>>),
    Stop,
}

/// A running fleet; dropping it ends all its connections.
pub struct Fleet {
    commands: mpsc::Sender<Command>,
    tallies: [Arc<Tally>; Group::COUNT],
    thread: Option<JoinHandle<()>>,
}

/// How a fleet is started.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Where the controller listens.
    pub controller: SocketAddr,
    /// The organisation's root.
    pub root: RootId,
    /// Whether every acknowledged heartbeat is remembered, or only each appliance's newest.
    pub remember: bool,
}

impl Fleet {
    /// Makes the appliances; none connects before it is told to.
    pub fn start(plans: Vec<Plan>, options: &FleetOptions) -> Result<Self> {
        if !options.controller.ip().is_loopback() {
            bail!("a fleet talks to a controller of this machine only, not to {}", options.controller);
        }
        let (commands, inbox) = mpsc::channel();
        let tallies: [Arc<Tally>; Group::COUNT] = Default::default();
        let organisation = Organisation { root: options.root, keyset: None, remember: options.remember };
        let driver = Driver::new(plans, organisation, options.controller, tallies.clone(), inbox)?;
        let thread = std::thread::Builder::new().name("fleet".to_owned()).spawn(move || driver.run())?;
        Ok(Self { commands, tallies, thread: Some(thread) })
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.commands.send(command).ok().context("the fleet's thread is gone")
    }

    /// Has the members of a group that have no connection make one, evenly spread over a time.
    pub fn connect(&self, group: Group, over: Duration) -> Result<()> {
        self.tell(Command::Connect { group, over })
    }

    /// Whether appliances that lost their connection wait for a word before they come back.
    pub fn hold(&self, held: bool) -> Result<()> {
        self.tell(Command::Hold(held))
    }

    /// Has a group lose all its connections at once: with a farewell, or as when the network goes. It comes back.
    pub fn drop_all(&self, group: Group, farewell: bool) -> Result<()> {
        self.tell(Command::Drop { group, farewell })
    }

    /// What every appliance was promised.
    pub fn ledger(&self) -> Result<Vec<Entry>> {
        let (reply, entries) = mpsc::channel();
        self.tell(Command::Ledger(reply))?;
        entries.recv().context("the fleet's thread is gone")
    }

    /// What a group came to.
    pub fn counts(&self, group: Group) -> Counts {
        self.tallies[group as usize].look()
    }

    /// The times from sending a heartbeat to its acknowledgement since the last call, in milliseconds; from now on they
    /// are kept or not.
    pub fn latencies(&self, group: Group, keep: bool) -> Vec<f64> {
        self.tallies[group as usize].record(keep)
    }

    /// How long the appliances were away that came back since the last call, in seconds.
    pub fn returns(&self, group: Group) -> Vec<f64> {
        self.tallies[group as usize].take_returns()
    }

    /// Waits until something holds of a group; fails when it does not within a limit, or when the controller broke the
    /// protocol.
    pub fn wait(
        &self,
        group: Group,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&Counts) -> bool,
    ) -> Result<Counts> {
        let end = Instant::now() + limit;
        loop {
            let counts = self.counts(group);
            if !counts.errors.is_empty() {
                bail!("the controller broke the protocol: {counts}");
            }
            if holds(&counts) {
                return Ok(counts);
            }
            if Instant::now() > end {
                bail!("waited {limit:?} in vain for this: {what}: {counts}");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Lets time pass, all of it: a parked thread may wake for no reason.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        std::thread::park_timeout(rest);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A thread that has ended needs no command.
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
