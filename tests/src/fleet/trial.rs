//! A controller, its database and a fleet, and what can be tried with them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use horizon_services::{Postgres, PostgresOptions};

use super::{Database, Fleet, FleetOptions, Group, Lone, OrganisationOptions, enrol, organisation, pause};
use crate::bench::Usage;

/// How long a controller may take to be ready.
pub(super) const READY: Duration = Duration::from_secs(300);

/// A controller, its database, and a fleet.
pub struct Trial {
    /// The fleet. Before the controller, so that it says farewell to a living one.
    pub fleet: Fleet,
    /// The controller.
    pub controller: Lone,
    /// Its database.
    pub database: Database,
    /// What they are.
    pub options: OrganisationOptions,
    /// The controller's usage before the first appliance came.
    pub empty: Usage,
}

/// What a fleet at rest costs.
#[derive(Clone, Debug)]
pub struct Steady {
    /// How long it was watched.
    pub time: Duration,
    /// Heartbeats acknowledged a second.
    pub beats: f64,
    /// From sending a heartbeat to its acknowledgement, in milliseconds.
    pub latencies: Vec<f64>,
    /// The controller at the end.
    pub controller: Usage,
    /// Its processor use, in per cent of a core.
    pub controller_cpu: f64,
    /// The fleet's own processor use, in per cent of a core.
    pub fleet_cpu: f64,
    /// The database's processor use, in per cent of a core.
    pub database_cpu: Option<f64>,
    /// Write-ahead log, in bytes a second.
    pub log_bytes: Option<f64>,
}

/// How a fleet loses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storm {
    /// The network goes and comes back: appliances know, the controller does not.
    Network,
    /// The controller is killed (SIGKILL) and started again.
    Kill,
}

/// How a fleet came back.
#[derive(Clone, Debug)]
pub struct Returned {
    /// From the loss of the connections until every appliance was verified again.
    pub all: Duration,
    /// From the loss of an appliance's connection, as it saw it, until it was verified again, in seconds.
    pub each: Vec<f64>,
    /// Processor time of the controller for it.
    pub controller: Duration,
    /// Processor time of the fleet for it.
    pub fleet: Duration,
    /// Heartbeats of the bystanders meanwhile, in milliseconds. Empty where they lost their connections too.
    pub bystanders: Vec<f64>,
    /// Bystanders that lost their connection.
    pub bystanders_lost: u64,
}

/// What is compared with afterwards.
struct Before {
    begin: Instant,
    lost: u64,
    fleet: Duration,
    controller: Duration,
}

impl Trial {
    /// Makes an organisation, starts its controller and has appliances ready that hold registration tokens.
    pub fn with_tokens(
        program: &Path,
        options: OrganisationOptions,
        postgres: bool,
        remember: bool,
    ) -> Result<Self> {
        let (mut controller, database) = controller(program, &organisation::files(&options), postgres)?;
        controller.start(READY)?;
        let (root, plans) = organisation::from_tokens(&controller, &options, READY)?;
        let empty = controller.usage()?;
        let fleet = FleetOptions { controller: controller.control(), root, remember };
        let fleet = Fleet::start(plans, &fleet)?;
        Ok(Self { fleet, controller, database, options, empty })
    }

    /// Makes an organisation whose appliances are registered, and starts its controller.
    pub fn enrolled(program: &Path, options: OrganisationOptions, postgres: bool) -> Result<Self> {
        let (mut controller, database) = controller(program, &[], postgres)?;
        let (root, plans) = enrol::enrol(&controller, &database, &options)?;
        controller.start(READY)?;
        let empty = controller.usage()?;
        let fleet = FleetOptions { controller: controller.control(), root, remember: false };
        let fleet = Fleet::start(plans, &fleet)?;
        Ok(Self { fleet, controller, database, options, empty })
    }

    /// How many appliances a group has.
    pub fn members(&self, group: Group) -> usize {
        match group {
            Group::Fleet => self.options.appliances,
            Group::Bystanders => self.options.bystanders,
        }
    }

    /// Connects everybody, the fleet evenly over a time, and waits until all are verified and have beaten.
    pub fn bring_up(&self, over: Duration, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        self.fleet.connect(Group::Bystanders, Duration::ZERO)?;
        self.fleet.connect(Group::Fleet, over)?;
        for group in [Group::Fleet, Group::Bystanders] {
            self.wait_for_all(group, limit)?;
            self.fleet.returns(group);
        }
        Ok(begin.elapsed())
    }

    /// Waits until a whole group is verified, and every member had a heartbeat acknowledged since.
    pub fn wait_for_all(&self, group: Group, limit: Duration) -> Result<()> {
        let members = self.members(group);
        self.fleet.wait(group, "all are verified", limit, |counts| counts.verified == members)?;
        Ok(())
    }

    /// Watches a fleet at rest.
    pub fn steady(&mut self, time: Duration) -> Result<Steady> {
        let acknowledged = self.fleet.counts(Group::Fleet).acknowledged;
        self.fleet.latencies(Group::Fleet, true);
        let (controller, own) = (self.controller.usage()?, Usage::own()?);
        let (database, log) = (self.database.usage()?, self.database.log_bytes()?);
        let begin = Instant::now();
        pause(time);
        let time = begin.elapsed();
        let seconds = time.as_secs_f64();
        let (controller_after, own_after) = (self.controller.usage()?, Usage::own()?);
        let (database_after, log_after) = (self.database.usage()?, self.database.log_bytes()?);
        let beats = self.fleet.counts(Group::Fleet).acknowledged - acknowledged;
        Ok(Steady {
            time,
            beats: beats as f64 / seconds,
            latencies: self.fleet.latencies(Group::Fleet, false),
            controller_cpu: controller_after.cpu_percent_since(&controller),
            controller: controller_after,
            fleet_cpu: own_after.cpu_percent_since(&own),
            database_cpu: database
                .zip(database_after)
                .map(|(before, after)| after.cpu_percent_since(&before)),
            log_bytes: log.zip(log_after).map(|(before, after)| (after - before) as f64 / seconds),
        })
    }

    /// Has the fleet lose all its connections at once, and waits until all are back.
    pub fn storm(&mut self, storm: Storm, limit: Duration) -> Result<Returned> {
        let before = self.before()?;
        match storm {
            Storm::Network => self.fleet.drop_all(Group::Fleet, false)?,
            Storm::Kill => {
                self.controller.kill()?;
                self.controller.start(READY)?;
            }
        }
        self.after(storm, &before, limit)
    }

    /// Starts a controller that was killed, and waits until all are back.
    pub fn storm_of_restart(&mut self, limit: Duration) -> Result<Returned> {
        self.controller.start(READY)?;
        let before = Before { controller: Duration::ZERO, ..self.before()? };
        self.after(Storm::Kill, &before, limit)
    }

    fn before(&mut self) -> Result<Before> {
        self.fleet.returns(Group::Fleet);
        self.fleet.latencies(Group::Bystanders, true);
        Ok(Before {
            begin: Instant::now(),
            lost: self.fleet.counts(Group::Bystanders).losses,
            fleet: Usage::own()?.cpu,
            controller: self.controller.usage()?.cpu,
        })
    }

    fn after(&mut self, storm: Storm, before: &Before, limit: Duration) -> Result<Returned> {
        // The thread of the fleet may not have noticed yet; all are back when as many returned as there are.
        let mut each = Vec::new();
        let members = self.members(Group::Fleet);
        self.fleet.wait(Group::Fleet, "all are back and verified", limit, |counts| {
            each.append(&mut self.fleet.returns(Group::Fleet));
            each.len() >= members && counts.verified == members
        })?;
        let all = before.begin.elapsed();
        let bystanders = self.fleet.latencies(Group::Bystanders, false);
        let earlier = if storm == Storm::Kill { Duration::ZERO } else { before.controller };
        Ok(Returned {
            all,
            each,
            controller: self.controller.usage()?.cpu.saturating_sub(earlier),
            fleet: Usage::own()?.cpu.saturating_sub(before.fleet),
            bystanders: if storm == Storm::Network { bystanders } else { Vec::new() },
            bystanders_lost: self.fleet.counts(Group::Bystanders).losses - before.lost,
        })
    }

    /// Ends every process of the database without asking.
    pub fn kill_database(&self) -> Result<()> {
        match &self.database {
            Database::Sqlite(_) => bail!("SQLite has no processes of its own"),
            Database::Postgres { server, .. } => server.kill(),
        }
    }

    /// Starts the database again.
    pub fn revive_database(&self) -> Result<()> {
        match &self.database {
            Database::Sqlite(_) => Ok(()),
            Database::Postgres { server, .. } => server.revive(),
        }
    }

    /// Makes sure that the database holds the newest heartbeat that each appliance was acknowledged since it last attached.
    /// Nobody must attach meanwhile. Returns of how many appliances that can be said.
    pub fn audit(&self) -> Result<usize> {
        let entries = self.fleet.ledger()?;
        let counters = self.database.counters()?;
        let mut found = 0;
        for entry in entries.iter().filter_map(|entry| Some((entry.server, entry.newest?))) {
            let (server, newest) = entry;
            let stored = counters.get(&server).copied().unwrap_or(0);
            if stored < newest.counter {
                bail!("{server}: heartbeat {} was acknowledged, the database holds {stored}", newest.counter);
            }
            found += 1;
        }
        Ok(found)
    }

    /// Makes sure that the history holds every single heartbeat that was acknowledged to a fleet that remembers.
    pub fn audit_history(&self) -> Result<usize> {
        let history = self.database.history()?;
        let mut found = 0;
        for entry in self.fleet.ledger()? {
            let held: BTreeSet<_> = history.get(&entry.server).into_iter().flatten().copied().collect();
            if let Some(missing) = entry.all.iter().find(|beat| !held.contains(beat)) {
                bail!("{}: {missing:?} was acknowledged and is not in the history", entry.server);
            }
            found += entry.all.len();
        }
        Ok(found)
    }
}

/// A controller that is not started, and its database.
pub(super) fn controller(
    program: &Path,
    files: &[(String, String)],
    postgres: bool,
) -> Result<(Lone, Database)> {
    if !postgres {
        let controller = Lone::init(program, files, "")?;
        let path = controller.data().join("horizon.db");
        return Ok((controller, Database::Sqlite(path)));
    }
    let server = Postgres::start(&PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    on_postgres(program, files, "", server)
}

/// A controller that is not started, whose database is a fresh one of a server.
pub(super) fn on_postgres(
    program: &Path,
    files: &[(String, String)],
    settings: &str,
    server: Postgres,
) -> Result<(Lone, Database)> {
    let name = server.fresh_database()?;
    let url = server.admin_url(&name);
    let controller =
        Lone::init(program, files, &format!("database_url_file = \"database-url\"\n{settings}"))?;
    controller.write_secret("database-url", &url)?;
    let migrated = controller.command(&["migrate"]).output().context("cannot run the controller")?;
    if !migrated.status.success() {
        bail!("migrate failed: {}", String::from_utf8_lossy(&migrated.stderr));
    }
    Ok((controller, Database::Postgres { server: Box::new(server), name }))
}
