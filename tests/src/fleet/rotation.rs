//! What the rotation of every kind of key does to those who use them: a simulated fleet, and real appliances in namespaces of
//! their own with devices whose flows are watched.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Fleet, FleetOptions, Group, OrganisationOptions, organisation};
use crate::lab::{Host, Lab, within};
use crate::products::{Appliance, Client, Controller, Programs};
use crate::services::{Probe, Stream, TcpEcho, WhoAmI};

/// Where a controller listens unless told otherwise.
const CONTROL_PORT: u16 = 7440;
/// Control channels that are allowed at once.
const CONNECTIONS: usize = 10_000;
const HEAD: &str = "apiVersion = \"horizon.dev/v1alpha1\"\n";

/// Who is there while keys rotate.
#[derive(Clone, Copy, Debug)]
pub struct RotationOptions {
    /// Simulated appliances.
    pub simulated: usize,
    /// Real appliances, each with a device whose flows go through it.
    pub real: usize,
    /// For how long an old key goes on beside the new one.
    pub overlap: Duration,
}

/// What one rotation did.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// Of which keys.
    pub keys: &'static str,
    /// Until the last old key was gone.
    pub time: Duration,
    /// The longest silence of each stream of packets, in milliseconds.
    pub silences: Vec<f64>,
    /// Why TCP connections broke that did.
    pub broken: Vec<String>,
    /// Control channels of simulated appliances that ended.
    pub channels: u64,
}

/// A device, its appliance, and what goes between the device and the web.
struct Pair {
    // The flow ends before the hosts do.
    stream: Stream,
    probe: Probe,
    /// Under which address the web sees the device.
    seen_as: std::net::IpAddr,
    _client: Client,
    _appliance: Appliance,
}

/// Rotates keys of every kind, one kind after the other.
pub fn rotate(programs: &Programs, options: RotationOptions, limit: Duration) -> Result<Vec<Rotated>> {
    let mut lab = Lab::new()?;
    let web = lab.public_host("web")?;
    let (echo, who) = (TcpEcho::start(&web, web.v4())?, WhoAmI::start(&web)?);
    let organisation = OrganisationOptions {
        appliances: options.simulated,
        bystanders: 0,
        ..OrganisationOptions::default()
    };
    let resources = lab.dir().join("resources");
    std::fs::create_dir(&resources)?;
    let mut files = organisation::files(&organisation);
    files.push(("people.toml".to_owned(), people(options.real)));
    for (name, text) in files {
        std::fs::write(resources.join(name), text)?;
    }
    let mut controller = Controller::init(lab.public_host("controller")?, programs, &resources)?;
    let settings = controller.config();
    let text = std::fs::read_to_string(&settings)?;
    std::fs::write(&settings, format!("{text}\nmax_connections = {CONNECTIONS}\n"))?;
    controller.start()?;

    let pairs = (0..options.real).map(|n| pair(&mut lab, programs, &controller, n, &echo, &who));
    let mut pairs = pairs.collect::<Result<Vec<_>>>().with_context(|| controller.log())?;
    let fleet = simulated(&controller, &organisation, limit).with_context(|| controller.log())?;
    let overlap = format!("{}s", options.overlap.as_secs());
    let keys: Vec<_> = names(&controller, "personalkeys")?;
    let all = ["tls", "state", "ticket", "root"].join(",");
    let mut personal = vec!["rotate", "personalkey"];
    personal.extend(keys.iter().map(String::as_str));
    personal.extend(["--overlap", &overlap]);
    let rounds: [(&'static str, Vec<&str>); 4] = [
        (
            "the organisation's TLS, state, ticket and root keys",
            vec!["rotate", "keys", "--class", &all, "--overlap", &overlap],
        ),
        ("personal keys", personal),
        ("verification secrets", vec!["rotate", "secrets"]),
        (
            "the envelope key and all data keys",
            vec!["rotate", "keys", "--class", "envelope", "--overlap", &overlap],
        ),
    ];
    let mut rotated = Vec::new();
    for (keys, words) in rounds {
        let before = fleet.counts(Group::Fleet).losses;
        let begin = Instant::now();
        let name = recorded(&controller, &words)?;
        let silences = watch(&mut pairs, limit, || is_completed(&controller, &name))
            .with_context(|| format!("{keys}\n{}", controller.log()))?;
        let time = begin.elapsed();
        fleet.wait(Group::Fleet, "all are back and verified", limit, |counts| {
            counts.verified == options.simulated
        })?;
        let broken = pairs.iter().filter_map(|pair| pair.stream.stands().err()).collect();
        let channels = fleet.counts(Group::Fleet).losses - before;
        rotated.push(Rotated { keys, time, silences, broken, channels });
    }
    Ok(rotated)
}

/// People, their servers, and what they may do there.
fn people(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[resource]]\n{HEAD}kind = \"Server\"\nmetadata.name = \"gateway-{n}\"\n[resource.spec]\ncapabilities = [\"vpn\"]\n\
             [[resource]]\n{HEAD}kind = \"User\"\nmetadata.name = \"user-{n}\"\n[resource.spec]\ngroups = [\"all\"]\n\
             [[resource]]\n{HEAD}kind = \"AccessPolicy\"\nmetadata.name = \"gateway-{n}\"\n[resource.spec]\n\
             subjects.groups = [\"all\"]\nservers = [\"gateway-{n}\"]\ndestinations = [{{ cidr = \"0.0.0.0/0\" }}]\n"
        );
    }
    text
}

/// A real appliance and a device that is connected to it.
fn pair(
    lab: &mut Lab,
    programs: &Programs,
    controller: &Controller,
    n: usize,
    echo: &TcpEcho,
    who: &WhoAmI,
) -> Result<Pair> {
    let server = format!("gateway-{n}");
    let mut appliance = Appliance::new(lab.public_host(&server)?, programs);
    appliance.enroll(&controller.token(&server)?)?;
    appliance.start()?;
    appliance.wait_until_applied()?;
    within(crate::lab::PATIENCE, "the server takes sessions", || {
        (controller.get("server", &server).ok()?["status"]["phase"] == "active").then_some(())
    })?;
    let mut client = Client::new(lab.public_host(&format!("device-{n}"))?, programs);
    client.start()?;
    client.add_key(&controller.invite(&format!("user-{n}"))?)?;
    client.connect(&server)?;
    let host: &Host = client.host();
    let (stream, probe) = (Stream::start(host, echo)?, Probe::new(host, who)?);
    Ok(Pair { stream, probe, seen_as: appliance.host().v4(), _client: client, _appliance: appliance })
}

/// The simulated appliances, on the controller's own host, which is all of the network they need.
fn simulated(controller: &Controller, options: &OrganisationOptions, limit: Duration) -> Result<Fleet> {
    let config = controller.config();
    let data = config.parent().context("settings are in a folder")?.join("data");
    let (root, plans) = organisation::from_files(&data, options, limit)?;
    let start = FleetOptions { controller: ([127, 0, 0, 1], CONTROL_PORT).into(), root, remember: false };
    let fleet = controller.host().run(move || Fleet::start(plans, &start))?;
    fleet.connect(Group::Fleet, Duration::ZERO)?;
    fleet.wait(Group::Fleet, "all are verified", limit, |counts| counts.verified == options.appliances)?;
    Ok(fleet)
}

/// The names of all resources of a kind.
fn names(controller: &Controller, kind: &str) -> Result<Vec<String>> {
    let listed: serde_json::Value = serde_json::from_str(&controller.cli(["get", kind, "-o", "json"]).ok()?)?;
    let items = listed.as_array().or_else(|| listed["items"].as_array()).context("not a list")?;
    let name = |item: &serde_json::Value| Some(item["metadata"]["name"].as_str()?.to_owned());
    items.iter().map(|item| name(item).context("an object without a name")).collect()
}

/// Has a rotation recorded; its name.
fn recorded(controller: &Controller, words: &[&str]) -> Result<String> {
    let config = controller.config();
    let config = config.to_str().context("a path that is not text")?;
    let words = words.iter().copied().chain(["--reason", "measured", "--config", config]);
    let said = controller.host().cmd(controller.program(), words).ok()?;
    let name = said.split_whitespace().find(|word| word.starts_with("rotate-"));
    Ok(name.with_context(|| format!("no name in: {said}"))?.trim_end_matches(':').to_owned())
}

fn is_completed(controller: &Controller, name: &str) -> bool {
    controller.get("keyrotation", name).is_ok_and(|rotation| rotation["status"]["phase"] == "completed")
}

/// Sends a packet every millisecond from every device until something holds; the longest silence of each, in milliseconds.
fn watch(pairs: &mut [Pair], limit: Duration, holds: impl Fn() -> bool) -> Result<Vec<f64>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let probes: Vec<_> = pairs
            .iter_mut()
            .map(|pair| {
                let (probe, source) = (&mut pair.probe, pair.seen_as);
                scope.spawn(move || probe.longest_silence(limit, source, || over.load(Ordering::Relaxed)))
            })
            .collect();
        let completed = within(limit, "the rotation is completed", || holds().then_some(()));
        over.store(true, Ordering::Relaxed);
        let silences = probes.into_iter().map(|probe| match probe.join() {
            Ok(silence) => Ok(silence?.as_secs_f64() * 1e3),
            Err(_) => bail!("a packet left beside the tunnel"),
        });
        let silences = silences.collect::<Result<Vec<_>>>();
        completed?;
        silences
    })
}
