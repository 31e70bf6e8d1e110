//! A fleet whose organisation is declared in a Kubernetes API server.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use horizon_services::{KubeApi, Postgres, PostgresOptions};
use horizon_wire::token::RegistrationToken;
use serde_json::{Value, json};

use super::{
    Database, Enrolment, Fleet, FleetOptions, Lone, OrganisationOptions, Plan, Trial, organisation,
    trial::READY,
};

/// Objects of one call of kubectl.
const PER_CALL: usize = 1000;
/// Calls of kubectl at once.
const CALLS: usize = 4;

/// The objects of a kind and namespace.
fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "horizon.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// The organisation of a fleet as objects: policies, servers, and one registration key each.
fn objects(options: &OrganisationOptions) -> Vec<Value> {
    let policy = |namespace, heartbeat: Duration| {
        object(
            "SecurityPolicy",
            namespace,
            "default",
            &json!({"heartbeatInterval": format!("{}s", heartbeat.as_secs())}),
        )
    };
    let mut objects = vec![
        policy("default", options.heartbeat),
        policy(organisation::BYSTANDERS_NAMESPACE, options.bystander_heartbeat),
    ];
    for (_, _, name, namespace) in organisation::members(options) {
        objects.push(object("Server", namespace, &name, &json!({})));
        objects.push(object("RegistrationKey", namespace, &name, &json!({"serverRef": name})));
    }
    objects
}

/// People in groups with policies, as many objects as asked for: what an organisation has besides servers.
fn people(count: usize) -> Vec<Value> {
    let one = |n: usize| {
        let (group, name) = (format!("g{}", n / 11), format!("r{n}"));
        if n % 11 == 10 {
            let spec = json!({
                "subjects": {"groups": [group]}, "servers": ["fleet-0"],
                "destinations": [{"cidr": "192.0.2.0/24", "protocol": "tcp", "ports": ["443"]}],
            });
            object("AccessPolicy", "default", &name, &spec)
        } else {
            object(
                "User",
                "default",
                &name,
                &json!({"displayName": format!("Person {n}"), "groups": [group]}),
            )
        }
    };
    (0..count).map(one).collect()
}

/// Declares all of it in an API server whose CRDs are installed, with people to make up `count` objects.
pub fn declare(kube: &KubeApi, options: &OrganisationOptions, count: usize) -> Result<()> {
    for namespace in ["horizon-system", organisation::BYSTANDERS_NAMESPACE] {
        kube.kubectl(["create", "namespace", namespace])?;
    }
    let mut all = objects(options);
    all.extend(people(count.saturating_sub(all.len())));
    let lists: Vec<_> = all
        .chunks(PER_CALL)
        .map(|items| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
        .collect();
    let next = std::sync::Mutex::new(lists.iter());
    let call = || -> Result<()> {
        loop {
            let list = next.lock().ok().and_then(|mut lists| lists.next());
            let Some(list) = list else { return Ok(()) };
            kube.kubectl_with(list, ["create", "--validate=false", "-f", "-"])?;
        }
    };
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..CALLS).map(|_| scope.spawn(call)).collect();
        calls
            .into_iter()
            .try_for_each(|call| call.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}

/// A controller that reads its resources from an API server, not started, and its database.
pub fn controller(program: &Path, kube: &KubeApi) -> Result<(Lone, Database)> {
    let server = Postgres::start(&PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    let settings = format!("source = \"kubernetes\"\nkubeconfig = \"{}\"\n", kube.kubeconfig().display());
    super::trial::on_postgres(program, &[], &settings, server)
}

/// Waits until the fleet's tokens lie in their Secrets, and has its appliances ready.
pub fn trial(
    mut controller: Lone,
    database: Database,
    kube: &KubeApi,
    options: OrganisationOptions,
) -> Result<Trial> {
    let tokens = tokens(kube, &options).with_context(|| controller.log())?;
    let mut root = None;
    let mut plans = Vec::new();
    for (number, group, name, namespace) in organisation::members(&options) {
        let text = tokens.get(&(namespace.to_owned(), format!("{name}-token"))).context("no token")?;
        let token = RegistrationToken::decode(text)?;
        root = Some(token.root);
        let enrolment = Enrolment::Token { key_name: token.key_name, secret: token.secret };
        plans.push(Plan { seed: organisation::seed(number), enrolment, group });
    }
    let root = root.context("an organisation without appliances")?;
    let empty = controller.usage()?;
    let fleet =
        Fleet::start(plans, &FleetOptions { controller: controller.control(), root, remember: false })?;
    Ok(Trial { fleet, controller, database, options, empty })
}

/// The delivered tokens, by namespace and name of their Secrets.
fn tokens(kube: &KubeApi, options: &OrganisationOptions) -> Result<HashMap<(String, String), String>> {
    let all = organisation::members(options).count();
    let end = Instant::now() + READY;
    loop {
        let of_tokens = "--field-selector=type=horizon.dev/registration-token";
        let secrets = kube.get(["secrets", "--all-namespaces", of_tokens])?;
        let items = secrets["items"].as_array().context("no list of Secrets")?;
        if items.len() >= all {
            return items.iter().map(token).collect();
        }
        if Instant::now() > end {
            bail!("{} of {all} tokens were delivered within {READY:?}", items.len());
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

fn token(secret: &Value) -> Result<((String, String), String)> {
    let text = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let name = text("/metadata/namespace").zip(text("/metadata/name")).context("a Secret without a name")?;
    let token = BASE64.decode(text("/data/token").context("a Secret without a token")?.as_bytes())?;
    Ok((name, String::from_utf8(token)?))
}
