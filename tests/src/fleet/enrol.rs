//! Enrolment of a fleet in bulk: what tokens and registrations do, by the controller's own store, without a network and
//! while no controller runs. A hundred thousand appliances take minutes this way and hours by hand.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use horizon_controller::{
    keys::Keys,
    metrics::Metrics,
    store::{self, Actor, Change, Guard, RegisterRequest, Store},
};
use horizon_controller_core::Origin;
use horizon_crds::{KindName, Resource, parse};
use horizon_model::{Capability, RootId};
use jiff::Timestamp;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Database, Enrolment, Group, Lone, OrganisationOptions, Plan, appliance, organisation};

/// Registrations under way at once.
const AT_ONCE: usize = 16;
/// Resources of one commit.
const COMMIT: usize = 4000;
const ACTOR: Actor = Actor::System("fleet");

/// An appliance that is to be registered.
struct Member {
    seed: [u8; 32],
    group: Group,
    name: String,
    key: Uuid,
    address: std::net::Ipv4Addr,
}

/// Puts an organisation and its appliances into a controller's database.
pub(super) fn enrol(
    controller: &Lone,
    database: &Database,
    options: &OrganisationOptions,
) -> Result<(RootId, Vec<Plan>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    database.wait_for_disk(false)?;
    let enrolled = runtime.block_on(async {
        let keys = Keys::open(&controller.data().join("keys"), Timestamp::now())?;
        let database = match database {
            Database::Sqlite(path) => store::Database::Sqlite(path.clone()),
            Database::Postgres { server, name } => {
                store::Database::Postgres(server.admin_url(name).parse().map_err(|e| anyhow!("{e}"))?)
            }
        };
        let store = Store::open(database, keys.envelope_key()?, Metrics::default()).await?;
        let plans = register_all(&store, options).await?;
        store.close().await;
        Ok((keys.root_id(), plans))
    });
    database.wait_for_disk(true)?;
    enrolled
}

async fn register_all(store: &Store, options: &OrganisationOptions) -> Result<Vec<Plan>> {
    let mut keys = std::collections::HashMap::new();
    for (file, text) in organisation::files(options) {
        let parsed = parse(&file, text.as_bytes());
        if let Some(problem) = parsed.problems.first() {
            bail!("{problem}");
        }
        let resources: Vec<_> =
            parsed.resources.into_iter().map(|(resource, _)| Arc::new(resource)).collect();
        for chunk in resources.chunks(COMMIT) {
            let put = |resource: &Arc<Resource>| Change::Put {
                resource: resource.clone(),
                origin: Origin::Api,
                actor: None,
            };
            let changes: Vec<_> = chunk.iter().map(put).collect();
            let committed = store.commit_resources(&changes, &ACTOR, Timestamp::now(), Guard::NONE).await?;
            for assigned in committed.assigned {
                if assigned.id.kind == KindName::RegistrationKey {
                    keys.insert(
                        (assigned.id.namespace.to_string(), assigned.id.name.to_string()),
                        assigned.uid,
                    );
                }
            }
        }
    }
    let mut members = Vec::new();
    for (number, group, name, namespace) in organisation::members(options) {
        let key =
            keys.remove(&(namespace.to_owned(), name.clone())).context("a key that was not committed")?;
        let (seed, address) = (organisation::seed(number), super::port::address(number));
        members.push(Member { seed, group, name, key, address });
    }
    let mut plans: Vec<Option<Plan>> = vec![None; members.len()];
    let mut tasks = JoinSet::new();
    let mut waiting = members.into_iter().enumerate();
    loop {
        while tasks.len() < AT_ONCE
            && let Some((at, member)) = waiting.next()
        {
            let store = store.clone();
            tasks.spawn(async move { register(&store, &member).await.map(|plan| (at, plan)) });
        }
        let Some(done) = tasks.join_next().await else { break };
        let (at, plan) = done??;
        plans[at] = Some(plan);
    }
    plans.into_iter().map(|plan| plan.context("an appliance that was not registered")).collect()
}

/// The token and its use.
async fn register(store: &Store, member: &Member) -> Result<Plan> {
    let secret = store.issue_registration_secret(member.key, Timestamp::now()).await?;
    let request = RegisterRequest {
        key_name: member.name.clone(),
        secret,
        public_key: appliance::key_of(&member.seed).public(),
        hostname: format!("fleet-{}", member.name),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: vec![Capability::Vpn],
        factors: appliance::factors(&member.seed),
        address: member.address.into(),
    };
    let registered = store.register_server(&request, Timestamp::now()).await?;
    let enrolment = Enrolment::Registered { server: registered.server, secret: registered.secret };
    Ok(Plan { seed: member.seed, enrolment, group: member.group })
}
