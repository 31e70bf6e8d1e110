//! What happens to the life cycle of keys when many try at once: one token in many hands, a flood of wrong keys, keys that are
//! revoked while they are in use.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use horizon_channel::RequestError;
use horizon_model::SessionId;
use horizon_wire::proto::RefusalCode;
use horizon_wire::token::PersonalKey;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::devices::{self, Device};
use super::trial::{READY, controller};
use super::{Database, Fleet, FleetOptions, Group, Lone, OrganisationOptions, Plan, Trial, organisation};

const HEAD: &str = "apiVersion = \"horizon.dev/v1alpha1\"\n";
/// Devices that enrol or ask for their session at once, while everything is made ready.
const AT_ONCE: usize = 32;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Between two devices that enrol as they should while others flood.
const HONEST: Duration = Duration::from_millis(500);
/// Tries with wrong keys in a second, at most: below what one address may try here, as those with right keys come from it too.
pub const WRONG: u32 = 1000;
/// The most devices of one person.
const MOST_DEVICES: usize = 100;

/// What became of one token in many hands.
#[derive(Clone, Debug)]
pub struct OneToken {
    /// Who used it, all at once.
    pub callers: usize,
    /// Who got a server by it.
    pub successes: usize,
    /// Who was told that it was used.
    pub refused: u64,
    /// Until all had their answer.
    pub time: Duration,
}

/// Gives one registration token to many appliances, who all use it at once.
pub fn one_token(program: &Path, callers: usize, postgres: bool, limit: Duration) -> Result<OneToken> {
    let options = OrganisationOptions { appliances: 1, bystanders: 0, ..OrganisationOptions::default() };
    let (mut controller, _database) = controller(program, &organisation::files(&options), postgres)?;
    controller.start(READY)?;
    let (root, plans) = organisation::from_tokens(&controller, &options, READY)?;
    let token = plans.into_iter().next().context("no token")?.enrolment;
    let plan = |n| Plan { seed: organisation::seed(n), enrolment: token.clone(), group: Group::Fleet };
    let fleet = FleetOptions { controller: controller.control(), root, remember: false };
    let fleet = Fleet::start((0..callers).map(plan).collect(), &fleet)?;
    let begin = Instant::now();
    fleet.connect(Group::Fleet, Duration::ZERO)?;
    let refused = |counts: &super::Counts| -> u64 {
        let used = counts.reasons.iter().filter(|(reason, _)| reason.starts_with("refused, Used"));
        used.map(|(_, count)| count).sum()
    };
    let counts = fleet
        .wait(Group::Fleet, "every caller has its answer", limit, |counts| {
            counts.registered + refused(counts) >= callers as u64
        })
        .with_context(|| controller.log())?;
    let time = begin.elapsed();
    let successes = fleet.ledger()?.len();
    Ok(OneToken { callers, successes, refused: refused(&counts), time })
}

/// How a flood of wrong keys is made.
#[derive(Clone, Copy, Debug)]
pub struct FloodOptions {
    /// Devices that enrol at once: with right keys as fast as they are answered, with wrong ones [`WRONG`] times a second in all.
    pub at_once: usize,
    /// People who have a key.
    pub keys: usize,
    /// How long each part is watched.
    pub time: Duration,
    /// Whether the database is Postgres.
    pub postgres: bool,
}

/// Enrolments with and without a flood of wrong keys.
#[derive(Clone, Debug)]
pub struct Flood {
    /// Enrolments in a second when many with right keys come at once: each takes an Argon2id hash.
    pub right: f64,
    /// Heartbeats of appliances meanwhile, in milliseconds.
    pub bystanders_of_right: Vec<f64>,
    /// The controller's memory before anybody came, and the most that it was while they did, in MB.
    pub memory_of_right: [f64; 2],
    /// The controller's processor meanwhile, in per cent of a core.
    pub cpu_of_right: f64,
    /// Tries with wrong keys that were answered in a second.
    pub wrong: f64,
    /// Tries with wrong keys that were let in; none must be.
    pub let_in: u64,
    /// Tries with wrong keys that were refused for another reason than the key.
    pub otherwise: u64,
    /// How long an enrolment with a right key took meanwhile, in milliseconds, from the first packet on.
    pub honest: Vec<f64>,
    /// Those that failed.
    pub honest_failed: u64,
    /// Heartbeats of appliances meanwhile, in milliseconds.
    pub bystanders: Vec<f64>,
    /// Appliances that lost their connection.
    pub bystanders_lost: u64,
    /// The controller's memory before, in MB.
    pub memory_before: f64,
    /// The most that it was during the flood, in MB.
    pub memory: f64,
    /// The controller's processor during the flood, in per cent of a core.
    pub cpu: f64,
}

/// People and their keys, as resource files.
fn people(count: usize) -> impl Iterator<Item = (String, String)> {
    const PER_FILE: usize = 1000;
    let all: Vec<_> = (0..count).collect();
    let files: Vec<_> = all.chunks(PER_FILE).map(<[usize]>::to_vec).collect();
    files.into_iter().enumerate().map(|(file, numbers)| {
        let mut text = String::new();
        for n in numbers {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[resource]]\n{HEAD}kind = \"User\"\nmetadata.name = \"u{n}\"\n[resource.spec]\ngroups = [\"all\"]\n\
                 deviceLimit = {MOST_DEVICES}\n[[resource]]\n{HEAD}kind = \"PersonalKey\"\nmetadata.name = \"u{n}\"\n\
                 [resource.spec]\nuserRef = \"u{n}\"\n"
            );
        }
        (format!("people-{file}.toml"), text)
    })
}

/// The resource files of an organisation with people who may use every server of the fleet. All devices speak from one address:
/// its limits are those of the many addresses that they stand for.
fn files(options: &OrganisationOptions, keys: usize) -> Vec<(String, String)> {
    let mut files = organisation::files(options);
    for (_, text) in files.iter_mut().filter(|(name, _)| name == "policies.toml") {
        *text = text.replace(
            "[resource.spec]\n",
            "[resource.spec]\nrateLimits = { enrolmentsPerMinute = 100000, handshakesPerMinute = 1000000 }\n\
             lockout = { threshold = 10000, window = \"1s\" }\n",
        );
    }
    let servers: Vec<_> = (0..options.appliances).map(|n| format!("\"fleet-{n}\"")).collect();
    let access = format!(
        "{HEAD}kind = \"AccessPolicy\"\n[metadata]\nname = \"all\"\n[spec]\nsubjects.groups = [\"all\"]\nservers = [{}]\n\
         destinations = [{{ cidr = \"192.0.2.0/24\" }}]\n",
        servers.join(", ")
    );
    files.push(("access.toml".to_owned(), access));
    files.extend(people(keys));
    files
}

/// An organisation with people, its controller running, and their keys.
fn organisation_with_people(
    program: &Path,
    options: OrganisationOptions,
    keys: usize,
    postgres: bool,
) -> Result<(Trial, Vec<PersonalKey>)> {
    let (mut controller, database) = controller(program, &files(&options, keys), postgres)?;
    controller.start(READY)?;
    let ready = |controller: &Lone, database: Database| -> Result<_> {
        let names: Vec<_> = (0..keys).map(|n| format!("u{n}")).collect();
        let keys = devices::delivered(&controller.data(), &names, READY)?;
        let (root, plans) = organisation::from_tokens(controller, &options, READY)?;
        Ok((root, plans, keys, database))
    };
    let (root, plans, keys, database) = ready(&controller, database).with_context(|| controller.log())?;
    let fleet = FleetOptions { controller: controller.control(), root, remember: false };
    let fleet = Fleet::start(plans, &fleet)?;
    let empty = controller.usage()?;
    Ok((Trial { fleet, controller, database, options, empty }, keys))
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// What flooders count.
#[derive(Default)]
struct Tries {
    wrong: AtomicU64,
    let_in: AtomicU64,
    otherwise: AtomicU64,
    over: AtomicBool,
}

/// Tries wrong keys until it is over.
async fn flood_with(key: PersonalKey, pause: Duration, tries: Arc<Tries>) {
    let mut device = None;
    while !tries.over.load(Ordering::Relaxed) {
        let Some(connected) = device.take_if(|device: &mut Device| device.is_connected()) else {
            device = Device::connect(&key).await.ok();
            continue;
        };
        let counter = match connected.enrol(&key, &devices::wrong_secret()).await {
            Ok(()) => Some(&tries.let_in),
            Err(RequestError::Refused(refusal)) if refusal.code == RefusalCode::Unauthenticated => {
                Some(&tries.wrong)
            }
            Err(RequestError::Refused(_)) => Some(&tries.otherwise),
            // The controller ends the channels of those who prove nothing for long.
            Err(RequestError::Gone | RequestError::Timeout) => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        device = Some(connected);
        tokio::time::sleep(pause).await;
    }
}

/// Enrols new devices with right keys, one after the other, until a time; returns how many.
async fn enrol_until(keys: Arc<[PersonalKey]>, first: usize, step: usize, end: Instant) -> Result<u64> {
    let mut done = 0;
    for n in (first..keys.len() * MOST_DEVICES / 2).step_by(step) {
        if Instant::now() >= end {
            break;
        }
        let key = keys.get(n % keys.len()).context("no keys")?;
        Device::connect(key).await?.enrol(key, &key.secret).await?;
        done += 1;
    }
    Ok(done)
}

/// Enrols a device now and then, as a person does who has a right key.
async fn honest_until(key: &PersonalKey, end: Instant) -> (Vec<f64>, u64) {
    let (mut times, mut failed) = (Vec::new(), 0);
    while Instant::now() < end {
        let begin = Instant::now();
        let enrolled = async {
            let device = Device::connect(key).await?;
            Ok::<_, anyhow::Error>(device.enrol(key, &key.secret).await?)
        };
        match enrolled.await {
            Ok(()) => times.push(begin.elapsed().as_secs_f64() * 1e3),
            Err(_) => failed += 1,
        }
        tokio::time::sleep(HONEST).await;
    }
    (times, failed)
}

/// The most memory that the controller has until something is over, in MB.
fn most_memory(trial: &mut Trial, is_over: impl Fn() -> bool) -> Result<f64> {
    let mut most = trial.controller.usage()?.resident_mb;
    while !is_over() {
        super::pause(LOOK);
        most = trial.controller.usage()?.resident_mb.max(most);
    }
    Ok(most)
}

/// Measures enrolments with right keys, and then what a flood of wrong keys does to them and to others.
pub fn flood(program: &Path, options: FloodOptions, limit: Duration) -> Result<Flood> {
    let organisation = OrganisationOptions { appliances: 1, ..OrganisationOptions::default() };
    let (mut trial, keys) =
        organisation_with_people(program, organisation, options.keys + 1, options.postgres)?;
    trial.bring_up(Duration::ZERO, limit).with_context(|| trial.controller.log())?;
    let runtime = runtime()?;
    let (honest, keys) = keys.split_last().context("no keys")?;
    let keys: Arc<[PersonalKey]> = keys.into();

    trial.fleet.latencies(Group::Bystanders, true);
    let (empty, begin) = (trial.controller.usage()?, Instant::now());
    let (at_once, all, end) = (options.at_once, keys.clone(), begin + options.time);
    let working = runtime.spawn(async move {
        let mut workers = JoinSet::new();
        for first in 0..at_once {
            workers.spawn(enrol_until(all.clone(), first, at_once, end));
        }
        let mut done = 0;
        while let Some(worker) = workers.join_next().await {
            done += worker??;
        }
        Ok::<_, anyhow::Error>(done)
    });
    let most = most_memory(&mut trial, || working.is_finished())?;
    let time = begin.elapsed().as_secs_f64();
    let before = trial.controller.usage()?;
    let right = runtime.block_on(working)?? as f64 / time;
    let cpu_of_right = before.cpu_percent_since(&empty);
    let lost = trial.fleet.counts(Group::Bystanders).losses;
    let bystanders_of_right = trial.fleet.latencies(Group::Bystanders, true);
    let tries = Arc::new(Tries::default());
    let pause = Duration::from_secs(1) * u32::try_from(options.at_once).unwrap_or(u32::MAX) / WRONG;
    for key in keys.iter().cycle().take(options.at_once) {
        runtime.spawn(flood_with(key.clone(), pause, tries.clone()));
    }
    let begin = Instant::now();
    let watched = runtime.spawn({
        let (honest, end) = (honest.clone(), begin + options.time);
        async move { honest_until(&honest, end).await }
    });
    let memory = most_memory(&mut trial, || watched.is_finished())?;
    let time = begin.elapsed();
    let after = trial.controller.usage()?;
    tries.over.store(true, Ordering::Relaxed);
    let (honest, honest_failed) = runtime.block_on(watched)?;
    let bystanders = trial.fleet.latencies(Group::Bystanders, false);
    Ok(Flood {
        right,
        bystanders_of_right,
        memory_of_right: [empty.resident_mb, most],
        cpu_of_right,
        wrong: tries.wrong.load(Ordering::Relaxed) as f64 / time.as_secs_f64(),
        let_in: tries.let_in.load(Ordering::Relaxed),
        otherwise: tries.otherwise.load(Ordering::Relaxed),
        honest,
        honest_failed,
        bystanders,
        bystanders_lost: trial.fleet.counts(Group::Bystanders).losses - lost,
        memory_before: before.resident_mb,
        memory,
        cpu: after.cpu_percent_since(&before),
    })
}

/// Keys that are revoked while they are in use.
#[derive(Clone, Debug)]
pub struct Revoked {
    /// From the command that revokes one key until its device and its appliance know, in milliseconds.
    pub single: Vec<f64>,
    /// Of that the command itself.
    pub command: Vec<f64>,
    /// From the writing of the file that revokes all others until the device of each knows, in milliseconds.
    pub together: Vec<f64>,
    /// Until all devices and all appliances know.
    pub all: Duration,
}

/// How keys are revoked.
#[derive(Clone, Copy, Debug)]
pub struct RevokeOptions {
    /// Appliances.
    pub appliances: usize,
    /// Sessions, each of a person of its own.
    pub sessions: usize,
    /// How many keys are revoked one by one, before all others are at once.
    pub single: usize,
    /// Whether the database is Postgres.
    pub postgres: bool,
}

/// A device with a session.
struct InSession {
    number: usize,
    device: Device,
    session: SessionId,
}

/// Has sessions made, and revokes their keys.
pub fn revoke(program: &Path, options: RevokeOptions, limit: Duration) -> Result<Revoked> {
    let organisation = OrganisationOptions {
        appliances: options.appliances,
        bystanders: 0,
        ..OrganisationOptions::default()
    };
    let (trial, keys) = organisation_with_people(program, organisation, options.sessions, options.postgres)?;
    trial.bring_up(Duration::ZERO, limit).with_context(|| trial.controller.log())?;
    let runtime = runtime()?;
    let mut devices =
        runtime.block_on(make_sessions(keys, options)).with_context(|| trial.controller.log())?;
    let held = |left: usize| {
        trial.fleet.wait(Group::Fleet, "the appliances hold the sessions that are left", limit, |counts| {
            counts.sessions == left
        })
    };
    held(options.sessions).with_context(|| trial.controller.log())?;

    let rest = devices.split_off(options.single);
    let (mut single, mut command) = (Vec::new(), Vec::new());
    let mut left = options.sessions;
    for mut one in devices {
        let begin = Instant::now();
        let name = format!("u{}", one.number);
        let words = ["revoke", "personalkey", &name, "--reason", "in wrong hands", "--compromised"];
        let output = trial.controller.command(&words).output()?;
        command.push(begin.elapsed().as_secs_f64() * 1e3);
        if !output.status.success() {
            bail!("revoke failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        runtime.block_on(async { tokio::time::timeout(limit, one.device.ended(one.session)).await })??;
        left -= 1;
        held(left)?;
        single.push(begin.elapsed().as_secs_f64() * 1e3);
    }

    let mut text = String::new();
    for one in &rest {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[resource]]\n{HEAD}kind = \"Revocation\"\nmetadata.name = \"r{0}\"\n[resource.spec]\nreason = \"all of them\"\n\
             compromised = true\ntarget = {{ kind = \"PersonalKey\", name = \"u{0}\" }}\n",
            one.number
        );
    }
    let begin = Instant::now();
    std::fs::write(trial.controller.resources().join("revocations.toml"), text)?;
    let together = runtime.block_on(async {
        let mut waiting = JoinSet::new();
        for mut one in rest {
            waiting.spawn(async move {
                tokio::time::timeout(limit, one.device.ended(one.session)).await??;
                Ok::<_, anyhow::Error>(begin.elapsed().as_secs_f64() * 1e3)
            });
        }
        let mut times = Vec::new();
        while let Some(time) = waiting.join_next().await {
            times.push(time??);
        }
        Ok::<_, anyhow::Error>(times)
    });
    let together = together.with_context(|| trial.controller.log())?;
    held(0)?;
    Ok(Revoked { single, command, together, all: begin.elapsed() })
}

async fn make_sessions(keys: Vec<PersonalKey>, options: RevokeOptions) -> Result<Vec<InSession>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut making = JoinSet::new();
    for (number, key) in keys.into_iter().enumerate() {
        let turns = turns.clone();
        making.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            let device = Device::connect(&key).await?;
            device.enrol(&key, &key.secret).await?;
            let session = device.session(&format!("fleet-{}", number % options.appliances)).await?;
            Ok::<_, anyhow::Error>(InSession { number, device, session })
        });
    }
    let mut devices = Vec::new();
    while let Some(made) = making.join_next().await {
        devices.push(made??);
    }
    devices.sort_by_key(|one| one.number);
    Ok(devices)
}
