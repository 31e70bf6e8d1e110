//! The organisation a fleet belongs to: its documents, and how its appliances come by their identities.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use horizon_model::RootId;
use horizon_wire::token::RegistrationToken;

use super::{Enrolment, Group, Lone, Plan};

/// The namespace of the bystanders, which has a security policy of its own.
pub(super) const BYSTANDERS_NAMESPACE: &str = "bystanders";
/// Documents of one file; a file holds at most 4096.
const PER_FILE: usize = 2000;
const HEAD: &str = "apiVersion = \"horizon.dev/v1alpha1\"\n";

/// How an organisation is made.
#[derive(Clone, Debug)]
pub struct OrganisationOptions {
    /// How many appliances the fleet has, besides the bystanders.
    pub appliances: usize,
    /// How many bystanders there are.
    pub bystanders: usize,
    /// Between two heartbeats of one appliance of the fleet.
    pub heartbeat: Duration,
    /// The same of a bystander.
    pub bystander_heartbeat: Duration,
}

impl Default for OrganisationOptions {
    fn default() -> Self {
        Self {
            appliances: 1000,
            bystanders: 20,
            heartbeat: Duration::from_secs(30),
            bystander_heartbeat: Duration::from_secs(1),
        }
    }
}

/// An appliance's number, name and namespace.
pub(super) fn members(
    options: &OrganisationOptions,
) -> impl Iterator<Item = (usize, Group, String, &'static str)> {
    let all = options.appliances + options.bystanders;
    let fleet = options.appliances;
    (0..all).map(move |number| match number < fleet {
        true => (number, Group::Fleet, format!("fleet-{number}"), "default"),
        false => (number, Group::Bystanders, format!("bystander-{}", number - fleet), BYSTANDERS_NAMESPACE),
    })
}

/// The seed of an appliance's key: a fleet is the same every time.
pub(super) fn seed(number: usize) -> [u8; 32] {
    horizon_wire::key::sha256(format!("horizon fleet {number}").as_bytes()).0
}

/// The security policies of the two namespaces: heartbeats, and the challenge interval that is usual.
pub(super) fn policies(options: &OrganisationOptions) -> String {
    let policy = |namespace: &str, heartbeat: Duration| {
        format!(
            "[[resource]]\n{HEAD}kind = \"SecurityPolicy\"\nmetadata.name = \"default\"\n\
             metadata.namespace = \"{namespace}\"\n[resource.spec]\nheartbeatInterval = \"{}s\"\n",
            heartbeat.as_secs().max(1)
        )
    };
    policy("default", options.heartbeat) + &policy(BYSTANDERS_NAMESPACE, options.bystander_heartbeat)
}

/// Everything as resource files: policies, servers, and one registration key each.
pub(super) fn files(options: &OrganisationOptions) -> Vec<(String, String)> {
    let mut files = vec![("policies.toml".to_owned(), policies(options))];
    let all: Vec<_> = members(options).collect();
    for (n, chunk) in all.chunks(PER_FILE / 2).enumerate() {
        let mut text = String::new();
        for (_, _, name, namespace) in chunk {
            let meta = format!("metadata.name = \"{name}\"\nmetadata.namespace = \"{namespace}\"\n");
            let _ = write!(
                text,
                "[[resource]]\n{HEAD}kind = \"Server\"\n{meta}[resource.spec]\n\
                 [[resource]]\n{HEAD}kind = \"RegistrationKey\"\n{meta}[resource.spec]\nserverRef = \"{name}\"\n"
            );
        }
        files.push((format!("fleet-{n}.toml"), text));
    }
    files
}

/// Waits until a running controller has delivered the fleet's registration tokens, and makes its appliances of them.
pub(super) fn from_tokens(
    controller: &Lone,
    options: &OrganisationOptions,
    limit: Duration,
) -> Result<(RootId, Vec<Plan>)> {
    from_files(&controller.data(), options, limit).with_context(|| controller.log())
}

/// The same of a controller with this folder of data.
pub(super) fn from_files(
    data: &Path,
    options: &OrganisationOptions,
    limit: Duration,
) -> Result<(RootId, Vec<Plan>)> {
    let end = std::time::Instant::now() + limit;
    let (mut root, mut plans) = (None, Vec::new());
    for (number, group, name, namespace) in members(options) {
        let text = delivered(&data.join("secrets").join(format!("registrationkey.{namespace}.{name}")), end)?;
        let token = RegistrationToken::decode(&text)?;
        root = Some(token.root);
        let enrolment = Enrolment::Token { key_name: token.key_name, secret: token.secret };
        plans.push(Plan { seed: seed(number), enrolment, group });
    }
    Ok((root.context("an organisation without appliances")?, plans))
}

/// What was delivered to a file, once it is there.
pub(super) fn delivered(file: &Path, end: std::time::Instant) -> Result<String> {
    loop {
        match whole(file) {
            Some(text) => return Ok(text),
            None if std::time::Instant::now() > end => bail!("{} was not delivered in time", file.display()),
            None => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

/// A delivered string, once all of it is there: it ends with a new line.
fn whole(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'))
}
